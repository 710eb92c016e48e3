r"""The methods: classes of settings, and a table of the methods by name.

The fields are the settings that a recipe or ``key=value`` on the command line may give.
``docs/decisions.md`` records how the gaps of the papers are read; every reading is a setting. A
new objective is one file in ``objectives/`` and one line in the table: ``docs/adding.md``.

A3GT trains the whole trade-off in one run: a trunk, then a clean and a robust branch of it.
Between learners that are trained separately there is a barrier in the loss; between branches that
start late from one trunk there is none: every mix of their running averages is a good model, and
gamma is chosen last. The paper has a schedule of gamma, and hand-overs (:class:`Scheduled`).

References:
    | A3GT (He et al., 2024), https://doi.org/10.3390/electronics13204052
    | Linear Mode Connectivity and the Lottery Ticket Hypothesis (Frankle et al., 2020)
    | https://arxiv.org/abs/1912.05671
    | Robust fine-tuning of zero-shot models (Wortsman et al., 2022)
    | https://arxiv.org/abs/2109.01903
"""

import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, asdict, dataclass, field, fields, replace
from typing import Annotated, Any, ClassVar, get_args, get_type_hints

from equipoise import objectives
from equipoise.errors import Part, UserError
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Knots, Objective
from equipoise.objectives.mixed import Following, Mixed
from equipoise.objectives.robust import Robust, inner_attack
from equipoise.objectives.standard import Standard
from equipoise.threat import Norm, Threat
from equipoise.training.merge import Merge
from equipoise.training.method import Method, check_leader
from equipoise.training.start import Fixed, Never, Threshold


