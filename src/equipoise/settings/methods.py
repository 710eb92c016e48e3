r"""The methods by name: each is a frozen dataclass of settings that builds a :class:`Method`.

The settings are the schema of recipes: their names, types and defaults are what a recipe or
``key=value`` on the command line may say. ``docs/decisions.md`` records how the gaps of the
papers are read; every reading is a setting here.
"""

__all__ = [
    "A3GT",
    "FAT",
    "FATMART",
    "FATTRADES",
    "IAT",
    "MART",
    "METHODS",
    "PGDAT",
    "TRADES",
    "YOPO",
    "A3GTPaper",
    "Generalist",
    "MixAT",
    "SelfAdaptive",
    "Settings",
    "Standard",
]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

from equipoise.errors import UserError
from equipoise.settings import learning
from equipoise.settings.branching import A3GTFront
from equipoise.settings.learning import Learning
from equipoise.threat import Threat
from equipoise.training.merge import Handover, Merge, Weights
from equipoise.training.method import Method, named
from equipoise.training.schedule import Knots
from equipoise.training.start import Fixed, Never, Stable, Threshold

AnyStart = Stable | Threshold | Fixed | Never


class Settings(Protocol):
    """The settings of a method."""

    paper: ClassVar[str]
    shown: ClassVar[tuple[str, ...]]

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method against a threat, for a training of so many rounds."""
        ...


@dataclass(frozen=True, kw_only=True)
class Averaged:
    """One learner, with or without an average of its weights.

    Arguments:
        alpha: The memory of the weight average, per step; 0 is none.
        warmup: Whether that memory grows in over the first steps.
    """

    alpha: float = 0.0
    warmup: bool = True

    def alone(self, name: str, how: Learning, threat: Threat) -> Method:
        """Return the method of a single learner."""
        merge = Merge(
            weights=Weights(knots={name: Knots((1.0,))}), alpha=self.alpha, warmup=self.warmup
        )
        return Method(learners={name: named(name, how, threat)}, merge=merge)


@dataclass(frozen=True, kw_only=True)
class Standard(Averaged):
    """Standard training on clean images: the undefended model.

    Arguments:
        clean: How it learns.
    """

    paper: ClassVar[str] = ""
    shown: ClassVar[tuple[str, ...]] = ()
    clean: learning.Clean = field(default_factory=learning.Clean)

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        del rounds
        return self.alone("clean", self.clean, threat)


@dataclass(frozen=True, kw_only=True)
class Defended(Averaged):
    """One robust learner.

    Arguments:
        robust: How it learns.
    """

    robust: learning.Robust

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        del rounds
        return self.alone("robust", self.robust, threat)


@dataclass(frozen=True, kw_only=True)
class PGDAT(Defended):
    """Adversarial training with PGD; alpha averages its weights."""

    paper: ClassVar[str] = "Madry et al., 2018, arXiv:1706.06083"
    shown: ClassVar[tuple[str, ...]] = ("robust.attack.steps",)
    robust: learning.PGDAT = field(default_factory=learning.PGDAT)


@dataclass(frozen=True, kw_only=True)
class MixAT(Defended):
    """Clean and adversarial cross-entropy, weighted and averaged: the control of a trade-off."""

    paper: ClassVar[str] = "Goodfellow et al., 2015, arXiv:1412.6572"
    shown: ClassVar[tuple[str, ...]] = ("robust.weight", "alpha")
    robust: learning.MixAT = field(default_factory=learning.MixAT)
    alpha: float = 0.999


@dataclass(frozen=True, kw_only=True)
class TRADES(Defended):
    """TRADES: clean cross-entropy and the divergence of the adversarial answer."""

    paper: ClassVar[str] = "Zhang et al., 2019, arXiv:1901.08573"
    shown: ClassVar[tuple[str, ...]] = ("robust.beta",)
    robust: learning.TRADES = field(default_factory=learning.TRADES)


@dataclass(frozen=True, kw_only=True)
class MART(Defended):
    """MART: misclassified examples count more."""

    paper: ClassVar[str] = "Wang et al., 2020, openreview rklOg6EFwS"
    shown: ClassVar[tuple[str, ...]] = ("robust.beta",)
    robust: learning.MART = field(default_factory=learning.MART)


@dataclass(frozen=True, kw_only=True)
class FAT(Defended):
    """Friendly adversarial training: the search ends soon after success."""

    paper: ClassVar[str] = "Zhang et al., 2020, arXiv:2002.11242"
    shown: ClassVar[tuple[str, ...]] = ("robust.tau", "robust.omega")
    robust: learning.FAT = field(default_factory=learning.FAT)


@dataclass(frozen=True, kw_only=True)
class FATTRADES(Defended):
    """Friendly adversarial training for TRADES."""

    paper: ClassVar[str] = "Zhang et al., 2020, arXiv:2002.11242"
    shown: ClassVar[tuple[str, ...]] = ("robust.tau", "robust.beta")
    robust: learning.FATTRADES = field(default_factory=learning.FATTRADES)


@dataclass(frozen=True, kw_only=True)
class FATMART(Defended):
    """Friendly adversarial training for MART."""

    paper: ClassVar[str] = "Zhang et al., 2020, arXiv:2002.11242"
    shown: ClassVar[tuple[str, ...]] = ("robust.tau", "robust.beta")
    robust: learning.FATMART = field(default_factory=learning.FATMART)


@dataclass(frozen=True, kw_only=True)
class IAT(Defended):
    """Interpolated adversarial training: mixup of clean and of adversarial images."""

    paper: ClassVar[str] = "Lamb et al., 2019, arXiv:1906.06784"
    shown: ClassVar[tuple[str, ...]] = ("robust.mixup", "robust.attack.steps")
    robust: learning.IAT = field(default_factory=learning.IAT)


@dataclass(frozen=True, kw_only=True)
class YOPO(Defended):
    """YOPO-m-n: m full passes an update, each with n steps through the first layer."""

    paper: ClassVar[str] = "Zhang et al., 2019, arXiv:1905.00877"
    shown: ClassVar[tuple[str, ...]] = ("robust.replays", "robust.attack.steps")
    robust: learning.YOPO = field(default_factory=learning.YOPO)


@dataclass(frozen=True, kw_only=True)
class SelfAdaptive(Defended):
    """Self-adaptive training: TRADES whose labels learn from the model."""

    paper: ClassVar[str] = "Huang et al., 2020, arXiv:2002.10319"
    shown: ClassVar[tuple[str, ...]] = ("robust.onset", "robust.memory", "robust.beta")
    robust: learning.SelfAdaptive = field(default_factory=learning.SelfAdaptive)


@dataclass(frozen=True, kw_only=True)
class A3GT:
    """A clean and a robust learner, merged from the round on at which both have stabilised.

    The default, in our reading: a scale-free test of the held-out losses finds t', with a
    deadline, and gamma is anchored at t' so that the first merge follows the robust learner
    alone.

    Arguments:
        clean: How the clean learner learns.
        robust: How the robust learner learns; any objective will do (``robust.objective``).
        more: Further robust learners by name, each with an objective and, where it differs, a
            threat of its own: ``more.l2.norm=l2 more.l2.eps=1.5``.
        gamma: The robust learner's weight at evenly spread places.
        more_gamma: The weights of the further learners, likewise. The clean learner has what
            is left of one.
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
    """

    paper: ClassVar[str] = "He et al., 2024, doi:10.3390/electronics13204052"
    shown: ClassVar[tuple[str, ...]] = ("robust.objective", "gamma", "every", "start.rule")
    clean: learning.Clean = field(default_factory=learning.Clean)
    robust: learning.Robust = field(default_factory=learning.PGDAT)
    more: Mapping[str, learning.Robust] = field(default_factory=dict)
    gamma: tuple[float, ...] = (1.0, 1.0, 1.0, 0.4)
    more_gamma: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
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

    def __post_init__(self) -> None:
        for name, values in (("gamma", self.gamma), *self.more_gamma.items()):
            if not values or not all(0 <= value <= 1 for value in values):
                raise UserError(f"{name} must lie in [0, 1] everywhere, got {list(values)}")
        if set(self.more) & {"clean", "robust", "global"}:
            raise UserError("a further learner needs a name other than clean, robust and global")
        if set(self.more) != set(self.more_gamma):
            one = next(iter(self.more), "l2")
            raise UserError(
                f"more_gamma must name a weight for each of {sorted(self.more)}, got "
                f"{sorted(self.more_gamma)}; for instance gamma=[1, 0.4] "
                f"more_gamma.{one}=[0, 0.3], the clean learner has the rest"
            )

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        if isinstance(self.start, Fixed) and (self.start.round or 0) > rounds:
            raise UserError(f"start.round={self.start.round} lies behind the last round, {rounds}")
        how: dict[str, Learning] = {"clean": self.clean, "robust": self.robust, **self.more}
        learners = {name: named(name, learner, threat) for name, learner in how.items()}
        return Method(learners=learners, merge=self._merge())

    def _knots(self) -> dict[str, Knots]:
        """Return the weights of all learners; the clean one has what the others leave."""
        given = {"robust": Knots(tuple(self.gamma))}
        given |= {name: Knots(tuple(values)) for name, values in self.more_gamma.items()}
        places = sorted({place for knots in given.values() for place in knots.places})
        left = tuple(1 - sum(knots(place) for knots in given.values()) for place in places)
        if min(left) < -1e-9:
            raise UserError(
                "gamma and more_gamma may sum to at most 1 everywhere; the clean learner, which "
                f"has the rest, would have {min(left):.3g}: set gamma, too, like gamma=[1, 0.4]"
            )
        clean = Knots(tuple(max(value, 0.0) for value in left), tuple(places))
        return {"clean": clean, **given}

    def _merge(self) -> Merge:
        return Merge(
            weights=Weights(knots=self._knots(), anchor=self.anchor),
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
    """Generalist: the same merge from a fixed round on.

    As its code has it: t' = 0.625 E, running averages are merged, and in rounds t >= t' with
    t mod c = 0 the weights are handed over after every step. The arguments are those of
    :class:`A3GT`.
    """

    paper: ClassVar[str] = "Wang and Wang, 2023, arXiv:2303.13813"
    anchor: Literal["start", "clock"] = "clock"
    source: Literal["weights", "average"] = "average"
    count: Literal["rounds", "since-start"] = "rounds"
    granularity: Literal["round", "step"] = "step"
    start: AnyStart = field(default_factory=Fixed)


METHODS: dict[str, type[Settings]] = {
    "standard": Standard,
    "pgd-at": PGDAT,
    "mix-at": MixAT,
    "trades": TRADES,
    "mart": MART,
    "fat": FAT,
    "fat-trades": FATTRADES,
    "fat-mart": FATMART,
    "iat": IAT,
    "yopo": YOPO,
    "sat": SelfAdaptive,
    "generalist": Generalist,
    "a3gt-paper": A3GTPaper,
    "a3gt": A3GT,
    "a3gt-front": A3GTFront,
}
