r"""Standard training: :math:`\min_\theta \mathrm{CE}(f(x), y)` (the paper's Eq. 5)."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch, Objective, smoothing_line
from equipoise.objectives.labels import Labels


@dataclass(frozen=True, kw_only=True)
class Standard(Objective):
    """Standard training on clean images: the undefended model."""

    objective: str = "standard"

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the mean cross-entropy on clean inputs."""
        del draws
        labels = Labels(batch.y, smoothing=self.label_smoothing, weight=batch.weight)
        yield labels.mean(labels.cross_entropy(model(batch.x)))

    def formula(self) -> list[str]:
        """Return the loss."""
        return ["mean over the batch of CE(f(x), y)", *smoothing_line(self.label_smoothing)]
