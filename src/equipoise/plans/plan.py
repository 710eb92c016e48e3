"""Plans as YAML: which models are trained, and how each of them is judged.

``equipoise compare`` reads such a file, and the tables and figures of the paper are such plans
(:mod:`equipoise.plans.reproductions`).

==============  ==============================================================================
title           the title of the table
base            settings under every entry, as a recipe has them
published       lay base and entries over the published settings of the methods: ``true``, or
                the name of the dataset whose settings are meant
budget          gradient evaluations of a training: they give the rounds where an entry does not
seeds           the seeds with which each entry is trained
entries         a recipe by name, without a seed; ``method`` is the name by default, and ``cost``
                is what an image is expected to cost in a round, where only the run shows that
grids           entries made of all combinations of some settings: ``name``, ``entry``, ``over``
only            names of the entries that are taken, with ``*`` for any ending; all by default
evaluate        how the models are judged, see below
==============  ==============================================================================

and in ``evaluate``, beside ``attacks``, ``n``, ``first``, ``individual``, ``batch_size`` and
``precision`` as for ``equipoise evaluate``:

==============  ==============================================================================
eps             the radius or radii; 0 is the clean accuracy; by default that of the training
weights         weights of a run folder (:mod:`equipoise.store.weight_names`); ``rounds`` means
                those of all rounds that were kept. Mixes like ``gamma-0.4`` are taken of runs
                with a clean and a robust learner alone
points          measure so many models between the two learners on held-out training images, as
                ``equipoise front`` does, instead of any model on test images
cmmr            compute the composite score of :mod:`equipoise.measures.cmmr`
==============  ==============================================================================
"""

__all__ = ["MANY_ROUNDS", "Entry", "Judging", "Plan", "parse", "read"]

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Self

from equipoise.errors import UserError, nearest, short
from equipoise.evaluation import Protocol
from equipoise.execution import Execution
from equipoise.parsing import mapping, number
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import lay
from equipoise.store.weight_names import canonical
from equipoise.threat import Threat

MANY_ROUNDS = 1_000_000  # a recipe is checked before its rounds are known: more than any start
KEYS = ("title", "base", "published", "budget", "seeds", "entries", "grids", "only", "evaluate")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WEIGHTS = re.compile(r"model|last|rounds|round-\d+|learner-.+|gamma-.+")


@dataclass(frozen=True, kw_only=True)
class Judging:
    """How every model of a plan is judged.

    Arguments:
        protocol: How it is attacked; norm and radius are those of the training or of ``eps``.
        eps: The radii; none: that of the training.
        weights: Which weights of a run.
        points: How many models between two learners are measured on held-out images, instead of
            any on test images; None: the other way round.
        cmmr: Whether the composite score is computed.
    """

    protocol: Protocol
    eps: tuple[float, ...] = ()
    weights: tuple[str, ...] = ("model",)
    points: int | None = None
    cmmr: bool = False


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method of a plan with its settings.

    Arguments:
        name: Its name in the table and in its run folders.
        settings: Its recipe as it is given, that of the base included.
        cost: The gradient evaluations of an image in a round, for the budget; None: those of
            the objectives.
    """

    name: str
    settings: Mapping[str, Any]
    cost: float | None = None

    @property
    def rounds(self) -> int | None:
        """Return the rounds that are given; None: they follow from the budget."""
        return self.settings.get("rounds")

    def recipe(self, *, rounds: int | None = None, seed: int = 0) -> Recipe:
        """Return the recipe of one run; ``rounds`` where none are given, or the recipes' own."""
        settings = {k: v for k, v in self.settings.items() if k != "rounds" or v is not None}
        given = {"rounds": rounds} if rounds is not None else {}
        return recipes.parse({**given, **settings, "seed": seed})


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which models are trained, and how they are judged.

    Arguments:
        entries: The methods, in the order of the table.
        judging: How their models are evaluated.
        seeds: The seeds with which each is trained.
        budget: The gradient evaluations of a training; None: the recipes give the rounds.
        title: The title of the table.
        name: A short name, the folder of its runs; empty for the only plan of a folder.
    """

    entries: tuple[Entry, ...]
    judging: Judging
    seeds: tuple[int, ...] = (0,)
    budget: float | None = None
    title: str = "Comparison"
    name: str = ""

    def only(self, patterns: Sequence[str]) -> Self:
        """Return the plan with those entries alone that match a pattern, in their order."""
        entries = (e for e in self.entries if any(fnmatchcase(e.name, p) for p in patterns))
        return replace(self, entries=tuple(entries))


def read(path: Path) -> Plan:
    """Return the plan in a YAML file.

    Raises:
        UserError: If it is not there or not a plan, with every error at once.
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
    problems = [nearest(str(key), KEYS, "key of a plan") for key in given if key not in KEYS]
    base = _mapping(given.get("base"), "base", problems)
    if "seed" in base:
        problems.append("base.seed: the seeds are those of `seeds`")
    budget = _positive(given.get("budget"), "budget", problems)
    if budget is not None and "rounds" in base:
        problems.append("expected base.rounds or budget, got both; leave one out")
    judging = _judging(_mapping(given.get("evaluate"), "evaluate", problems), problems)
    entries = _entries(given, base, judging, problems)
    seeds = given.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not whole or not seeds or len(set(seeds)) < len(seeds):
        problems.append(f"seeds: expected different whole numbers like [0, 1], got {seeds!r}")
    title = given.get("title", Plan.title)
    if not isinstance(title, str):
        problems.append(f"title: expected text, got {title!r}")
    if problems:
        raise UserError("; ".join(problems))
    return Plan(
        entries=entries,
        judging=judging,
        seeds=tuple(seeds),
        budget=budget,
        title=title,
        name=name,
    )


