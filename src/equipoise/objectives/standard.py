r"""Standard training: :math:`\min_\theta \mathrm{CE}(f(x), y)` (the paper's Eq. 5)."""

__all__ = ["Standard"]

from collections.abc import Iterator

from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.losses import cross_entropy
from equipoise.objectives.core import Batch, Objective


class Standard(Objective):
    """The mean cross-entropy on clean inputs."""

    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss."""
        del draws
        yield cross_entropy(model(batch.x), batch.y).mean()

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the clean inputs."""
        del model, draws
        return batch.x

    @property
    def cost(self) -> int:
        """Return 1."""
        return 1
