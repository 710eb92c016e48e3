r"""The methods by name: each is a frozen dataclass of settings that builds a :class:`Method`.

The settings are the schema of recipes: their names, types and defaults are what a recipe or
``key=value`` on the command line may say. ``docs/decisions.md`` records how the gaps of the
papers are read; every reading is a setting here.
"""

__all__ = [
    "A3GT",
    "METHODS",
    "PGDAT",
    "A3GTPaper",
    "Generalist",
    "Learning",
    "Settings",
    "Standard",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from equipoise import objectives
from equipoise.attacks.pgd import PGD
from equipoise.errors import UserError
from equipoise.threat import Threat
from equipoise.training.merge import Handover, Merge, Weights
from equipoise.training.method import LearnerSpec, Method, check_factors, check_sgd
from equipoise.training.schedule import Knots
from equipoise.training.start import Fixed, Never, Stable, Threshold

AnyStart = Stable | Threshold | Fixed | Never
Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How one learner learns: SGD with a learning rate that follows straight lines.

    Arguments:
        lr: The largest learning rate.
        lr_factors: The factors on it at the places ``lr_at``.
        lr_at: The places, as progress from 0 to 1; None spreads them evenly.
        momentum: The momentum.
        nesterov: Whether the momentum looks ahead.
        weight_decay: The factor of the L2 penalty.
    """

    lr: float = 0.05
    lr_factors: tuple[float, ...] = (0.1, 1.0, 0.1, 0.005)
    lr_at: tuple[float, ...] | None = (0.0, 0.1, 0.667, 1.0)
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        check_sgd(self.lr, self.momentum, self.weight_decay)
        check_factors(Knots(self.lr_factors, self.lr_at))

    def spec(self, objective: objectives.Objective) -> LearnerSpec:
        """Return the learner of an objective."""
        return LearnerSpec(
            objective=objective,
            lr=self.lr,
            schedule=Knots(self.lr_factors, self.lr_at),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )


def inner_attack() -> PGD:
    """Return the attack of adversarial training: PGD-10, of which the last iterate counts."""
    return PGD(steps=10, keep="last")


class Settings(Protocol):
    """The settings of a method."""

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method against a threat, for a training of so many rounds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Standard:
    """Standard training on clean images: the undefended model.

    Arguments:
        clean: How it learns.
        alpha: The memory of the weight average, per step; 0 is none.
    """

    clean: Learning = field(default_factory=Learning)
    alpha: float = 0.0

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        del threat, rounds
        weights = Weights(knots={"clean": Knots((1.0,))})
        learners = {"clean": self.clean.spec(objectives.Standard())}
        return Method(learners=learners, merge=Merge(weights=weights, alpha=self.alpha))


@dataclass(frozen=True, kw_only=True)
class PGDAT:
    """Adversarial training with PGD (Madry et al., 2018), with or without weight averaging.

    Arguments:
        robust: How it learns.
        attack: The inner attack.
        alpha: The memory of the weight average, per step; 0 is none.
        precision: The arithmetic of the inner attack's search.
    """

    robust: Learning = field(default_factory=Learning)
    attack: PGD = field(default_factory=inner_attack)
    alpha: float = 0.0
    precision: Precision = "float32"

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        del rounds
        objective = objectives.Adversarial(
            threat=threat, attack=self.attack, precision=self.precision
        )
        weights = Weights(knots={"robust": Knots((1.0,))})
        learners = {"robust": self.robust.spec(objective)}
        return Method(learners=learners, merge=Merge(weights=weights, alpha=self.alpha))


@dataclass(frozen=True, kw_only=True)
class A3GT:
    """A clean and a robust learner, merged from the round on at which both have stabilised.

    The default, in our reading: a scale-free test of the held-out losses finds t', with a
    deadline, and gamma is anchored at t' so that the first merge follows the robust learner
    alone.

    Arguments:
        clean: How the clean learner learns.
        robust: How the robust learner learns.
        attack: The inner attack of the robust learner.
        gamma: The robust learner's weight at evenly spread places; the clean one has the rest.
        anchor: Whether gamma runs from t' on (``start``) or from the first round (``clock``).
        alpha: The memory of the global model, alpha', per step.
        warmup: Whether that memory grows in over the first steps.
        source: Whether the learners' ``weights`` are merged or their running ``average``.
        every: The rounds between two hand-overs, c.
        count: Whether t mod c counts ``rounds`` or those ``since-start``.
        inclusive: Whether there is a hand-over at t' itself.
        granularity: Hand over at the end of a ``round`` or after every ``step`` of it.
        momentum: Whether the optimisers ``keep`` their momentum at a hand-over or ``zero`` it.
        batchnorm: ``average`` the statistics, or ``estimate`` them on a mix.
        start: The rule for t'.
        precision: The arithmetic of the inner attack's search.
    """

    clean: Learning = field(default_factory=Learning)
    robust: Learning = field(default_factory=Learning)
    attack: PGD = field(default_factory=inner_attack)
    gamma: tuple[float, ...] = (1.0, 1.0, 1.0, 0.4)
    anchor: Literal["start", "clock"] = "start"
    alpha: float = 0.999
    warmup: bool = True
    source: Literal["weights", "average"] = "weights"
    every: int | None = 5
    count: Literal["rounds", "since-start"] = "since-start"
    inclusive: bool = True
    granularity: Literal["round", "step"] = "round"
    momentum: Literal["keep", "zero"] = "keep"
    batchnorm: Literal["average", "estimate"] = "average"
    start: AnyStart = field(default_factory=Stable)
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if not self.gamma or not all(0 <= value <= 1 for value in self.gamma):
            raise UserError(f"gamma must lie in [0, 1] everywhere, got {list(self.gamma)}")

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        if isinstance(self.start, Fixed) and (self.start.round or 0) > rounds:
            raise UserError(f"start.round={self.start.round} lies behind the last round, {rounds}")
        robust = objectives.Adversarial(
            threat=threat, attack=self.attack, precision=self.precision
        )
        learners = {
            "clean": self.clean.spec(objectives.Standard()),
            "robust": self.robust.spec(robust),
        }
        return Method(learners=learners, merge=self._merge())

    def _merge(self) -> Merge:
        knots: Mapping[str, Knots] = {
            "clean": Knots(tuple(1 - value for value in self.gamma)),
            "robust": Knots(tuple(self.gamma)),
        }
        return Merge(
            weights=Weights(knots=knots, anchor=self.anchor),
            alpha=self.alpha,
            warmup=self.warmup,
            source=self.source,
            start=self.start,
            batchnorm=self.batchnorm,
            handover=Handover(
                every=self.every,
                count=self.count,
                inclusive=self.inclusive,
                granularity=self.granularity,
                momentum=self.momentum,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class A3GTPaper(A3GT):
    """A3GT with Eq. 4, 7 and 8 of the paper read literally.

    One loss threshold l_h for both learners, for t_num rounds in a row; hand-over in rounds
    t > t' with t mod c = 0; gamma runs from the first round on. It may never synchronise: then
    it says so. The arguments are those of :class:`A3GT`.
    """

    anchor: Literal["start", "clock"] = "clock"
    count: Literal["rounds", "since-start"] = "rounds"
    inclusive: bool = False
    start: AnyStart = field(default_factory=Threshold)


@dataclass(frozen=True, kw_only=True)
class Generalist(A3GT):
    """Generalist (Wang and Wang, 2023): the same merge from a fixed round on.

    As its code has it: t' = 0.625 E, running averages are merged, and in rounds t >= t' with
    t mod c = 0 the weights are handed over after every step. The arguments are those of
    :class:`A3GT`.
    """

    anchor: Literal["start", "clock"] = "clock"
    source: Literal["weights", "average"] = "average"
    count: Literal["rounds", "since-start"] = "rounds"
    granularity: Literal["round", "step"] = "step"
    start: AnyStart = field(default_factory=Fixed)


METHODS: dict[str, type[Settings]] = {
    "standard": Standard,
    "pgd-at": PGDAT,
    "generalist": Generalist,
    "a3gt-paper": A3GTPaper,
    "a3gt": A3GT,
}
