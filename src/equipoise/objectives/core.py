"""Objectives: the loss of a learner with its settings, and those of its SGD."""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from equipoise.attacks.core import refuse
from equipoise.draws import Draws, GeneratorDraws
from equipoise.errors import NotNegative, UserError, out_of_range
from equipoise.execution.policy import Execution
from equipoise.stopwatch import Stopwatch
from equipoise.threat import Threat


@dataclass(frozen=True)
class Knots:
    r"""A piecewise linear function of progress in [0, 1].

    The paper's :math:`\gamma = (1, 1, 1, 0.4)` are knots at 0, 1/3, 2/3 and 1, as the Generalist
    code interpolates them.

    Example:
        >>> Knots((1.0, 1.0, 1.0, 0.4))(5 / 6)
        0.7

    Arguments:
        values: The values at the knots; one value is a constant.
        at: Where the knots are, from 0 to 1; evenly spread by default.
        curve: How it goes from one knot to the next: on a straight line (``linear``), or on half a
            wave of a cosine.
    """

    values: tuple[float, ...]
    at: tuple[float, ...] | None = None
    curve: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        if not self.values:
            raise UserError("a schedule needs at least one value")
        places = self.places
        if not all(math.isfinite(value) for value in self.values):
            raise UserError(f"the values of a schedule must be finite, got {self.values}")
        if not all(0 <= place <= 1 for place in places):
            raise UserError(f"the places of a schedule must lie in [0, 1], got {self.at}")
        if len(places) != len(self.values) or list(places) != sorted(places):
            raise UserError(f"a schedule needs a rising place per value, got {self.at}")

    @property
    def places(self) -> Sequence[float]:
        """Return where the knots are."""
        if self.at is not None:
            return self.at
        last = max(len(self.values) - 1, 1)
        return [i / last for i in range(len(self.values))]

    def __call__(self, progress: float) -> float:
        """Return the value at a progress, the nearest end's outside of [0, 1]."""
        places = self.places
        right = bisect_right(places, progress)
        if right in (0, len(places)):
            return self.values[max(right - 1, 0)]
        start, end = places[right - 1], places[right]
        part = (progress - start) / (end - start)
        if self.curve == "cosine":
            part = (1 - math.cos(math.pi * part)) / 2
        return (1 - part) * self.values[right - 1] + part * self.values[right]


Loss = Callable[[], Tensor]
"""The loss on a batch, a scalar, at the current weights; it may be called twice."""


