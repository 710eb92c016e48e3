"""The space of a sweep: the settings that are searched, and the values of each.

A setting has a list of values, or a range ``{low, high}``, with ``log: true`` on a logarithmic
scale, or with a ``step``. Names are those of a recipe, with dots (``robust.beta``) or as groups.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from equipoise.errors import UserError, nearest, short
from equipoise.parsing import mapping, number
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import lay

COMPARED = (
    *("method", "data", "data_dir", "size", "resize", "channels", "on_bad_image", "labels"),
    *("classes", "norm", "eps", "limit", "subset", "validation", "validation_attack", "reserve"),
    *("seed", "device", "more", "more_gamma", "precision", "update", "layout", "compile"),
)
"""What all trials have in common, so that they can be compared."""

_RANGE = ("low", "high", "log", "step")
_EXPECTED = "expected a list like [1, 3, 6], or a range like {low: 1, high: 6}"
_UNKNOWN = "unknown setting"


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """The values that a setting may have: ``choices``, or if these are empty, a range.

    Arguments:
        choices: The values of a list.
        low: The smallest value; a whole number if all values are to be whole numbers.
        high: The largest value.
        log: Whether values are drawn on a logarithmic scale.
        step: The distance of two values; None: there may be any value between.
    """

    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(in_words, self.choices))
        scale = ", logarithmic" if self.log else ""
        whole = ", whole numbers" if isinstance(self.low, int) and self.step in (None, 1) else ""
        step = "" if self.step is None or whole else f", in steps of {self.step:g}"
        return f"{self.low:g} to {self.high:g}{scale}{whole}{step}"

    @property
    def probes(self) -> tuple[Any, ...]:
        """Return values that show whether all others are valid."""
        return self.choices or (self.low, self.high)

    def content(self) -> Mapping[str, Any]:
        """Return it as JSON has it."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {key: value for key, value in asdict(self).items() if key in _RANGE}


Space = Mapping[str, Dimension]


def read(path: Path, base: Mapping[str, Any], fixed: Collection[str] = ()) -> dict[str, Dimension]:
    """Return the space in a YAML file.

    Arguments:
        path: The file.
        base: The settings of a recipe that are the same for all trials, method included.
        fixed: The names of settings that may not be searched, because they are given.

    Raises:
        UserError: If it does not exist or does not fit the method, with every error at once.
    """
    return parse(mapping(path, "space"), base, fixed)


def parse(
    given: Mapping[str, Any], base: Mapping[str, Any], fixed: Collection[str] = ()
) -> dict[str, Dimension]:
    """Return the space that a mapping describes; see :func:`read`."""
    problems, space = list[str](), dict[str, Dimension]()
    for name, values in _flat(given):
        wrong = _refused(name, fixed)
        dimension, errors = _dimension(values)
        problems += [f"{name}: {line}" for line in (*wrong, *errors)]
        if dimension is not None and not wrong:
            space[name] = dimension
        elif not wrong and (line := _invalid(base, {name: 1}, {})).startswith(_UNKNOWN):
            problems.append(line)
    if not given:
        problems.append(f"the space is empty; {_EXPECTED} for a setting")
    first = {name: dimension.probes[0] for name, dimension in space.items()}
    for name, dimension in space.items():
        errors = [_invalid(base, {name: value}, first) for value in dimension.probes]
        lines = dict.fromkeys(error for error in errors if error)
        named = (_UNKNOWN, name, name.rpartition(".")[2])
        problems += [line if line.startswith(named) else f"{name}: {line}" for line in lines]
        if not lines:
            space[name] = _settled(name, dimension, base, first)
    if any(line.startswith(_UNKNOWN) for line in problems):
        problems.append(f"settings that can be searched: {', '.join(searchable(base))}")
    if not problems and (line := _invalid(base, first, first)):
        problems.append(line)
    if problems:
        raise UserError("; ".join(problems))
    return space


def usual(base: Mapping[str, Any], fixed: Collection[str] = ()) -> dict[str, Dimension]:
    """Return a small space for a method: around its defaults, and what trades clean for robust.

    It has the learning rate and the weight decay; and ``beta`` or ``weight`` of a method of one
    learner that has it.
    """
    learners = recipes.parse(base).settings.learners
    learner = next(iter(learners.values()))
    values = {"lr": learner.step_size, "weight_decay": learner.weight_decay}
    ranges: dict[str, dict[str, Any]] = {
        name: {"low": value / 4, "high": value * 4, "log": True}
        for name, value in values.items()
        if value > 0
    }
    if len(learners) == 1 and hasattr(learner, "beta"):
        ranges["beta"] = {"low": 1.0, "high": 12.0, "log": True}
    elif len(learners) == 1 and hasattr(learner, "weight"):
        ranges["weight"] = {"low": 0.2, "high": 0.95}
    given = {name.rpartition(".")[2] for name in fixed}
    return parse({name: each for name, each in ranges.items() if name not in given}, base)


