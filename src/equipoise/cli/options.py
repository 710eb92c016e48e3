"""What several commands share."""

__all__ = ["DataDir", "Quiet", "Strict", "Trust", "console_of", "refuse"]

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from equipoise.errors import RunError

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the data; the usual places otherwise.")
]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 1 if a check of an evaluation failed.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but warnings.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the code of its owner that the folder names; without it no folder runs any.",
    ),
]


def console_of(quiet: bool) -> "Console":
    """Return where a command shows its progress."""
    from equipoise.terminal.progress import Console

    return Console(quiet=quiet)


def refuse(strict: bool, failed: Iterable[str]) -> None:
    """End with exit code 1 where checks have failed and that is asked for.

    Arguments:
        strict: Whether it is.
        failed: The failed checks, each with its evaluation.

    Raises:
        RunError: If there are any.
    """
    found = list(dict.fromkeys(failed))
    if strict and found:
        raise RunError(f"--strict: failed checks: {', '.join(found)}")
