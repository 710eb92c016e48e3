r"""How one learner learns: its objective by name, the objective's settings, and its SGD.

Each class is the schema of a group of a recipe (``robust.objective=trades robust.beta=6``): its
fields, their types and defaults are what may be said. The field ``objective`` names the class.
"""

__all__ = [
    "FAT",
    "FATMART",
    "FATTRADES",
    "IAT",
    "LEARNERS",
    "MART",
    "PGDAT",
    "TRADES",
    "YOPO",
    "Clean",
    "Friendly",
    "Learning",
    "MixAT",
    "Robust",
    "SelfAdaptive",
    "TwoSided",
    "inner_attack",
]

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, Literal

from equipoise import objectives
from equipoise.attacks.pgd import PGD
from equipoise.errors import UserError
from equipoise.objectives import Objective, Options, Tau
from equipoise.threat import Norm, Threat
from equipoise.training.method import LearnerSpec, check_factors, check_sgd
from equipoise.training.schedule import Knots


@dataclass(frozen=True, kw_only=True)
class Learning:
    """SGD with a learning rate that follows straight lines.

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
        try:
            knots = Knots(self.lr_factors, self.lr_at)
        except UserError as error:
            raise UserError(
                f"lr_at must name a rising place in [0, 1] for each of the "
                f"{len(self.lr_factors)} lr_factors ({error}); lr_at=none spreads them evenly"
            ) from None
        check_factors(knots)

    @abstractmethod
    def made(self, threat: Threat) -> Objective:
        """Return the objective."""

    def spec(self, threat: Threat) -> LearnerSpec:
        """Return the learner against a threat."""
        return LearnerSpec(
            objective=self.made(threat),
            lr=self.step_size,
            schedule=Knots(self.lr_factors, self.lr_at),
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.nesterov,
        )

    @property
    def step_size(self) -> float:
        """Return the largest learning rate that is used."""
        return self.lr


@dataclass(frozen=True, kw_only=True)
class Clean(Learning):
    """A learner of clean images.

    Arguments:
        label_smoothing: The part of a label that is spread evenly over all classes.
    """

    objective: Literal["standard"] = "standard"
    label_smoothing: float = 0.0

    def made(self, threat: Threat) -> Objective:
        """Return the objective."""
        del threat
        return objectives.Standard(label_smoothing=self.label_smoothing)


def inner_attack(*, steps: int = 10, step_factor: float = 2.5) -> PGD:
    """Return the attack of adversarial training: PGD-10, of which the last iterate counts."""
    return PGD(steps=steps, step_factor=step_factor, keep="last")


def beside() -> PGD:
    """Return PGD-10 from a start beside x, as TRADES and MART have it."""
    return PGD(steps=10, start="noise", keep="last")


@dataclass(frozen=True, kw_only=True)
class Robust(Learning):
    """A learner of adversarial images, with what any of them may add.

    Arguments:
        norm: The norm of its own threat; None: the recipe's.
        eps: The radius of its own threat; None: the recipe's.
        attack: The inner attack.
        label_smoothing: The part of a label that is spread evenly over all classes.
        awp: Adversarial weight perturbation: how far, in lengths of the weights; 0: none.
        awp_from: The progress from which on weights are perturbed.
        cutmix: The probability that a part of an image is that of another one.
        erasing: The probability that a part of an image is noise.
    """

    norm: Norm | None = None
    eps: float | None = None
    attack: PGD = field(default_factory=inner_attack)
    label_smoothing: float = 0.0
    awp: float = 0.0
    awp_from: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    @property
    @abstractmethod
    def kind(self) -> type[objectives.Robust]:
        """Return the class of the objective."""

    @property
    def own(self) -> dict[str, Any]:
        """Return the objective's own settings."""
        return {}

    def against(self, threat: Threat) -> Threat:
        """Return the learner's threat, where the recipe's is ``threat``."""
        if self.norm not in (None, threat.norm) and self.eps is None:
            raise UserError(f"norm={self.norm} of a learner needs a radius of its own: eps")
        eps = threat.eps if self.eps is None else self.eps
        return Threat(self.norm or threat.norm, eps, threat.low, threat.high)

    def made(self, threat: Threat) -> Objective:
        """Return the objective."""
        options = Options(
            label_smoothing=self.label_smoothing,
            awp=self.awp,
            awp_from=self.awp_from,
            cutmix=self.cutmix,
            erasing=self.erasing,
        )
        return self.kind(
            threat=self.against(threat),
            attack=self.attack,
            options=options,
            **self.own,
        )


@dataclass(frozen=True, kw_only=True)
class PGDAT(Robust):
    """Adversarial training with PGD."""

    objective: Literal["pgd-at"] = "pgd-at"
    kind = objectives.Adversarial


@dataclass(frozen=True, kw_only=True)
class TwoSided(Robust):
    """A learner of clean and adversarial images.

    Arguments:
        joint: Whether both pass forward as one batch, so that BatchNorm normalises both by the
            same statistics; False: one after the other, as in the authors' codes.
    """

    joint: bool = True

    @property
    def own(self) -> dict[str, Any]:
        """Return how they pass forward."""
        return super().own | {"joint": self.joint}


@dataclass(frozen=True, kw_only=True)
class MixAT(TwoSided):
    """Clean and adversarial cross-entropy, weighted.

    Arguments:
        weight: w, the weight of the adversarial one.
    """

    objective: Literal["mix-at"] = "mix-at"
    weight: float = 0.5
    kind = objectives.Mixed

    @property
    def own(self) -> dict[str, Any]:
        """Return the weight."""
        return super().own | {"weight": self.weight}


