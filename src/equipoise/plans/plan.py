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

from equipoise.errors import UserError, nearest
from equipoise.evaluation.protocol import Protocol
from equipoise.execution import Execution
from equipoise.parsing import mapping, number
from equipoise.settings import recipe as recipes
from equipoise.settings.presets import published
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import lay
from equipoise.store.weight_names import canonical
from equipoise.threat import Threat

MANY_ROUNDS = 1_000_000  # a recipe is checked before its rounds are known: more than any start
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
    problems = list[str]()
    values = _values(given, _PLAN, "", "key of a plan", problems)
    base = values.get("base", {})
    if "seed" in base:
        problems.append("base.seed: the seeds are those of `seeds`")
    if "budget" in values and "rounds" in base:
        problems.append("expected base.rounds or budget, got both; leave one out")
    judging = _judging(values.get("evaluate", {}), problems)
    if "entries" in values or not given.get("entries"):
        entries = _entries(values, judging, problems)
    if problems:
        raise UserError("; ".join(problems))
    own = {key: values[key] for key in ("title", "budget", "seeds") if key in values}
    return Plan(entries=entries, judging=judging, name=name, **own)


def _values(
    given: Mapping[str, Any],
    readers: Mapping[str, Callable[[Any], Any]],
    where: str,
    what: str,
    problems: list[str],
) -> dict[str, Any]:
    """Return the values of a mapping, each read by its function; errors go to the problems."""
    problems += [nearest(str(key), readers, what) for key in given if key not in readers]
    values = dict[str, Any]()
    for key, value in given.items():
        if key in readers and value is not None:
            try:
                values[key] = readers[key](value)
            except UserError as error:
                problems.append(f"{where}{key}: {error}")
    return values


def _entries(
    values: Mapping[str, Any], judging: Judging, problems: list[str]
) -> tuple[Entry, ...]:
    """Return the entries that are chosen, each of them with a recipe that is valid."""
    named, base = dict(values.get("entries", {})), values.get("base", {})
    for grid in values.get("grids", ()):
        named |= dict(_grid(grid))
    if not named:
        problems.append("entries: expected at least one method, like `pgd-at: {}`")
    data = values.get("published")
    data = base.get("data") if data is True else data or None
    wrong, entries = dict[str, list[str]](), list[Entry]()
    for name, own in named.items():
        try:
            entries.append(_entry(name, own, base, data, problems))
            rounds = MANY_ROUNDS if entries[-1].rounds is None else entries[-1].rounds
            replace(judging.protocol, norm=entries[-1].recipe(rounds=rounds).norm)
        except UserError as error:
            wrong.setdefault(str(error), []).append(str(name))
    for message, names in wrong.items():
        every = len(names) == len(named) > 1
        problems.append(f"{'every entry' if every else ', '.join(names)}: {message}")
    only, known = values.get("only", ["*"] if entries else []), [e.name for e in entries]
    lost = [pattern for pattern in only if not any(fnmatchcase(n, pattern) for n in known)]
    problems += [f"only: {nearest(pattern, known, 'entry')}" for pattern in lost]
    chosen = {e.name: e for pattern in only for e in entries if fnmatchcase(e.name, pattern)}
    return tuple(chosen.values())


def _entry(
    name: Any, given: Any, base: Mapping[str, Any], data: str | None, problems: list[str]
) -> Entry:
    """Return an entry with all that lies under it.

    Raises:
        UserError: If there can be none; what else is wrong goes to the problems.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"expected a name of letters, digits, dots and hyphens, got {name!r}")
    own = dict(_mapping({} if given is None else given))
    if "seed" in own:
        problems.append(f"entries.{name}.seed: the seeds are those of `seeds`")
    cost = {"cost": own.pop("cost", None)}
    cost = _values(cost, {"cost": _positive}, f"entries.{name}.", "", problems)
    settings = recipes.combine({"method": name}, base, own)
    if data is not None:
        settings = published(settings["method"], data).under(settings)
    settings.pop("seed", None)
    return Entry(name=name, settings=settings, **cost)


def _grid(grid: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield an entry for each combination of a grid, with its name."""
    for values in product(*grid["over"].values()):
        name, entry = grid["name"], dict(grid["entry"])
        for key, value in zip(grid["over"], values, strict=True):
            text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
            name = name.replace(f"{{{key}}}", text)
            for group in reversed(key.split(".")):
                value = {group: value}
            entry = lay(entry, value)
        yield name, entry


