"""Files of a run as checked values; what is wrong with one is said with its name."""

__all__ = ["Numbers", "budget", "checked", "lines", "mapping", "numbers", "reason"]

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from equipoise.errors import UserError

Numbers = Mapping[str, float]
T = TypeVar("T")


def mapping(path: Path, parse: Callable[[str], object]) -> dict[str, Any]:
    """Return the mapping that a file holds; of an absent or empty file nothing.

    Arguments:
        path: The file.
        parse: What turns its text into a value.

    Raises:
        UserError: where the file is damaged or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); restore it or remove it") from error
    if value is None:  # an empty file: a run that stopped before it began
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping, got {type(value).__name__}; restore it")
    return value


def lines(path: Path, parse: Callable[[Any], T], notes: list[str]) -> list[T]:
    """Return the values of a file of JSON lines; a last line that was cut short is noted.

    Arguments:
        path: The file; absent, it has no lines.
        parse: What turns a line's JSON into a value.
        notes: What the reader should know is added here.

    Raises:
        UserError: where a line is damaged.
    """
    if not path.is_file():
        return []
    written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found: list[T] = []
    for number, line in enumerate(written, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            if number < len(written):
                raise UserError(
                    f"{path}, line {number} is not JSON; repair or remove it"
                ) from error
            notes.append(f"The last line of {path.name} was cut short and is left out.")
            continue
        found.append(checked(f"{path}, line {number}", parse, value))
    return found


def checked(where: object, parse: Callable[[Any], T], value: object) -> T:
    """Return what a value stands for.

    Raises:
        UserError: naming ``where``, if the value is not as expected.
    """
    try:
        return parse(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not as expected ({reason(error)}); repair or remove it"
        ) from error


def reason(error: Exception) -> str:
    """Return in a line what an error says."""
    if isinstance(error, KeyError):
        return f"no {error}"
    return f"{error}".strip().splitlines()[0] if f"{error}".strip() else type(error).__name__


def budget(value: object) -> float | None:
    """Return a budget from a number or a fraction such as ``8/255``; None where it is neither."""
    if isinstance(value, str):
        top, _, bottom = value.partition("/")
        try:
            return float(top) / float(bottom or 1)
        except (ValueError, ZeroDivisionError):
            return None
    return float(value) if isinstance(value, int | float) else None


def numbers(value: Mapping[str, Any] | None) -> Numbers:
    """Return the finite numbers of a mapping."""
    pairs = (value or {}).items()
    return {k: float(v) for k, v in pairs if isinstance(v, int | float) and math.isfinite(v)}