def _entries(
    given: Mapping[str, Any], base: Mapping[str, Any], judging: Judging, problems: list[str]
) -> tuple[Entry, ...]:
    """Return the entries, each of them with a recipe that is valid."""
    named = dict(_mapping(given.get("entries"), "entries", problems))
    for grid in _list(given.get("grids"), "grids", Mapping, problems):
        named |= dict(_grid(grid, problems))
    if not named and isinstance(given.get("entries"), Mapping | None):
        problems.append("entries: expected at least one method, like `pgd-at: {}`")
    data = given.get("published")
    data = base.get("data") if data is True else data
    made = {n: _entry(n, own, base, data or None, problems) for n, own in named.items()}
    entries = [entry for entry in made.values() if entry is not None]
    wrong = dict[str, list[str]]()
    for entry in entries:
        try:
            rounds = entry.rounds if entry.rounds is not None else MANY_ROUNDS
            recipe = entry.recipe(rounds=rounds)
            replace(judging.protocol, norm=recipe.norm)
        except UserError as error:
            wrong.setdefault(str(error), []).append(entry.name)
    for message, names in wrong.items():
        every = len(names) == len(named) > 1
        problems.append(f"{'every entry' if every else ', '.join(names)}: {message}")
    return tuple(_chosen(entries, given.get("only"), problems))


def _chosen(entries: Sequence[Entry], only: Any, problems: list[str]) -> list[Entry]:
    """Return the entries that match a pattern, in the order of the patterns."""
    if only is None:
        return list(entries)
    chosen = dict[str, Entry]()
    for pattern in _list(only, "only", str, problems):
        matching = {e.name: e for e in entries if fnmatchcase(e.name, pattern)}
        if not matching:
            problems.append(f"only: {nearest(pattern, [e.name for e in entries], 'entry')}")
        chosen = {**chosen, **{n: e for n, e in matching.items() if n not in chosen}}
    return list(chosen.values())


def _entry(
    name: Any, given: Any, base: Mapping[str, Any], data: Any, problems: list[str]
) -> Entry | None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        problems.append(
            f"entries: expected a name of letters, digits, dots and hyphens, got {name!r}"
        )
        return None
    own = dict(_mapping(given, f"entries.{name}", problems))
    if "seed" in own:
        problems.append(f"entries.{name}.seed: the seeds are those of `seeds`")
    cost = _positive(own.pop("cost", None), f"entries.{name}.cost", problems)
    settings = recipes.combine({"method": name}, base, own)
    if data is not None:
        try:
            settings = recipes.published(settings["method"], data).under(settings)
        except UserError as error:
            problems.append(f"entries.{name}: {error}")
    settings.pop("seed", None)
    return Entry(name=name, settings=settings, cost=cost)


