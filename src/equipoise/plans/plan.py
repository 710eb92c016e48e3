"""Plans as YAML: which models are trained, and how they are evaluated.

``equipoise compare`` reads such a file, and the tables and figures of the paper are such plans
(:mod:`equipoise.plans.reproductions`).

==============  ==============================================================================
title           the title of the table
base            settings of every entry, as in a recipe
published       take missing settings from the published ones of the methods: ``true``, or the
                name of the dataset whose settings are taken
budget          gradient evaluations of a training, for entries without rounds (epochs)
seeds           the seeds with which each entry is trained
entries         recipes by name, without a seed; ``method`` is the name by default, and ``cost``
                the gradient evaluations of an image in a round, if only the run shows them
grids           entries for all combinations of some settings: ``name``, ``entry``, ``over``
only            names of the entries that are taken, with ``*`` for any ending; all by default
evaluate        how the models are evaluated, see below
resources       what each command needs on an engine (``--on``), see below
==============  ==============================================================================

and in ``evaluate``, next to ``attacks``, ``n``, ``first``, ``individual``, ``batch_size`` and
``precision`` as for ``equipoise evaluate``:

==============  ==============================================================================
eps             the radius or radii; 0 is the clean accuracy; by default that of the training
weights         weights of a run folder (:mod:`equipoise.store.weight_names`); ``rounds`` means
                the snapshots of all rounds. Mixes like ``gamma-0.4`` are evaluated only for runs
                with a clean and a robust learner
points          measure up to so many models between the two learners on held-out training
                images, like ``equipoise front``, instead of models on test images
cmmr            compute the composite score of :mod:`equipoise.measures.cmmr`
==============  ==============================================================================

and in ``resources`` (of SLURM; Ray uses the last three, others none):

==============  ==============================================================================
partition       and ``account``, ``qos``, ``constraint``: as for ``sbatch``
time            of a job, like ``2h``; a run that needs more goes on in the next job
memory          like ``16G``
cpus            cores
gpus            GPUs
==============  ==============================================================================
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from equipoise.errors import UserError, nearest, short
from equipoise.evaluation.protocol import Protocol
from equipoise.execution.policy import Execution, Precision
from equipoise.parsing import mapping, number
from equipoise.plans.keys import RESOURCES, checked_keys
from equipoise.settings import recipe as recipes
from equipoise.settings.presets import published
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import lay
from equipoise.store.weight_names import canonical

MANY_ROUNDS = 1_000_000  # for checks of recipes whose rounds follow from the budget
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method of a plan with its settings.

    Arguments:
        name: Its name in the table and in its run folders.
        settings: The settings of its recipe, with those of the base.
        cost: The gradient evaluations of an image in a round, for the budget; None: those of
            the objectives.
    """

    name: str
    settings: Mapping[str, Any]
    cost: float | None = None

    @property
    def rounds(self) -> int | None:
        """Return the given rounds; None: they follow from the budget."""
        return self.settings.get("rounds")

    def recipe(self, *, rounds: int | None = None, seed: int = 0) -> Recipe:
        """Return the recipe of one run; ``rounds`` is used if the settings have none."""
        given = {"rounds": rounds} if rounds is not None else {}
        return recipes.parse({**given, **self.settings, "seed": seed})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan, with the keys of the module's documentation.

    Arguments:
        protocol: How models are attacked; without norm and radius.
        eps: The radii; empty: that of the training.
        points: None: models are evaluated on test images.
        budget: None: the recipes have rounds.
        resources: What each command needs on an engine.
        name: A short name, the folder of its runs; empty for the only plan of a folder.
    """

    entries: tuple[Entry, ...]
    protocol: Protocol
    eps: tuple[float, ...] = ()
    weights: tuple[str, ...] = ("model",)
    points: int | None = None
    cmmr: bool = False
    seeds: tuple[int, ...] = (0,)
    budget: float | None = None
    title: str = "Comparison"
    resources: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def only(self, patterns: Sequence[str]) -> Self:
        """Return the plan with only those entries that match a pattern, in their order."""
        entries = (e for e in self.entries if any(fnmatchcase(e.name, p) for p in patterns))
        return replace(self, entries=tuple(entries))


def read(path: Path) -> Plan:
    """Return the plan in a YAML file.

    Raises:
        UserError: If it does not exist or is not a plan, with every error at once.
    """
    return parse(mapping(path, "plan"))


def parse(given: Mapping[str, Any], name: str = "") -> Plan:
    """Return the plan that a mapping describes.

    Arguments:
        given: The mapping.
        name: The short name of the plan.

    Raises:
        UserError: With every error at once.
    """
    problems = list[str]()
    values = checked_keys(given, _PLAN, "", problems)
    base = values.pop("base", {})
    if "seed" in base:
        problems.append("base.seed: the seeds are those of `seeds`")
    if "budget" in values and base.get("rounds") is not None:
        problems.append("expected base.rounds or budget, got both; leave one out")
    evaluated = values.pop("evaluate", {})
    evaluated = {**evaluated, "attacks": evaluated.get("attacks") or ""}
    judged = checked_keys(evaluated, _JUDGED, "evaluate.", problems)
    execution = Execution(precision=judged.pop("precision", "auto"))
    how = {key: judged.pop(key) for key in _PROTOCOL if key in judged}
    protocol = Protocol(**{"attacks": ()} | how, execution=execution)
    needed = checked_keys(values.pop("resources", {}), RESOURCES, "resources.", problems)
    named = values.pop("entries", {})
    for grid in values.pop("grids", ()):
        named |= dict(_grid(grid))
    if not named and not given.get("entries"):
        problems.append("entries: expected at least one method, like `pgd-at: {}`")
    published = values.pop("published", None)
    data = base.get("data") if published is True else published or None
    entries = _entries(named, base, data, protocol, judged.get("eps", ()), problems)
    entries = _chosen(entries, values.pop("only", None), problems)
    if problems:
        raise UserError("; ".join(problems))
    every = {**judged, **values, "resources": needed}
    return Plan(entries=entries, protocol=protocol, name=name, **every)


def _entries(
    named: Mapping[str, Any],
    base: Mapping[str, Any],
    data: str | None,
    protocol: Protocol,
    radii: Sequence[float],
    problems: list[str],
) -> tuple[Entry, ...]:
    """Return the entries with a valid recipe; the same error of many entries is one problem."""
    entries, wrong = list[Entry](), dict[str, list[str]]()
    for name, own in named.items():
        try:
            entry = _entry(name, own, base, data, problems)
            entries.append(entry)
            fitting = replace(protocol, norm=entry.recipe(rounds=entry.rounds or MANY_ROUNDS).norm)
            _check_radii(fitting, radii)
        except UserError as error:
            wrong.setdefault(str(error), []).append(name)
    for message, names in wrong.items():
        every = len(names) == len(named) > 1
        problems.append(f"{'every entry' if every else ', '.join(names)}: {message}")
    return tuple(entries)


def _check_radii(protocol: Protocol, radii: Sequence[float]) -> None:
    for eps in radii:
        try:
            replace(protocol, eps=eps)
        except UserError as error:
            raise UserError(f"evaluate.eps: {error}") from None


def _entry(
    name: str, given: Any, base: Mapping[str, Any], data: str | None, problems: list[str]
) -> Entry:
    """Return an entry with the settings of the base, and the published ones.

    Raises:
        UserError: If the name or the method is wrong; other errors are added to the problems.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"expected a name of letters, digits, dots and hyphens, got {name!r}")
    own = dict(checked_keys({name: given}, {name: _Group}, "entries.", problems).get(name, {}))
    if "seed" in own:
        problems.append(f"entries.{name}.seed: the seeds are those of `seeds`")
    cost = checked_keys(
        {"cost": own.pop("cost", None)}, {"cost": _Positive}, f"entries.{name}.", problems
    )
    settings = recipes.combine({"method": name}, base, own)
    if data is not None:
        settings = published(settings["method"], data).under(settings)
    if settings.get("rounds", 0) is None:
        del settings["rounds"]
    settings.pop("seed", None)
    return Entry(name=name, settings=settings, **cost)


