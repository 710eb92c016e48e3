"""What several commands share."""

__all__ = ["DataDir", "Quiet", "Trust", "console_of"]

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from equipoise.progress import Console

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the data; the usual places otherwise.")
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
    from equipoise.progress import Console

    return Console(quiet=quiet)
