"""What one learner minimises."""

__all__ = ["Batch", "Objective"]

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.execution import Execution
from equipoise.stopwatch import Stopwatch
from equipoise.threat import Threat


class Batch(NamedTuple):
    """One batch of training images.

    Arguments:
        x: The inputs in [0, 1], with shape (B, C, H, W).
        y: The labels, with shape (B,).
        index: The position of each example in the training set, with shape (B,).
        progress: The part of the training that is done, in [0, 1).
        adversarial: For a learner that follows another: the adversarial inputs on which that one
            has just trained, with the shape of ``x``; else None.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    progress: float
    adversarial: Tensor | None = None


class Objective(nn.Module):
    """A loss with all that belongs to it: its attack, its settings, its state.

    State (soft labels, a predictor's head) is kept in buffers and parameters, so that
    ``state_dict()`` saves it.
    """

    monitor: Literal["clean_loss", "robust_loss"] = "clean_loss"
    """The held-out loss that tells whether a learner of this objective has stabilised."""

    threat: Threat | None = None
    """What the adversarial inputs may be; None where there are none."""

    found: Tensor | None = None
    """The adversarial inputs of the last update, where a search of its own found them."""

    summed: int = 1
    """The passes whose gradients are summed in an update, by which the recipe's lr is divided."""

    def __init__(self) -> None:
        super().__init__()
        self.level = 0
        self.execution = Execution(precision="float32")
        self.stopwatch = Stopwatch()

    def execute(self, execution: Execution, stopwatch: Stopwatch) -> None:
        """Say in which form models are searched, and what takes the time of the searches.

        Arguments:
            execution: The form; by default float32.
            stopwatch: Counts the part ``"attack"``.
        """
        self.execution = execution
        self.stopwatch = stopwatch

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the losses whose gradients are summed in one update; the first is reported."""

    @abstractmethod
    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the inputs that the model is trained on: ``batch.x``, or what an attack finds."""

    def attacked(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return what the inner attack finds for every example; ``batch.x`` without an attack."""
        del model, draws
        return batch.x

    @property
    @abstractmethod
    def cost(self) -> int:
        """Return the forward and backward passes that one update takes, an image, at most."""

    @abstractmethod
    def formula(self) -> list[str]:
        """Return what is minimised, with the settings resolved: a line a term."""

    def prepare(self, y: Tensor, classes: int) -> None:
        """Make the state that depends on the training set; called once, before the training.

        Arguments:
            y: The labels of the training set, with shape (N,).
            classes: The number of classes K.
        """
        del y, classes

    def evaluations(self, n: int) -> Tensor | int:
        """Return the gradient evaluations of the last update, which had ``n`` examples."""
        return self.cost * n

    def weak(self, progress: float) -> bool:
        """Tell whether the inner attack is so weak that a model may learn to fool it alone."""
        del progress
        return False

    def strengthen(self) -> str:
        """Make a weak inner attack stronger from here on; return in words how.

        Asked of objectives alone that say of themselves that they are :meth:`weak`.
        """
        assert self.threat is not None, "there is no attack"
        self.level += 1
        return f"the inner attack is at level {self.level} from here on"

    def get_extra_state(self) -> dict[str, Any]:
        """Return how often the attack was made stronger."""
        return {"level": torch.tensor(self.level)}

    def set_extra_state(self, state: Any) -> None:
        """Go on from a saved state."""
        self.level = int(state["level"])
