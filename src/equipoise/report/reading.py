"""Files of a run as checked values; what is wrong with one is said with its name."""

__all__ = ["Numbers", "budget", "mapping", "numbers"]

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from equipoise.errors import UserError
from equipoise.parsing import reason

Numbers = Mapping[str, float]


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
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); restore it or remove it") from error
    if value is None:  # an empty file: a run that stopped before it began
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping, got {type(value).__name__}; restore it")
    return value


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
