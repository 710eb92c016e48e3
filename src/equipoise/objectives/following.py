r"""Training on the adversarial inputs that another learner has found.

.. math:: (1 - w)\,\mathrm{CE}(f(x), y) + w\,\mathrm{CE}(f(x'), y)

The adversarial inputs x' are those of the learner that is followed, found against its weights
just before; the search is nine tenths of an update, and is paid once. Against the learner itself
they are a transfer attack, weaker than its own would be, the further apart the two are.
"""

__all__ = ["Following"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch, Objective, smoothing_line
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import exact


@dataclass(frozen=True, kw_only=True)
class Following(Objective):
    """Clean images, and the adversarial ones that the robust learner found.

    Arguments:
        weight: w, the weight of the adversarial ones, in [0, 1).
    """

    follows: ClassVar[str | None] = "robust"
    objective: str = "following"
    weight: float = 0.1

    def problems(self) -> list[str]:
        """Return what is wrong with the settings."""
        wrong = not 0 <= self.weight < 1
        weight = [f"weight must lie in [0, 1), got {self.weight}"] if wrong else []
        return super().problems() + weight

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss; clean and adversarial inputs pass forward as one batch."""
        del draws
        labels = Labels(batch.y, smoothing=self.label_smoothing)
        if self.weight == 0:
            yield labels.cross_entropy(exact(model(batch.x))).mean()
            return
        assert batch.adversarial is not None, "the batch has no adversarial inputs"
        both = exact(model(torch.cat((batch.x, batch.adversarial))))
        clean, robust = (labels.cross_entropy(z).mean() for z in both.chunk(2))
        yield (1 - self.weight) * clean + self.weight * robust

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the clean inputs: most of what it is trained on, and all that is its own."""
        del model, draws
        return batch.x

    @property
    def cost(self) -> int:
        """Return the passes of the loss: the search is another learner's."""
        return 2 if self.weight else 1

    def formula(self) -> list[str]:
        """Return the loss, and where x' comes from."""
        w = self.weight
        lines = [f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(x'), y)"]
        if w:
            lines.append("x' = what the learner that it follows has found for itself")
            lines.append("x and x' pass forward as one batch")
        return lines + smoothing_line(self.label_smoothing)
