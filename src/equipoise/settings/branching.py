r"""One run that holds the whole trade-off: a trunk that becomes a clean and a robust branch.

Learners that are trained apart lie in basins of their own, with a barrier between them; learners
that part late from a common trunk do not, so that each

.. math:: \theta(\gamma) = \gamma \, \bar\theta_r + (1 - \gamma) \, \bar\theta_n

between the running averages of the two is a model, and which of them is wanted can be said after
the training. It is A3GT turned round: its rule for t', which finds when clean and robust loss have
stabilised, says here when the learners part, not when they are joined.

References:
    | A3GT (He et al., 2024), https://doi.org/10.3390/electronics13204052
    | Linear Mode Connectivity and the Lottery Ticket Hypothesis (Frankle et al., 2020)
    | https://arxiv.org/abs/1912.05671
    | Robust fine-tuning of zero-shot models (Wortsman et al., 2022)
    | https://arxiv.org/abs/2109.01903
"""

__all__ = ["A3GTFront", "Following"]

from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Literal

from equipoise import objectives
from equipoise.errors import UserError
from equipoise.settings import learning
from equipoise.threat import Threat
from equipoise.training.merge import Handover, Merge, Weights
from equipoise.training.method import Branch, Method, named
from equipoise.training.schedule import Knots
from equipoise.training.start import Fixed, Stable


def _robust() -> learning.MixAT:
    return learning.MixAT(weight=0.9)


@dataclass(frozen=True, kw_only=True)
class Following(learning.Learning):
    """A learner of clean images and of the adversarial ones that another learner found.

    Arguments:
        weight: w, the weight of the adversarial ones.
        label_smoothing: The part of a label that is spread evenly over all classes.
    """

    objective: Literal["following"] = "following"
    weight: float = 0.1
    label_smoothing: float = 0.0

    def made(self, threat: Threat) -> objectives.Objective:
        """Return the objective."""
        del threat
        return objectives.Following(weight=self.weight, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class A3GTFront:
    """One run, the whole front: a clean and a robust branch of one trunk, mixed at any gamma.

    The robust branch searches for adversarial inputs, and the clean branch is trained on the
    same ones, with little weight: two gradient evaluations more to twelve. `equipoise front`
    measures what lies between the two, `equipoise pick` chooses from it.

    Arguments:
        trunk_weight: w of the one learner before the branch, whose loss is that of ``mix-at``; it
            learns and searches as the robust branch is told to.
        robust: How the robust branch learns; any objective will do (``robust.objective``).
        clean: How the clean branch learns: ``following`` the robust one, or by itself
            (``clean.objective=mix-at`` or ``standard``).
        gamma: The weight of the robust branch in the model that is kept.
        alpha: The memory of the running averages, per step.
        warmup: Whether that memory grows in over the first steps.
        every: The rounds between two hand-overs of the global weights, c; None: there are none.
        momentum: Whether the optimisers ``keep`` their momentum at a hand-over or ``zero`` it.
        batchnorm: ``average`` the statistics, or ``estimate`` them on a mix.
        restart: Whether the branches' learning rate runs through its schedule anew.
        start: The rule for t', at which the learners part.
    """

    paper: ClassVar[str] = "after He et al., 2024, doi:10.3390/electronics13204052"
    shown: ClassVar[tuple[str, ...]] = ("start.rule", "clean.weight", "robust.weight", "gamma")
    trunk_weight: float = 0.5
    robust: learning.Robust = field(default_factory=_robust)
    clean: Following | learning.MixAT | learning.Clean = field(default_factory=Following)
    gamma: float = 0.5
    alpha: float = 0.995
    warmup: bool = True
    every: int | None = None
    momentum: Literal["keep", "zero"] = "keep"
    batchnorm: Literal["average", "estimate"] = "average"
    restart: bool = True
    start: Stable | Fixed = field(default_factory=Stable)

    def __post_init__(self) -> None:
        for name in ("gamma", "trunk_weight"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} must lie in [0, 1], got {value}")

    def build(self, threat: Threat, rounds: int) -> Method:
        """Return the method."""
        latest = self.start.latest(rounds)
        if latest >= rounds:
            how = "start.round" if isinstance(self.start, Fixed) else "start.deadline"
            raise UserError(
                f"the learners would part after round {latest} of {rounds}, with none left to "
                f"them: a smaller {how}, or more rounds (at least 2)"
            )
        robust = named("robust", self.robust, threat)
        clean = named("clean", self.clean, threat)
        if isinstance(self.clean, Following):
            clean = replace(clean, follows="robust")
        return Method(
            learners={
                "trunk": named("trunk", self._trunk(), threat),
                "robust": robust,
                "clean": clean,
            },
            merge=self._merge(),
            branch=Branch(trunk="trunk", restart=self.restart),
        )

    def _trunk(self) -> learning.MixAT:
        shared = {f.name for f in fields(learning.MixAT)} - {"objective", "weight"}
        alike = {name: getattr(self.robust, name) for name in shared if hasattr(self.robust, name)}
        return learning.MixAT(weight=self.trunk_weight, **alike)

    def _merge(self) -> Merge:
        knots = {"clean": Knots((1 - self.gamma,)), "robust": Knots((self.gamma,))}
        return Merge(
            weights=Weights(knots=knots),
            alpha=self.alpha,
            warmup=self.warmup,
            source="average",
            twice=False,
            start=self.start,
            batchnorm=self.batchnorm,
            handover=Handover(every=self.every, momentum=self.momentum),
        )