@dataclass(frozen=True, kw_only=True)
class Settings(Merge):
    """The settings of a method: its learners, and how they are merged."""

    fixed: ClassVar[frozenset[str]] = frozenset()
    """The settings of the merge that are fixed for this method."""

    def __post_init__(self) -> None:
        taken = [*(k for k, value in vars(self).items() if isinstance(value, Objective)), "global"]
        if set(getattr(self, "more", ())) & set(taken):
            raise UserError(f"a further learner needs a name other than {', '.join(taken)}")
        super().__post_init__()

    @property
    def learners(self) -> dict[str, Objective]:
        """Return the objectives of the learners by name, in the order in which they train."""
        own = {k: value for k, value in vars(self).items() if isinstance(value, Objective)}
        return own | dict(getattr(self, "more", {}))

    def knots(self) -> dict[str, Knots]:
        """Return the weights of the learners over the progress; a single learner has 1."""
        names = list(self.learners)
        return {names[0]: Knots((1.0,))} if len(names) == 1 else super().knots()

    def unfit(self, norm: Norm, rounds: int) -> list[str]:
        """Return the reasons why the settings do not fit a training, a sentence each.

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

    @property
    def chooses(self) -> bool:
        """Return whether gamma is chosen at the end, by measuring models."""
        return self.gamma is None

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
ONE = MERGED - {"horizon", "warmup", "batchnorm"}
"""The settings of the merge that have no effect on a single learner."""


@dataclass(frozen=True, kw_only=True)
class CleanOnly(Settings):
    """One learner that is trained on clean images.

    Arguments:
        clean: The learner.
    """

    fixed: ClassVar[frozenset[str]] = ONE
    clean: Standard | objectives.corrupted.Corrupted


@dataclass(frozen=True, kw_only=True)
class RobustOnly(Settings):
    """One robust learner.

    Arguments:
        robust: The learner.
    """

    fixed: ClassVar[frozenset[str]] = ONE
    robust: Robust


@dataclass(frozen=True, kw_only=True)
class Scheduled(Settings):
    """A clean and a robust learner that are merged: gamma and the hand-overs are scheduled.

    Arguments:
        clean: The clean learner.
        robust: The robust learner, of any objective (``robust.objective``).
        more: Further robust learners by name, each with an objective and, where it differs, a
            threat of its own: ``more.l2.norm=l2 more.l2.eps=1.5``.
    """

    clean: Standard = field(default_factory=Standard)
    robust: Robust = field(default_factory=Adversarial)
    more: Mapping[str, Robust | objectives.corrupted.Corrupted] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.gamma is None:
            raise UserError("gamma must be a number or a list: only a3gt chooses it at the end")
        if set(self.more) != set(self.more_gamma):
            name = next(iter(self.more), "l2")
            raise UserError(
                f"more_gamma must name a weight for each of {sorted(self.more)}, got "
                f"{sorted(self.more_gamma)}; for instance gamma=[1, 0.4] "
                f"more_gamma.{name}=[0, 0.3], the clean learner has the rest"
            )
        super().__post_init__()

    def unfit(self, norm: Norm, rounds: int) -> list[str]:
        """Return the reasons why the settings do not fit a training."""
        problems = super().unfit(norm, rounds)
        if isinstance(self.start, Fixed) and (self.start.round or 0) > rounds:
            problems.append(f"start.round={self.start.round} is after the last round, {rounds}")
        return problems


DROP = 0.01  # of clean accuracy


def cheap() -> Mixed:
    """Return the learner of A3GT: three steps for ten buy twice the rounds (docs/log.md, 21)."""
    return Mixed(weight=0.9, attack=inner_attack(steps=3))


@dataclass(frozen=True, kw_only=True)
class A3GT(Settings):
    """One run, the whole front: a clean and a robust branch of one trunk, and gamma chosen last.

    Trunk and robust branch attack with 3 steps, 5 gradient evaluations an image; the clean branch
    is trained on the adversarial inputs of the robust one, 2 more. At the end models between them
    are measured on held-out images, and one is kept; `equipoise pick` takes another one.

    Arguments:
        trunk: The learner that is trained until t', of any robust objective.
        robust: The robust branch, likewise (``robust.objective``).
        clean: The clean branch: ``following`` trains on the inputs of the robust branch;
            ``mix-at`` and ``standard`` do not need it (``clean.objective=mix-at``).
        more: Further branches by name, each with an objective and, where it differs, a threat of
            its own: ``more.l2.norm=l2 more.l2.eps=1.5``, ``more.weather=corrupted``. They have no
            part in the kept model; `equipoise front` measures mixes with the first of them.
        gamma: The weight of the robust branch in the kept model; None: it is chosen at the end.
        max_clean_drop: For the choice: how much less clean accuracy than the trunk at t' the model
            may have. Of such models the most robust one is kept.
        min_clean: For the choice, instead: the clean accuracy that it must have.
        restart: Whether the schedule of the learning rate begins again for the branches.
        start: t', at which the branches start: a part of all rounds (``start=0.5``), or a round.
    """

    fixed: ClassVar[frozenset[str]] = frozenset(
        MERGED - {"gamma", "horizon", "warmup", "batchnorm", "start"}
    )
    trunk: Robust = field(default_factory=cheap)
    robust: Robust = field(default_factory=cheap)
    clean: Following | Mixed | Standard = field(default_factory=lambda: Following(weight=0.25))
    more: Mapping[str, Robust | objectives.corrupted.Corrupted] = field(default_factory=dict)
    max_clean_drop: Annotated[float, "[0, 1)"] = DROP
    min_clean: Part | None = None
    restart: bool = True
    start: Fixed = field(default_factory=lambda: Fixed(fraction=0.7))

    def __post_init__(self) -> None:
        if isinstance(self.gamma, tuple):
            only = f"none to choose it at the end, got {list(self.gamma)}"
            schedules = "generalist and a3gt-paper have a schedule of gamma"
            raise UserError(f"gamma must be one number in [0, 1], or {only}; {schedules}")
        bounds = {"max_clean_drop": self.max_clean_drop != DROP, "min_clean": self.min_clean}
        given = [name for name, value in bounds.items() if value not in (None, False)]
        if len(given) > (self.gamma is None):
            raise UserError(f"give only one of gamma, max_clean_drop and min_clean, got {given}")
        super().__post_init__()
        if isinstance(self.clean, Following):
            check_leader("robust", self.robust)

    def knots(self) -> dict[str, Knots]:
        """Return the weights of the branches; further ones have none."""
        return super().knots() | dict.fromkeys(self.more, Knots((0.0,)))

    def build(self, threat: Threat) -> Method:
        """Return the method against a threat, with the trunk that ends at t'."""
        return replace(super().build(threat), trunk="trunk", restart=self.restart)

    def unfit(self, norm: Norm, rounds: int) -> list[str]:
        """Return the reasons why the settings do not fit a training."""
        problems, latest = super().unfit(norm, rounds), self.start.latest(rounds)
        if latest >= rounds:
            problems.append(
                f"the branches would start after round {latest} of {rounds}, so they would get "
                "no round: set an earlier start, or more rounds (at least 2)"
            )
        return problems


@dataclass(frozen=True)
class MethodRow:
    """A method: its settings with their defaults, and its description.

    Arguments:
        settings: The class of the settings.
        defaults: The defaults that differ from those of the class.
        paper: Authors, year and address.
        shown: The settings in the table of all methods, as paths.
        text: The description, its first line a summary; None: the docstring of the objective or
            of the settings.
        objective: The only objective; None: learners may have any.
    """

    settings: type[Settings]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    _: KW_ONLY
    paper: str
    shown: tuple[str, ...]
    text: str | None = None
    objective: type[Objective] | None = None

    def __call__(self, **changed: Any) -> Settings:
        """Return the settings: the defaults, but for those that are given."""
        return self.settings(**{**self.defaults, **changed})

    @property
    def about(self) -> str:
        """Return the description; its first line is a summary."""
        doc = inspect.cleandoc((self.objective or self.settings).__doc__ or "")
        return self.text or doc.partition("Arguments:")[0].strip()

    @property
    def title(self) -> str:
        """Return the summary."""
        return self.about.splitlines()[0]

    def kinds(self, group: str) -> dict[str, type]:
        """Return the classes that a group of settings may have, by the names that recipes give.

        Arguments:
            group: A learner, or ``start``.
        """
        if self.objective is not None:
            return {self.objective.objective: self.objective}
        hint = get_type_hints(self.settings)[group]
        named: dict[str, type] = {}
        for kind in get_args(hint) or (hint,):
            if inspect.isabstract(kind):  # any objective of that class
                named |= {k: v for k, v in learners().items() if issubclass(v, kind)}
            else:
                named[kind.rule if group == "start" else kind.objective] = kind
        return named


