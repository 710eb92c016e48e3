"""Commands that messages send a user on with: they work as they stand."""

__all__ = ["command"]

import os
import shlex

from equipoise.own import VARIABLE


def command(*words: object) -> str:
    """Return a command line, quoted for a shell, with the ``--import`` of this process.

    Arguments:
        words: What stands after ``equipoise``.

    Example:
        >>> command("evaluate", "runs/my run")
        "equipoise evaluate 'runs/my run'"
    """
    file = os.environ.get(VARIABLE)
    given = ("--import", file) if file else ()
    return shlex.join(["equipoise", *given, *map(str, words)])