def _chosen(
    entries: tuple[Entry, ...], only: Sequence[str] | None, problems: list[str]
) -> tuple[Entry, ...]:
    """Return the entries that match a pattern, in the order of the patterns."""
    if only is None:
        return entries
    matching = {p: [e for e in entries if fnmatchcase(e.name, p)] for p in only}
    names = [e.name for e in entries]
    problems += [f"only: {nearest(p, names, 'entry')}" for p in only if not matching[p]]
    return tuple({e.name: e for some in matching.values() for e in some}.values())


class EntryGrid(BaseModel, extra="forbid"):
    """Entries of all combinations of settings; ``{setting}`` in the name becomes its value."""

    name: str
    entry: dict[str, Any]
    over: dict[str, list[Any]]


def _grid(grid: EntryGrid) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an entry for each combination of a grid, with its name."""
    for values in product(*grid.over.values()):
        name, entry = grid.name, grid.entry
        for key, value in zip(grid.over, values, strict=True):
            text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
            name = name.replace(f"{{{key}}}", text)
            for group in reversed(key.split(".")):
                value = {group: value}
            entry = lay(entry, value)
        yield name, entry


def _where(holds: Callable[[Any], object], expected: str) -> WrapValidator:
    """Return a check of values, whose message has what was expected and the value as given."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            if holds(result := handler(value)):
                return result
        except ValidationError as error:
            if error.errors()[0]["type"] == "value_error":
                raise  # its message is complete
        raise UserError(f"expected {expected}, got {short(value)}")

    return WrapValidator(check)


