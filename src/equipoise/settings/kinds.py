r"""The settings of methods: their learners, and how they are merged.

The fields are what a recipe or ``key=value`` on the command line may say.
``docs/decisions.md`` records how the gaps of the papers are read; every reading is a setting.

A3GT-front is one run that holds the whole trade-off: a trunk that becomes a clean and a robust
branch. Learners that are trained apart lie in basins of their own, with a barrier between them;
learners that part late from a common trunk do not, so that each

.. math:: \theta(\gamma) = \gamma \, \bar\theta_r + (1 - \gamma) \, \bar\theta_n

between the running averages of the two is a model, and gamma can be chosen after the training.
It is A3GT turned round: its rule for t', which finds when clean and robust loss have stabilised,
says here when the learners part, not when they are joined.

References:
    | A3GT (He et al., 2024), https://doi.org/10.3390/electronics13204052
    | Linear Mode Connectivity and the Lottery Ticket Hypothesis (Frankle et al., 2020)
    | https://arxiv.org/abs/1912.05671
    | Robust fine-tuning of zero-shot models (Wortsman et al., 2022)
    | https://arxiv.org/abs/2109.01903
"""

__all__ = ["A3GT", "A3GTFront", "CleanOnly", "RobustOnly", "Settings"]

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar

from equipoise.errors import Part, UserError
from equipoise.objectives import Objective, Robust
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Knots
from equipoise.objectives.following import Following
from equipoise.objectives.mixed import Mixed
from equipoise.objectives.standard import Standard
from equipoise.threat import Norm, Threat
from equipoise.training.merge import Merge
from equipoise.training.method import Method, check_leader
from equipoise.training.start import Fixed, Stable


