r"""Training on the adversarial inputs that another learner has found.

.. math:: (1 - w)\,\mathrm{CE}(f(x), y) + w\,\mathrm{CE}(f(x'), y)

The adversarial inputs x' are those found for another learner against its weights in the same
step; the search is nine tenths of an update, and is done once. Against this learner they are a
transfer attack, the weaker the further apart the two learners are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch, Objective, smoothing_line
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import exact


@dataclass(frozen=True, kw_only=True)
class Following(Objective):
    """Clean images, and the adversarial ones found for the robust learner.

    Arguments:
        weight: w, the weight of the adversarial ones, in [0, 1).
    """

    follows: ClassVar[str | None] = "robust"
    objective: str = "following"
    weight: Annotated[float, "[0, 1)"] = 0.1

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

    @property
    def cost(self) -> int:
        """Return the passes of the loss: the search is another learner's."""
        return 2 if self.weight else 1

    def formula(self) -> list[str]:
        """Return the loss, and where x' comes from."""
        w = self.weight
        source = "x' = what the learner that it follows has found for itself"
        return [
            f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(x'), y)",
            *([source, "x and x' pass forward as one batch"] if w else []),
            *smoothing_line(self.label_smoothing),
        ]
