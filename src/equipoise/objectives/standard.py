r"""Standard training: :math:`\min_\theta \mathrm{CE}(f(x), y)` (the paper's Eq. 5)."""

__all__ = ["Standard"]

from collections.abc import Iterator

from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.labels import Labels, check_smoothing


class Standard(Objective):
    """The mean cross-entropy on clean inputs.

    Arguments:
        label_smoothing: The part of a label that is spread evenly over all classes.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_smoothing(label_smoothing)
        self.label_smoothing = label_smoothing

    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss."""
        del draws
        labels = Labels(batch.y, smoothing=self.label_smoothing)
        yield labels.cross_entropy(model(batch.x)).mean()

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the clean inputs."""
        del model, draws
        return batch.x

    @property
    def cost(self) -> int:
        """Return 1."""
        return 1

    def formula(self) -> list[str]:
        """Return the loss."""
        lines = ["mean over the batch of CE(f(x), y)"]
        if self.label_smoothing:
            lines.append(f"y keeps {1 - self.label_smoothing:g}, the rest is spread evenly")
        return lines