def _judging(given: Mapping[str, Any], problems: list[str]) -> Judging:
    """Return how the models are judged; by no attacks where something is wrong."""
    wrong = list[str]()
    values = _values(
        {"attacks": ""} | dict(given), _JUDGING, "evaluate.", "key of evaluate", wrong
    )
    if wrong:
        problems += wrong
        return Judging(protocol=Protocol(attacks=()))
    own = {key: values.pop(key) for key in _OWN if key in values}
    if "precision" in values:
        values["execution"] = Execution(precision=values.pop("precision"))
    return Judging(protocol=Protocol(**values), **own)


# Readers of values: each returns what it is given, checked, or raises a UserError.


def _attacks(value: Any) -> tuple[str, ...]:
    if not value:
        raise UserError('expected names like "pgd-100,autoattack", got nothing')
    names = Protocol(attacks=value if isinstance(value, str) else _texts(value)).names
    if not names:
        raise UserError(f"expected at least one attack, got {value!r}")
    return names


def _reader(kind: type, what: str) -> Callable[[Any], Any]:
    """Return a reader of values of one kind."""

    def read(value: Any) -> Any:
        if not isinstance(value, kind):
            raise UserError(f"expected {what}, got {value!r}")
        return value

    return read


_flag, _list = _reader(bool, "true or false"), _reader(list, "a list")
_mapping, _text = _reader(Mapping, "a mapping"), _reader(str, "text")


def _texts(value: Any) -> list[str]:
    return list(map(_text, _list(value)))


def _whole(value: Any, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise UserError(f"expected a whole number of at least {least}, got {value!r}")
    return value


def _positive(value: Any) -> float:
    given = number(value)
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
        raise UserError(f"expected a number above 0, got {value!r}")
    return float(given)


def _seeds(value: Any) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(type(seed) is int and seed >= 0 for seed in value)
    if not whole or not value or len(set(value)) < len(value):
        raise UserError(f"expected different whole numbers like [0, 1], got {value!r}")
    return tuple(value)


def _grids(value: Any) -> list[Mapping[str, Any]]:
    for grid in map(_mapping, _list(value)):
        if {*grid} != {"name", "entry", "over"}:
            raise UserError(f"expected name, entry and over, got {', '.join(map(str, grid))}")
        _text(grid["name"]), _mapping(grid["entry"])
        list(map(_list, _mapping(grid["over"]).values()))
    return list(value)


def _radii(value: Any) -> tuple[float, ...]:
    radii = [number(item) for item in (value if isinstance(value, list) else [value])]
    for radius in radii:
        if isinstance(radius, bool) or not isinstance(radius, int | float) or radius:
            Threat("linf", radius)
    if not any(radii):
        raise UserError(f"expected a radius above 0, got {value!r}")
    return tuple(map(float, radii))


def _weights(value: Any) -> tuple[str, ...]:
    names = _texts(value if isinstance(value, list) else [value])
    for name in names:
        if not _WEIGHTS.fullmatch(name):
            raise UserError(f"expected names like model, round-005 or gamma-0.4, got {name!r}")
    return tuple(map(canonical, names))


_PLAN: Mapping[str, Callable[[Any], Any]] = {
    "title": _text,
    "base": _mapping,
    "published": lambda value: value if isinstance(value, bool) else _text(value),
    "budget": _positive,
    "seeds": _seeds,
    "entries": _mapping,
    "grids": _grids,
    "only": _texts,
    "evaluate": _mapping,
}
_JUDGING: Mapping[str, Callable[[Any], Any]] = {
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