def one(objective: type[Objective], paper: str = "", *shown: str, **defaults: Any) -> MethodRow:
    """Return the method of a single learner.

    Arguments:
        objective: The class of the objective; its field ``objective`` has the method's name.
        paper: Authors, year and address.
        shown: The settings in the table of all methods, as paths.
        defaults: The defaults that differ from those of :class:`Merge`; by default there is no
            average of the weights.
    """
    kind, name = (RobustOnly, "robust") if issubclass(objective, Robust) else (CleanOnly, "clean")
    alone = {name: objective(), "horizon": 0.0, "every": None, "start": Never(), **defaults}
    return MethodRow(kind, alone, paper=paper, shown=shown, objective=objective)


PAPER = """A3GT with Eq. 4, 7 and 8 of the paper read literally.

One loss threshold l_h for both learners, for t_num rounds in a row; the global model is formed at
t', and averaged and handed over in rounds t > t' with t mod c = 0 alone; gamma runs from the first
round on. It may never synchronise: then it says so."""

GENERALIST = """Generalist: the same merge from a fixed round on.

As its code has it: t' = 0.625 E, running averages are merged, and in rounds t >= t' with
t mod c = 0 the weights are handed over after every step. Both learners get the same batches."""

FRIENDLY = "Zhang et al., 2020, arXiv:2002.11242"

SHOWN = ("robust.objective", "gamma", "every", "start.rule")

METHODS: dict[str, MethodRow] = {
    "standard": one(Standard),
    "pgd-at": one(Adversarial, "Madry et al., 2018, arXiv:1706.06083", "robust.attack.steps"),
    "mix-at": one(
        Mixed, "Goodfellow et al., 2015, arXiv:1412.6572", "robust.weight", "horizon", horizon=2.5
    ),
    "trades": one(objectives.trades.TRADES, "Zhang et al., 2019, arXiv:1901.08573", "robust.beta"),
    "mart": one(objectives.mart.MART, "Wang et al., 2020, openreview rklOg6EFwS", "robust.beta"),
    "fat": one(objectives.friendly.FAT, FRIENDLY, "robust.tau", "robust.omega"),
    "fat-trades": one(objectives.friendly.FATTRADES, FRIENDLY, "robust.tau", "robust.beta"),
    "fat-mart": one(objectives.friendly.FATMART, FRIENDLY, "robust.tau", "robust.beta"),
    "iat": one(
        objectives.iat.IAT,
        "Lamb et al., 2019, arXiv:1906.06784",
        "robust.mixup",
        "robust.attack.steps",
    ),
    "yopo": one(
        objectives.yopo.YOPO,
        "Zhang et al., 2019, arXiv:1905.00877",
        "robust.replays",
        "robust.attack.steps",
    ),
    "gat": one(objectives.gat.GAT, "Sriramanan et al., 2020, arXiv:2011.14969", "robust.beta"),
    "sat": one(
        objectives.self_adaptive.SelfAdaptive,
        "Huang et al., 2020, arXiv:2002.10319",
        "robust.onset",
        "robust.memory",
        "robust.beta",
    ),
    "corrupted": one(objectives.corrupted.Corrupted, "", "clean.weight", "clean.severity"),
    "generalist": MethodRow(
        Scheduled,
        {
            "anchor": "clock",
            "count": "rounds",
            "source": "average",
            "granularity": "step",
            "batches": "shared",
            "start": Fixed(),
        },
        paper="Wang and Wang, 2023, arXiv:2303.13813",
        shown=SHOWN,
        text=GENERALIST,
    ),
    "a3gt-paper": MethodRow(
        Scheduled,
        {
            "anchor": "clock",
            "count": "rounds",
            "inclusive": False,
            "global_from": "start",
            "average_every": "handover",
            "horizon": 10.0,
            "warmup": False,
            "start": Threshold(),
        },
        paper="He et al., 2024, doi:10.3390/electronics13204052",
        shown=SHOWN,
        text=PAPER,
    ),
    "a3gt": MethodRow(
        A3GT,
        {"gamma": None, "source": "average", "every": None},
        paper="after He et al., 2024, doi:10.3390/electronics13204052",
        shown=("trunk.objective", "robust.weight", "clean.weight", "gamma", "start.fraction"),
    ),
}
"""The methods. An objective in a row may also be that of any robust learner."""


def learners() -> dict[str, type[Objective]]:
    """Return the objectives that a recipe may give to a learner, by their names."""
    kinds = [row.objective for row in METHODS.values() if row.objective is not None]
    return {kind.objective: kind for kind in kinds}