def recipe_with(base: Mapping[str, Any], values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with some values of the searched settings.

    Raises:
        UserError: If it is not valid.
    """
    given: dict[str, Any] = {}
    for name, value in values.items():
        given = lay(given, _nested(name, value))
    return recipes.parse(recipes.combine(base, given))


def in_words(value: Any) -> str:
    """Return a value of a setting for a table."""
    if isinstance(value, float):
        return f"{value:.3g}"
    plain = {None: "none", True: "true", False: "false"}
    return plain[value] if value is None or isinstance(value, bool) else str(value)


def searchable(base: Mapping[str, Any]) -> list[str]:
    """Return the names of the settings of a method that may be searched."""
    names = (name for name, _ in _flat(recipes.defaults(base["method"])))
    return [name for name in names if not _refused(name)]


def _refused(name: str, fixed: Collection[str] = ()) -> list[str]:
    """Return why a setting cannot be searched."""
    parts = name.split(".")
    if any(f".{a}".endswith(f".{b}") for each in fixed for a, b in ((name, each), (each, name))):
        return ["it is given as key=value, too; leave out one of them"]
    if parts[0] == "seed":
        return ["the best of several seeds is luck; give one with --seed"]
    if parts[0] in COMPARED or parts[-1] in ("norm", "eps"):
        return [
            "all trials need the same, to be compared: give it as key=value, or with its option"
        ]
    return []


def _flat(given: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings in a mapping with their names, groups written with dots."""
    for key, value in given.items():
        if isinstance(value, Mapping) and value and not {*value} & {*_RANGE}:
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _nested(name: str, value: Any) -> Mapping[str, Any]:
    """Return a setting as a recipe has it, in its groups."""
    for group in reversed(name.split(".")):
        value = {group: value}
    return dict(value)


def _dimension(values: Any) -> tuple[Dimension | None, list[str]]:
    """Return the values of a setting; None: with the reasons why there are none."""
    if isinstance(values, list):
        choices = [number(value) for value in values]
        twice = [value for i, value in enumerate(choices) if value in choices[:i]]
        problems = [f"{short(value)} is given twice" for value in twice]
        problems += [] if choices else ["expected at least one value, got []"]
        return (None, problems) if problems else (Dimension(choices=tuple(choices)), [])
    if not isinstance(values, Mapping) or not values:
        return None, [f"{_EXPECTED}, got {short(values)}"]
    problems = [nearest(str(key), _RANGE, "key of a range") for key in values if key not in _RANGE]
    log = values.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"log: expected true or false, got {short(log)}")
    given = {key: number(values[key]) for key in ("low", "high", "step") if key in values}
    problems += [
        f"a range has low and high, {key} is missing" for key in _RANGE[:2] if key not in given
    ]
    problems += [
        f"{key}: expected a number, got {short(value)}"
        for key, value in given.items()
        if isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
    ]
    if problems:
        return None, problems
    return _range(given["low"], given["high"], log, given.get("step"))


def _range(
    low: float, high: float, log: bool, step: float | None
) -> tuple[Dimension | None, list[str]]:
    """Return a range of numbers; None: with the reasons why it is none."""
    problems = []
    if low >= high:
        problems.append(f"low must be below high, got low: {low:g}, high: {high:g}")
    elif step is not None and not 0 < step <= high - low:
        problems.append(
            f"step must be above 0 and at most high - low = {high - low:g}, got {step:g}"
        )
    if log and low <= 0:
        problems.append(f"log: true needs low above 0, got {low:g}")
    if log and step is not None:
        problems.append("give only one of log: true and step")
    if problems:
        return None, problems
    if step is not None:
        high = low + step * math.floor((high - low) / step + 1e-9)  # the largest value there is
    if not all(isinstance(value, int) for value in (low, high, step or 0)):
        low, high = float(low), float(high)
    return Dimension(low=low, high=high, log=log, step=step), []


def _settled(
    name: str, dimension: Dimension, base: Mapping[str, Any], first: Mapping[str, Any]
) -> Dimension:
    """Return a range between whole numbers, of a setting that may have others, as one of all."""
    low, high = dimension.low, dimension.high
    if dimension.choices or dimension.step is not None or not isinstance(low, int):
        return dimension
    if _invalid(base, {name: low + 0.5}, first):
        return dimension
    return Dimension(low=float(low), high=float(high), log=dimension.log)


def _invalid(base: Mapping[str, Any], values: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """Return why values are not valid, alone and with the first value of all other settings."""
    lines = list[str]()
    for others in ({}, first):
        try:
            recipe_with(base, {**others, **values})
        except UserError as error:
            lines.append(str(error))
        else:
            return ""
    return lines[0]
