"""What several commands share."""

__all__ = [
    "Attacks",
    "BatchSize",
    "DataDir",
    "Device",
    "Eps",
    "First",
    "Norm",
    "Precision",
    "Quiet",
    "Seed",
    "Size",
    "Strict",
    "Trust",
    "console_of",
    "protocol_of",
    "radii_of",
    "refuse",
]

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.errors import RunError

if TYPE_CHECKING:
    from equipoise.evaluation.protocol import Protocol
    from equipoise.terminal.progress import Console

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the datasets; default: the places that `equipoise data` names."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Attacks = Annotated[
    str | None,
    typer.Option(
        help="Attacks, separated by commas; see `equipoise list attacks`. pgd-20 is PGD with 20 "
        "steps; options stand in brackets: square(queries=1000). Default of evaluate: fgsm, "
        "pgd-20, mi-fgsm-10 and cw-inf-30, as far as the norm has them; of front: two short "
        "APGD attacks."
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(help="Radii, separated by commas, like 8/255; default: that of the training."),
]
Norm = Annotated[str | None, typer.Option(help="linf, l2 or l1; default: that of the training.")]
Size = Annotated[
    int | None,
    typer.Option("-n", "--n", help="Take a stratified sample of N images; default: all."),
]
First = Annotated[bool, typer.Option("--first", help="With -n: take the first N images instead.")]
Seed = Annotated[int, typer.Option(help="Random seed of the attacks.")]
BatchSize = Annotated[
    int, typer.Option(help="Images attacked at a time; changes memory and time, not results.")
]
Precision = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the search: float32, bfloat16 or auto. Verdicts are always made "
        "in float32."
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 1 if a check of an evaluation failed.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings only.")]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the Python file of its owner that the folder names; otherwise no code of a "
        "folder is run.",
    ),
]


def console_of(quiet: bool) -> "Console":
    """Return where a command shows its progress."""
    from equipoise.terminal.progress import Console

    return Console(quiet=quiet)


def protocol_of(
    *, norm: str | None, precision: str, layout: str = "auto", compile_: bool = False, **more: Any
) -> "Protocol":
    """Return how a model is attacked, from options as they are written.

    Arguments:
        norm: The norm; None: that of the training.
        precision: Of the search, as are the next two.
        layout: Of images.
        compile_: Whether it is compiled.
        more: The other fields of a :class:`equipoise.evaluation.Protocol`.

    Raises:
        UserError: If an option will not do.
    """
    from equipoise.evaluation.protocol import Protocol
    from equipoise.execution import LAYOUTS, PRECISIONS, Execution
    from equipoise.parsing import check_seed, choice
    from equipoise.threat import NORMS

    check_seed(more.get("seed", 0), "--seed")
    return Protocol(
        norm=None if norm is None else choice(norm, "--norm", NORMS),
        execution=Execution(
            precision=choice(precision, "--precision", PRECISIONS),
            layout=choice(layout, "--layout", LAYOUTS),
            compile=compile_,
        ),
        **more,
    )


def radii_of(eps: str | None) -> list[float]:
    """Return the radii of ``--eps``; none: that of the training."""
    from equipoise.parsing import numbers

    return [] if eps is None else numbers(eps, "--eps")


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