def _grid(grid: Mapping[str, Any], problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an entry for each combination of a grid, with its name."""
    if {*grid} != {"name", "entry", "over"}:
        problems.append(f"grids: expected name, entry and over, got {', '.join(map(str, grid))}")
        return
    over = _mapping(grid["over"], "grids.over", problems)
    lists = [_list(values, f"grids.over.{key}", object, problems) for key, values in over.items()]
    for values in product(*lists):
        name, entry = str(grid["name"]), dict(_mapping(grid["entry"], "grids.entry", problems))
        for key, value in zip(over, values, strict=True):
            text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
            name = name.replace(f"{{{key}}}", text)
            for group in reversed(key.split(".")):
                value = {group: value}
            entry = lay(entry, value)
        yield name, entry


def _judging(given: Mapping[str, Any], problems: list[str]) -> Judging:
    """Return how the models are judged; by no attacks where something is wrong."""
    wrong = [nearest(str(k), _READERS, "key of evaluate") for k in given if k not in _READERS]
    values = dict[str, Any]()
    for key, value in ({"attacks": ""} | dict(given)).items():
        if value is not None and key in _READERS:
            try:
                values[key] = _READERS[key](value)
            except UserError as error:
                wrong.append(f"evaluate.{key}: {error}")
    if wrong:
        problems += wrong
        return Judging(protocol=Protocol(attacks=()))
    own = {key: values.pop(key) for key in _OWN if key in values}
    if "precision" in values:
        values["execution"] = Execution(precision=values.pop("precision"))
    return Judging(protocol=Protocol(**values), **own)


def _attacks(value: Any) -> tuple[str, ...]:
    several = isinstance(value, list) and all(isinstance(item, str) for item in value)
    if not value or not (isinstance(value, str) or several):
        what = repr(value) if value else "nothing"
        raise UserError(f'expected names like "pgd-100,autoattack", got {what}')
    names = Protocol(attacks=value).names
    if not names:
        raise UserError(f"expected at least one attack, got {value!r}")
    return names


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UserError(f"expected true or false, got {value!r}")
    return value


def _radii(value: Any) -> tuple[float, ...]:
    radii = [number(item) for item in (value if isinstance(value, list) else [value])]
    for radius in radii:
        if isinstance(radius, bool) or not isinstance(radius, int | float) or radius:
            Threat("linf", radius)
    if not any(radii):
        raise UserError(f"expected a radius above 0, got {value!r}")
    return tuple(map(float, radii))


def _weights(value: Any) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [value]
    for name in names:
        if not isinstance(name, str) or not _WEIGHTS.fullmatch(name):
            raise UserError(f"expected names like model, round-005 or gamma-0.4, got {name!r}")
    return tuple(map(canonical, names))


def _whole(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise UserError(f"expected a whole number of at least {least}, got {value!r}")
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "attacks": _attacks,
    "n": _whole,
    "first": _flag,
    "individual": _flag,
    "batch_size": _whole,
    "precision": lambda value: Execution(precision=value).precision,
    "eps": _radii,
    "weights": _weights,
    "points": partial(_whole, least=2),
    "cmmr": _flag,
}
_OWN = ("eps", "weights", "points", "cmmr")  # the others are fields of a protocol


def _list(value: Any, where: str, kind: type, problems: list[str]) -> list[Any]:
    """Return a list of things of a kind; an empty one where it is none."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        problems.append(f"{where}: expected a list, got {short(value)}")
        return []
    return value


def _mapping(given: Any, where: str, problems: list[str]) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        problems.append(f"{where}: expected a mapping, got {given!r}")
        return {}
    return given


def _positive(given: Any, where: str, problems: list[str]) -> float | None:
    value = number(given)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        problems.append(f"{where}: expected a number above 0, got {given!r}")
        return None
    return float(value)