@dataclass(frozen=True, kw_only=True)
class Settings(Merge):
    """The settings of a method: its learners, and how they are merged."""

    fixed: ClassVar[frozenset[str]] = frozenset()
    """The settings of the merge that a recipe of this method may not give."""

    @property
    def learners(self) -> dict[str, Objective]:
        """Return the objectives of the learners by name, in the order in which they train."""
        return {k: value for k, value in vars(self).items() if isinstance(value, Objective)}

    def knots(self) -> dict[str, Knots]:
        """Return the weights of the learners over the progress; of a single one it is 1."""
        names = list(self.learners)
        return {names[0]: Knots((1.0,))} if len(names) == 1 else super().knots()

    def unfit(self, norm: Norm, rounds: int) -> list[str]:
        """Return why the settings do not fit a training, a sentence each.

        Arguments:
            norm: The norm of the training's threat.
            rounds: How many rounds the training has.
        """
        del rounds
        problems = []
        for name, objective in self.learners.items():
            try:
                objective.against(Threat(norm, 0.0))
            except UserError as error:
                problems.append(f"{name}: {error}")
        return problems

    def build(self, threat: Threat) -> Method:
        """Return the method against a threat."""
        learners = {name: objective.bind(threat) for name, objective in self.learners.items()}
        return Method(learners=learners, knots=self.knots(), merge=self)

    @classmethod
    def offered(cls) -> list[str]:
        """Return the names of the settings that a recipe has, those of the merge last."""
        names = [f.name for f in fields(cls) if f.name not in cls.fixed]
        return sorted(names, key=MERGED.__contains__)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that a recipe has, groups as mappings."""
        values = asdict(self)
        return {name: values[name] for name in self.offered()}


MERGED = frozenset(f.name for f in fields(Merge))
ONE = MERGED - {"alpha", "warmup"}
"""What a method with a single learner has no use for."""


@dataclass(frozen=True, kw_only=True)
class CleanOnly(Settings):
    """One learner of clean images.

    Arguments:
        clean: The learner.
    """

    fixed: ClassVar[frozenset[str]] = ONE
    clean: Standard


@dataclass(frozen=True, kw_only=True)
class RobustOnly(Settings):
    """One robust learner.

    Arguments:
        robust: The learner.
    """

    fixed: ClassVar[frozenset[str]] = ONE
    robust: Robust


@dataclass(frozen=True, kw_only=True)
class A3GT(Settings):
    """A clean and a robust learner, merged from the round on at which both have stabilised.

    The default, in our reading: a scale-free test of the held-out losses finds t', with a
    deadline, and gamma is anchored at t' so that the first merge follows the robust learner
    alone.

    Arguments:
        clean: How the clean learner learns.
        robust: How the robust learner learns; any objective will do (``robust.objective``).
        more: Further robust learners by name, each with an objective and, where it differs, a
            threat of its own: ``more.l2.norm=l2 more.l2.eps=1.5``.
    """

    clean: Standard = field(default_factory=Standard)
    robust: Robust = field(default_factory=Adversarial)
    more: Mapping[str, Robust] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.more) & {"clean", "robust", "global"}:
            raise UserError("a further learner needs a name other than clean, robust and global")
        if set(self.more) != set(self.more_gamma):
            name = next(iter(self.more), "l2")
            raise UserError(
                f"more_gamma must name a weight for each of {sorted(self.more)}, got "
                f"{sorted(self.more_gamma)}; for instance gamma=[1, 0.4] "
                f"more_gamma.{name}=[0, 0.3], the clean learner has the rest"
            )
        super().__post_init__()

    @property
    def learners(self) -> dict[str, Objective]:
        """Return the clean learner, the robust one, and the further ones."""
        return {**super().learners, **self.more}

    def unfit(self, norm: Norm, rounds: int) -> list[str]:
        """Return why the settings do not fit a training of so many rounds."""
        problems = super().unfit(norm, rounds)
        if isinstance(self.start, Fixed) and (self.start.round or 0) > rounds:
            problems.append(f"start.round={self.start.round} is after the last round, {rounds}")
        return problems


@dataclass(frozen=True, kw_only=True)
class A3GTFront(Settings):
    """One run, the whole front: a clean and a robust branch of one trunk, mixed at any gamma.

    The robust branch searches for adversarial inputs, and the clean branch is trained on the
    same ones, with little weight: two gradient evaluations more to twelve. `equipoise front`
    measures what lies between the two, `equipoise pick` chooses from it.

    Arguments:
        trunk_weight: w of the one learner before the branch, whose loss is that of ``mix-at``; it
            has the SGD and the attack of the robust branch.
        robust: How the robust branch learns; any objective will do (``robust.objective``).
        clean: How the clean branch learns: ``following`` the robust one, or by itself
            (``clean.objective=mix-at`` or ``standard``).
        gamma: The weight of the robust branch in the model that is kept.
        restart: Whether the branches' learning rate runs through its schedule anew.
        start: The rule for t', at which the learners part.
    """

    fixed: ClassVar[frozenset[str]] = frozenset(
        {"more_gamma", "anchor", "source", "count", "inclusive", "granularity"}
    )
    trunk_weight: Part = 0.5
    robust: Robust = field(default_factory=lambda: Mixed(weight=0.9))
    clean: Following | Mixed | Standard = field(default_factory=Following)
    restart: bool = True
    start: Stable | Fixed = field(default_factory=Stable)

    def __post_init__(self) -> None:
        if isinstance(self.gamma, tuple):
            raise UserError(f"gamma must be one number in [0, 1], got {list(self.gamma)}")
        super().__post_init__()
        if isinstance(self.clean, Following):
            check_leader("robust", self.robust)

    @property
    def learners(self) -> dict[str, Objective]:
        """Return the trunk, and the two branches."""
        shared = {f.name for f in fields(Mixed)} - {"objective", "weight"}
        alike = {name: getattr(self.robust, name) for name in shared if hasattr(self.robust, name)}
        trunk = Mixed(weight=self.trunk_weight, **alike)
        return {"trunk": trunk, "robust": self.robust, "clean": self.clean}

    def build(self, threat: Threat) -> Method:
        """Return the method against a threat, with the trunk that ends at t'."""
        return replace(super().build(threat), trunk="trunk", restart=self.restart)

    def unfit(self, norm: Norm, rounds: int) -> list[str]:
        """Return why the settings do not fit a training of so many rounds."""
        problems, latest = super().unfit(norm, rounds), self.start.latest(rounds)
        if latest >= rounds:
            how = "start.round" if isinstance(self.start, Fixed) else "start.deadline"
            problems.append(
                f"the learners would part after round {latest} of {rounds}, with none left to "
                f"them: a smaller {how}, or more rounds (at least 2)"
            )
        return problems