@dataclass(frozen=True, kw_only=True)
class TRADES(TwoSided):
    """TRADES.

    Arguments:
        beta: The weight of the divergence.
    """

    objective: Literal["trades"] = "trades"
    beta: float = 6.0
    attack: PGD = field(default_factory=beside)
    kind = objectives.TRADES

    @property
    def own(self) -> dict[str, Any]:
        """Return beta."""
        return super().own | {"beta": self.beta}


@dataclass(frozen=True, kw_only=True)
class MART(TwoSided):
    """MART.

    Arguments:
        beta: The weight of the divergence, lambda in the paper.
    """

    objective: Literal["mart"] = "mart"
    beta: float = 5.0
    attack: PGD = field(default_factory=beside)
    kind = objectives.MART

    @property
    def own(self) -> dict[str, Any]:
        """Return beta."""
        return super().own | {"beta": self.beta}


@dataclass(frozen=True, kw_only=True)
class Friendly(Robust):
    """A learner whose inner attack ends soon after success.

    Arguments:
        tau: The steps that the search may take after the first success, one value or several.
        tau_at: The progress from which on each value holds; None spreads them evenly.
    """

    tau: int | tuple[int, ...] = 0
    tau_at: tuple[float, ...] | None = None

    @property
    def own(self) -> dict[str, Any]:
        """Return the budget, beside what the other settings are."""
        if isinstance(self.tau, int):
            return super().own | {"tau": Tau((self.tau,), (0.0,))}
        return super().own | {"tau": Tau(self.tau, self.tau_at)}


@dataclass(frozen=True, kw_only=True)
class FAT(Friendly):
    """Friendly adversarial training.

    Arguments:
        omega: The standard deviation of the noise added to each step.
    """

    objective: Literal["fat"] = "fat"
    tau: int | tuple[int, ...] = (0, 1, 2)
    tau_at: tuple[float, ...] | None = (0.0, 50 / 120, 90 / 120)
    omega: float = 0.001
    kind = objectives.Adversarial

    @property
    def own(self) -> dict[str, Any]:
        """Return tau and omega."""
        return super().own | {"omega": self.omega}


@dataclass(frozen=True, kw_only=True)
class FATTRADES(TRADES, Friendly):
    """Friendly adversarial training for TRADES."""

    objective: Literal["fat-trades"] = "fat-trades"  # type: ignore[assignment]
    tau: int | tuple[int, ...] = (0, 1, 2, 3)
    tau_at: tuple[float, ...] | None = (0.0, 30 / 85, 50 / 85, 70 / 85)


@dataclass(frozen=True, kw_only=True)
class FATMART(MART, Friendly):
    """Friendly adversarial training for MART."""

    objective: Literal["fat-mart"] = "fat-mart"  # type: ignore[assignment]
    beta: float = 6.0
    tau: int | tuple[int, ...] = (0, 1, 2, 3, 4)
    tau_at: tuple[float, ...] | None = (0.0, 20 / 90, 40 / 90, 60 / 90, 80 / 90)


@dataclass(frozen=True, kw_only=True)
class IAT(TwoSided):
    """Interpolated adversarial training.

    Arguments:
        mixup: The parameter of the Beta distribution of the shares; 0 does not mix.
    """

    objective: Literal["iat"] = "iat"
    mixup: float = 1.0
    attack: PGD = field(default_factory=lambda: inner_attack(steps=7, step_factor=1.75))
    kind = objectives.IAT

    @property
    def own(self) -> dict[str, Any]:
        """Return the parameter of the mix."""
        return super().own | {"mixup": self.mixup}


@dataclass(frozen=True, kw_only=True)
class YOPO(Robust):
    """YOPO-m-n.

    Arguments:
        replays: m, the full passes of an update; the learning rate is divided by it.
        stem: Whether the stem gets ``both`` gradients or only that of the ``loss``.
        attack: Its ``steps`` are n, the steps through the stem in each pass.
    """

    objective: Literal["yopo"] = "yopo"
    replays: int = 5
    stem: Literal["both", "loss"] = "both"
    attack: PGD = field(default_factory=lambda: inner_attack(steps=3, step_factor=0.75))
    kind = objectives.YOPO

    @property
    def own(self) -> dict[str, Any]:
        """Return the passes and the gradients of the stem."""
        return {"replays": self.replays, "stem": self.stem}

    @property
    def step_size(self) -> float:
        """Return the learning rate divided by m: gradients are sums of m."""
        return self.lr / self.replays


@dataclass(frozen=True, kw_only=True)
class SelfAdaptive(TRADES):
    """Self-adaptive training with TRADES.

    Arguments:
        onset: The progress from which on the labels learn.
        memory: What a label keeps of itself at each visit.
    """

    objective: Literal["sat"] = "sat"  # type: ignore[assignment]
    onset: float = 0.69
    memory: float = 0.9
    kind = objectives.SelfAdaptive

    @property
    def own(self) -> dict[str, Any]:
        """Return beta, the onset and the memory."""
        return super().own | {"onset": self.onset, "memory": self.memory}


LEARNERS: dict[str, type[Learning]] = {
    "standard": Clean,
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
}
"""The learners by the name of their objective."""
