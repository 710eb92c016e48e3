"""The methods by name: a literal table, each row a class of settings with its defaults.

A new objective is one file in ``objectives/`` and one line here; see ``docs/adding.md``.
"""

__all__ = ["METHODS", "MethodRow", "learners", "one"]

import inspect
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, get_args, get_type_hints

from equipoise import objectives
from equipoise.objectives import Objective, Robust
from equipoise.settings.kinds import A3GT, A3GTFront, CleanOnly, RobustOnly, Settings
from equipoise.training.start import Fixed, Never, Threshold


@dataclass(frozen=True)
class MethodRow:
    """A method: its settings with their defaults, and what is said of it.

    Arguments:
        settings: The class of the settings.
        defaults: The defaults that differ from those of the class.
        paper: Authors, year and address.
        shown: The settings in the table of all methods, as paths.
        text: What it is, the first line a summary; None: the docstring of the objective or of
            the settings.
        objective: The one objective that it trains with; None: learners may have any.
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
        """Return what it is; the first line is a summary."""
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
            if inspect.isabstract(kind):  # any learner of that sort
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
    alone = {name: objective(), "alpha": 0.0, "every": None, "start": Never(), **defaults}
    return MethodRow(kind, alone, paper=paper, shown=shown, objective=objective)


PAPER = """A3GT with Eq. 4, 7 and 8 of the paper read literally.

One loss threshold l_h for both learners, for t_num rounds in a row; hand-over in rounds t > t'
with t mod c = 0; gamma runs from the first round on. It may never synchronise: then it says so."""

GENERALIST = """Generalist: the same merge from a fixed round on.

As its code has it: t' = 0.625 E, running averages are merged, and in rounds t >= t' with
t mod c = 0 the weights are handed over after every step."""

SHOWN = ("robust.objective", "gamma", "every", "start.rule")

METHODS: dict[str, MethodRow] = {
    "standard": one(objectives.standard.Standard),
    "pgd-at": one(
        objectives.adversarial.Adversarial,
        "Madry et al., 2018, arXiv:1706.06083",
        "robust.attack.steps",
    ),
    "mix-at": one(
        objectives.mixed.Mixed,
        "Goodfellow et al., 2015, arXiv:1412.6572",
        "robust.weight",
        "alpha",
        alpha=0.999,
    ),
    "trades": one(objectives.trades.TRADES, "Zhang et al., 2019, arXiv:1901.08573", "robust.beta"),
    "mart": one(objectives.mart.MART, "Wang et al., 2020, openreview rklOg6EFwS", "robust.beta"),
    "fat": one(
        objectives.friendly.FAT,
        "Zhang et al., 2020, arXiv:2002.11242",
        "robust.tau",
        "robust.omega",
    ),
    "fat-trades": one(
        objectives.friendly.FATTRADES,
        "Zhang et al., 2020, arXiv:2002.11242",
        "robust.tau",
        "robust.beta",
    ),
    "fat-mart": one(
        objectives.friendly.FATMART,
        "Zhang et al., 2020, arXiv:2002.11242",
        "robust.tau",
        "robust.beta",
    ),
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
    "sat": one(
        objectives.self_adaptive.SelfAdaptive,
        "Huang et al., 2020, arXiv:2002.10319",
        "robust.onset",
        "robust.memory",
        "robust.beta",
    ),
    "generalist": MethodRow(
        A3GT,
        {
            "anchor": "clock",
            "count": "rounds",
            "source": "average",
            "granularity": "step",
            "start": Fixed(),
        },
        paper="Wang and Wang, 2023, arXiv:2303.13813",
        shown=SHOWN,
        text=GENERALIST,
    ),
    "a3gt-paper": MethodRow(
        A3GT,
        {"anchor": "clock", "count": "rounds", "inclusive": False, "start": Threshold()},
        paper="He et al., 2024, doi:10.3390/electronics13204052",
        shown=SHOWN,
        text=PAPER,
    ),
    "a3gt": MethodRow(A3GT, paper="He et al., 2024, doi:10.3390/electronics13204052", shown=SHOWN),
    "a3gt-front": MethodRow(
        A3GTFront,
        {"gamma": 0.5, "alpha": 0.995, "source": "average", "every": None},
        paper="after He et al., 2024, doi:10.3390/electronics13204052",
        shown=("start.rule", "clean.weight", "robust.weight", "gamma"),
    ),
}
"""The methods. A row with an objective also makes it one that any robust learner may have."""


def learners() -> dict[str, type[Objective]]:
    """Return the objectives that a recipe may give to a learner, by their names."""
    kinds = [row.objective for row in METHODS.values() if row.objective is not None]
    return {kind.objective: kind for kind in kinds}
