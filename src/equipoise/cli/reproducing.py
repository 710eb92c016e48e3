"""``equipoise reproduce``. Heavy imports stand inside the command, so that ``--help`` is quick."""

__all__ = ["EPILOG", "reproduce"]

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.options import DataDir, Quiet, console_of
from equipoise.errors import UserError

EPILOG = """What there is:

\b
  table2    clean and robust accuracy of every method under every attack
  table3    the same on MNIST and SVHN at 8/255, and on MNIST at 0.3
  fig2      clean against AutoAttack accuracy, along training and the final gamma
  fig3      the composite score CMMR against eps (see docs/cmmr.md)
  fig4      CMMR as a radar at eps .04, .08, .12, .16
  fig5      the ablation over gamma and c
  controls  does it matter when the learners are synchronised?
  front     one run that holds a front against a training for each point of it
  settings  does one setting of a front serve all data sets and networks?
  all       everything, on one page

Scales:

\b
  smoke     digits, minutes: shows that everything runs
  cpu       Fashion-MNIST and MNIST with a small CNN, hours on two cores
  full      CIFAR-10, MNIST and SVHN with ResNet-18, as in the paper: for a GPU

DIR/SCALE gets trainings/ with a run folder for each model, which report, verify and evaluate
read; for each experiment a folder with its results.json, tables (Markdown, CSV, LaTeX) and
figures (SVG, PNG); and one page of all: index.html, and as Markdown results.md.
"""


def reproduce(
    what: Annotated[
        list[str], typer.Argument(metavar="WHAT...", help="Tables and figures, see below; or all.")
    ],
    scale: Annotated[str, typer.Option(help="smoke, cpu or full.")] = "smoke",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path(
        "runs/reproduce"
    ),
    only: Annotated[
        str | None, typer.Option(help="Entries, by commas, like a3gt,mix-at-*; all otherwise.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Take an .npz file in the place of a data set, like cifar10=mine.npz; may be "
            "repeated.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Runs side by side, each with its share of the threads.")
    ] = 1,
    data_dir: DataDir = None,
    slice_: Annotated[
        bool,
        typer.Option(
            "--slice",
            help="Cut every training to 2 rounds of 512 images with an eighth of the width, every "
            "evaluation to 8 images: shows that a scale runs here; the numbers mean nothing.",
        ),
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what is to be done and what is done; stop there.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Draw the paper's tables and figures from runs of your own.

    The plan comes first: runs, gradient evaluations, a rough time. Runs that several of them need
    are made once. Ctrl-C saves and stops; the same command goes on, and does nothing again that
    is finished; also after kill -9.
    """
    from equipoise.plans.reproduce import reproduce as job

    job(
        what,
        scale,
        out,
        only=[name.strip() for name in (only or "").split(",") if name.strip()],
        files=_files(data or ()),
        workers=workers,
        data_dir=data_dir,
        slice_=slice_,
        plan_only=plan,
        command=shlex.join(["equipoise", *sys.argv[1:]]),
        console=console_of(quiet),
    )


def _files(given: Sequence[str]) -> dict[str, Path]:
    """Return the files that are taken in the place of data sets, by their names."""
    found = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file.endswith(".npz")):
            raise UserError(f"expected --data NAME=FILE.npz, like cifar10=mine.npz, got {text!r}")
        found[name] = Path(file).expanduser().absolute()
    return found
