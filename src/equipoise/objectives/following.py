r"""Training on what another learner has found.

.. math:: (1 - w)\,\mathrm{CE}(f(x), y) + w\,\mathrm{CE}(f(x'), y)

The adversarial inputs x' are those of the learner that is followed, found against its weights a
moment ago; searching for them is nine tenths of an update, and is paid once. Against the learner
itself they are a transfer attack, weaker than its own would be, the further apart the two are.
"""

__all__ = ["Following"]

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.errors import UserError
from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.labels import Labels, check_smoothing
from equipoise.objectives.robust import exact


class Following(Objective):
    """A weighted mean of the cross-entropy on clean inputs and on another learner's adversarial.

    Arguments:
        weight: w, the weight of the adversarial one, in [0, 1).
        label_smoothing: The part of a label that is spread evenly over all classes.
    """

    def __init__(self, *, weight: float = 0.1, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= weight < 1:
            raise UserError(f"weight must lie in [0, 1), got {weight}")
        check_smoothing(label_smoothing)
        self.weight = weight
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss; clean and adversarial inputs pass forward as one batch."""
        del draws
        labels = Labels(batch.y, smoothing=self.label_smoothing)
        if self.weight == 0:
            yield labels.cross_entropy(exact(model(batch.x))).mean()
            return
        assert batch.adversarial is not None, "nobody was followed"
        both = exact(model(torch.cat((batch.x, batch.adversarial))))
        clean, robust = (labels.cross_entropy(z).mean() for z in both.chunk(2))
        yield (1 - self.weight) * clean + self.weight * robust

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the clean inputs: most of what it is trained on, and all it has by itself."""
        del model, draws
        return batch.x

    @property
    def cost(self) -> int:
        """Return the passes of the loss: the search is another's."""
        return 2 if self.weight else 1

    def formula(self) -> list[str]:
        """Return the loss, and whose x' it is trained on."""
        w = self.weight
        smooth = [f"labels: {1 - self.label_smoothing:g} of y, the rest spread evenly"]
        lines = [f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(x'), y)"]
        if w:
            lines.append("x' = what the learner that it follows has found for itself")
            lines.append("x and x' pass forward as one batch")
        return lines + (smooth if self.label_smoothing else [])