def _attacks(names: list[str]) -> tuple[str, ...]:
    return Protocol(attacks=",".join(names)).names if any(names) else ()


_Group = dict[str, Any]
_List = BeforeValidator(lambda value: value if isinstance(value, list) else [value])
_Number = Annotated[float, BeforeValidator(number), Field(allow_inf_nan=False)]
_Positive = Annotated[_Number, _where(lambda v: v > 0, "a number above 0")]
_Seeds = _where(lambda s: 0 < len(s) == len({*s}), "different whole numbers like [0, 1]")
_Weights = _where(
    re.compile(r"model|last|rounds|round-\d+|learner-.+|gamma-.+").fullmatch,
    "names like model, round-005 or gamma-0.4",
)
_AtLeastOne = _where(len, "at least one attack, like pgd-100,autoattack")
_PLAN = {
    "title": str,
    "base": _Group,
    "published": Annotated[
        Any, _where(lambda v: isinstance(v, bool | str), "true or the name of a dataset")
    ],
    "budget": _Positive,
    "seeds": Annotated[list[Annotated[int, Field(ge=0)]], _Seeds],
    "entries": _Group,
    "grids": Annotated[list[EntryGrid], _where(lambda _: True, "a list of name, entry and over")],
    "only": list[str],
    "evaluate": _Group,
    "resources": _Group,
}
_JUDGED = {
    "attacks": Annotated[list[str], _List, AfterValidator(_attacks), _AtLeastOne],
    "n": PositiveInt,
    "first": bool,
    "individual": bool,
    "batch_size": PositiveInt,
    "precision": Precision,
    "eps": Annotated[
        list[Annotated[_Number, Field(ge=0)]],
        _List,
        _where(any, "radii >= 0, one of them > 0"),
    ],
    "weights": Annotated[list[Annotated[str, _Weights, AfterValidator(canonical)]], _List],
    "points": Annotated[int, Field(ge=2)],
    "cmmr": bool,
}
_PROTOCOL = ("attacks", "n", "first", "individual", "batch_size")
