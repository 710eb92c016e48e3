r"""Standard training: :math:`\min_\theta \mathrm{CE}(f(x), y)` (the paper's Eq. 5)."""

__all__ = ["Standard"]

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Standard(Objective):
    """Standard training on clean images: the undefended model."""

    objective: str = "standard"

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the mean cross-entropy on clean inputs."""
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