class Batch(NamedTuple):
    """One batch of training images.

    Arguments:
        x: The inputs in [0, 1], with shape (B, C, H, W).
        y: The labels, with shape (B,).
        index: The position of each example in the training set, with shape (B,).
        progress: The part of the training that is done, in [0, 1).
        adversarial: For a learner that follows another learner: the adversarial inputs on which
            that learner has just trained, with the shape of ``x``; else None.
        weight: The weight of each example in the loss, with shape (B,); None: all have the same.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which is not used
    progress: float
    adversarial: Tensor | None = None
    weight: Tensor | None = None

    def take(self, index: Tensor | slice) -> "Batch":
        """Return the examples at some positions."""
        return Batch(
            self.x[index],
            self.y[index],
            self.index[index],
            self.progress,
            None if self.adversarial is None else self.adversarial[index],
            None if self.weight is None else self.weight[index],
        )


class State(nn.Module):
    """The state of an objective in a training, apart from its settings.

    An objective keeps soft labels or a predictor's head here, as buffers and parameters:
    ``state_dict()`` saves them, and parameters are trained.

    Arguments:
        threat: The threat of the adversarial inputs; None if there are none.
    """

    def __init__(self, threat: Threat | None) -> None:
        super().__init__()
        self.threat = threat
        self.reach = 1.0  # the part of the radius that attacks have in an update: see eps_ramp
        self.level = 0  # how often the attack was made stronger
        self.execution = Execution(precision="float32")  # the form in which attacks search
        self.stopwatch = Stopwatch()  # counts the part "attack"
        self.adversarial: Tensor | None = None  # the adversarial inputs of the last update
        self.spent = 0  # the gradient evaluations of the last search, where they vary
        self.climbed = False  # whether weights were perturbed in the last update

    def get_extra_state(self) -> dict[str, Any]:
        """Return how often the attack was made stronger."""
        return {"level": torch.tensor(self.level)}

    def set_extra_state(self, state: Any) -> None:
        """Restore a saved state."""
        self.level = int(state["level"])


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A loss with its attack, its settings, and the optimiser of its learner.

    The fields of a subclass are the settings that a recipe may give; the first line of its
    docstring says what it is. :meth:`bind` makes an objective ready for a training.

    Arguments:
        lr: The largest learning rate. The default is that of new weights and ``sgd``; with
            ``adamw`` it is 0.001, and from given weights 0.01 (``sgd``) or 0.0001 (``adamw``).
        lr_factors: The factors on it at the places ``lr_at``.
        lr_at: The places, as progress from 0 to 1; None spreads them evenly.
        lr_curve: How the rate goes from one place to the next: on a straight line (``linear``), or
            on half a wave of a ``cosine``. ``schedule=cosine`` is short for a cosine through the
            factors (0.1, 1, 0) at (0, 0.1, 1), ``schedule=piecewise`` for the default.
        optimizer: The optimiser, of torch: ``sgd`` or ``adamw``.
        momentum: The momentum; for AdamW its first beta.
        nesterov: Whether the momentum of SGD looks ahead.
        weight_decay: The factor of the L2 penalty; for AdamW, whose decay is apart from the
            gradient, the default is 0.01.
        label_smoothing: The part of a label that is spread evenly over all classes.
        objective: The objective's name in recipes.
    """

    monitor: ClassVar[Literal["clean_loss", "robust_loss"]] = "clean_loss"
    """The validation loss from which the rule for t' decides about a learner."""

    follows: ClassVar[str | None] = None
    """The learner whose batches and adversarial inputs it uses; None: it has its own."""

    divisible: ClassVar[bool] = True
    """Whether a part of the weights may be updated, and parts of a batch one after the other."""

    lr: Annotated[float, "(0, inf)"] = 0.05
    lr_factors: Annotated[tuple[float, ...], "[0, inf)"] = (0.1, 1.0, 0.1, 0.005)
    lr_at: tuple[float, ...] | None = (0.0, 0.1, 0.667, 1.0)
    lr_curve: Literal["linear", "cosine"] = "linear"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, "[0, 1)"] = 0.9
    nesterov: bool = True
    weight_decay: NotNegative = 5e-4
    label_smoothing: Annotated[float, "[0, 1)"] = 0.0
    objective: str = ""

    def __post_init__(self) -> None:
        refuse([*out_of_range(self), *self.problems()])
        self.schedule  # noqa: B018  # raises an error for places that do not fit

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each.

        Numbers outside the interval of their type are checked elsewhere.
        """
        return []

    @property
    def schedule(self) -> Knots:
        """Return the factor on the learning rate over the progress of the training."""
        return scheduled("lr", self.lr_factors, self.lr_at, self.lr_curve)

    @property
    def step_size(self) -> float:
        """Return the largest learning rate that is used."""
        return self.lr

    def bind(self, threat: Threat) -> Self:
        """Return the same objective with a new state, for a training.

        Arguments:
            threat: The threat of the training.

        Raises:
            UserError: If the objective is not defined for the threat.
        """
        bound = copy(self)
        object.__setattr__(bound, "_state", State(self.against(threat)))
        return bound

    def against(self, threat: Threat) -> Threat | None:
        """Return the learner's threat if the training's is ``threat``; None: it has none.

        Raises:
            UserError: If the objective is not defined for it.
        """
        del threat
        return None

    @property
    def state(self) -> State:
        """Return the state of the training; only a bound objective has one."""
        state = vars(self).get("_state")
        assert isinstance(state, State), "bind the objective to a threat first"
        return state

    @property
    def level(self) -> int:
        """Return how often the attack was made stronger; 0 before a training."""
        state = vars(self).get("_state")
        return state.level if isinstance(state, State) else 0

    @property
    def undivided(self) -> str:
        """Return why a batch cannot be divided between processes; empty: it can."""
        return "" if self.divisible else f"{self.objective} trains with the passes that search"

    @property
    def varies(self) -> bool:
        """Return whether an update may take fewer passes than its cost."""
        return False

    def prepare(self, y: Tensor, classes: int) -> None:
        """Make the state that depends on the training set; called once, before the training.

        Arguments:
            y: The labels of the training set, with shape (N,).
            classes: The number of classes K.
        """
        del y, classes

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the losses whose gradients are summed in one update; the first is reported."""

    @property
    def several(self) -> bool:
        """Whether an update has several losses, or one at other weights than the present ones."""
        return False

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        progress: float = 0.0,
        index: Tensor | None = None,
    ) -> Tensor:
        """Return the loss on a batch, for a training loop of your own: ``backward()`` follows.

        Random numbers come from torch's generator of the inputs' device.

        Arguments:
            model: The model, from inputs to logits; it is put into training mode.
            x: The inputs in [0, 1], with shape (B, C, H, W).
            y: The labels, with shape (B,).
            progress: The part of the training that is done, in [0, 1).
            index: The positions of the examples in the training set, with shape (B,); only ``sat``
                needs them, and :meth:`prepare` before.

        Raises:
            UserError: If the objective is not bound to a threat, or has several losses an update.
        """
        if "_state" not in vars(self):
            raise UserError(f"bind {self.objective} to a threat first: .bind(eq.Linf(8 / 255))")
        if self.several:
            raise UserError(
                f"an update of {self.objective} with these settings has several losses: for loss "
                "in objective.losses(model, batch, draws): loss.backward()"
            )
        model.train()
        index = torch.arange(len(y), device=y.device) if index is None else index
        batch = Batch(x, y, index, progress)
        (loss,) = self.losses(model, batch, GeneratorDraws(_generator(x.device)))
        return loss

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the inputs of the loss: ``batch.x``, or the results of the inner attack."""
        return self.attacked(model, batch, draws)

    def attacked(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the results of the inner attack; ``batch.x`` without an attack."""
        del model, draws
        return batch.x

    @property
    def cost(self) -> int:
        """Return the forward and backward passes of one update, per image, at most."""
        return 1

    def evaluations(self, n: int) -> Tensor | int:
        """Return the gradient evaluations of the last update, which had ``n`` examples."""
        return self.cost * n

    @abstractmethod
    def formula(self) -> list[str]:
        """Return the loss with the settings resolved, a line for each term."""

    def weak(self, progress: float) -> bool:
        """Return whether the inner attack is so weak that a model may overfit to it."""
        del progress
        return False

    def strengthen(self) -> str:
        """Make a weak inner attack stronger from now on; return a description of the change.

        Called only for objectives that are :meth:`weak`.
        """
        self.state.level += 1
        return f"the inner attack is at level {self.level} from here on"


def scheduled(
    name: str,
    factors: tuple[float, ...],
    at: tuple[float, ...] | None,
    curve: Literal["linear", "cosine"] = "linear",
) -> Knots:
    """Return the factors on a setting at the places of its recipe, or raise a UserError."""
    try:
        return Knots(factors, at, curve)
    except UserError as error:
        raise UserError(
            f"{name}_at must name a rising place in [0, 1] for each of the {len(factors)} "
            f"{name}_factors ({error}); {name}_at=none spreads them evenly"
        ) from None


def smoothing_line(part: float) -> list[str]:
    """Return the line of a formula for smoothed labels; none without smoothing."""
    return [f"labels: {1 - part:g} of y, the rest spread evenly"] if part else []


def _generator(device: torch.device) -> torch.Generator:
    """Return torch's own generator of a device."""
    if device.type == "cuda":
        place = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[place]
    return torch.default_generator
