"""The two ways a job can fail, and the exit code each one has on the command line."""

__all__ = ["RunError", "UserError", "nearest", "short"]

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class UserError(ValueError):
    """What was asked for cannot be done: one line with the remedy, exit code 2."""


class RunError(RuntimeError):
    """A job that was fine to start failed on its way: one line, exit code 1, nothing lost.

    Where an evaluation failed, ``result`` is what it had found.
    """

    result: Any = None


def short(value: object, most: int = 80) -> str:
    """Return a value as it is written in Python, cut where it would not fit in a message."""
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes out
        text = f"a number of {type(value).__name__}"
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """Return the message for an unknown name, with the nearest known one.

    Arguments:
        name: What the user wrote.
        known: The names that exist.
        what: The kind of thing that is named, e.g. ``"method"``.
    """
    names = sorted(known)
    close = get_close_matches(name[:100], names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {short(name)}{hint} (known: {', '.join(names)})"
