"""What one learner minimises."""

__all__ = ["Batch", "Objective"]

from abc import abstractmethod
from collections.abc import Iterator
from typing import Literal, NamedTuple

from torch import Tensor, nn

from equipoise.draws import Draws


class Batch(NamedTuple):
    """One batch of training images.

    Arguments:
        x: The inputs in [0, 1], with shape (B, C, H, W).
        y: The labels, with shape (B,).
        index: The position of each example in the training set, with shape (B,).
        progress: The part of the training that is done, in [0, 1).
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    progress: float


class Objective(nn.Module):
    """A loss with all that belongs to it: its attack, its settings, its state.

    State (soft labels, a predictor's head) is kept in buffers and parameters, so that
    ``state_dict()`` saves it.
    """

    monitor: Literal["clean_loss", "robust_loss"] = "clean_loss"
    """The held-out loss that tells whether a learner of this objective has stabilised."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the losses whose gradients are summed in one update; the first is reported."""

    @abstractmethod
    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the inputs that the model is trained on: ``batch.x``, or what an attack finds."""

    @property
    @abstractmethod
    def cost(self) -> int:
        """Return the forward and backward passes that one update takes."""
