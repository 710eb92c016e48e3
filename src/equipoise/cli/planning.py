"""``equipoise compare`` and ``reproduce``; imports inside functions keep ``--help`` quick."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli import options
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

COMPARE_EPILOG = """The plan:

\b
  title: Every method at an equal budget
  base: {data: fashion-mnist, model: small-cnn, eps: 0.1, keep: last}
  budget: 2500000
  seeds: [0, 1]
  entries:
    standard: {}
    pgd-at: {}
    pgd-at-averaged: {method: pgd-at, horizon: 2.5}
  evaluate: {attacks: "pgd-100,autoattack", n: 1000}

base has the settings of every entry. An entry has settings of a recipe; its method is by default
its name. budget is the number of gradient evaluations of a training: an entry without rounds
(epochs) gets budget / (gradient evaluations of an image x images of a round) rounds. `cost: 4.1`
in an entry gives the gradient evaluations of an image if they cannot be computed before the run.
evaluate may also have eps (one radius or a list), weights (like [model, rounds, gamma-0.4]),
individual, first, precision, batch_size, points (measure a front) and cmmr; the plan may also
have grids, only, published and resources (for --on).

On several machines that share DIR, give the same command on each, and none does what another
does; or give one command with --on: docs/scaling.md has SLURM, Dask and Ray.

DIR gets a run folder for each entry and seed, which report, verify and evaluate read, and
table.md, table.csv, results.json, report.html and logs/.
"""

REPRODUCE_EPILOG = """WHAT is one or several of:

\b
  table2    clean and robust accuracy of every method under every attack
  table3    the same on MNIST and SVHN at 8/255, and on MNIST at 0.3
  fig2      clean against AutoAttack accuracy, along training and the final gamma
  fig3      the composite score CMMR against eps (see docs/cmmr.md)
  fig4      CMMR as a radar at eps .04, .08, .12, .16
  fig5      the ablation over gamma and c
  controls  does the round (epoch) t' of the first merge matter?
  front     one a3gt run against one training for each trade-off
  settings  do the defaults of a3gt suit other datasets and networks?
  all       everything, on one page

Scales:

\b
  smoke     digits, in minutes: shows that everything runs
  cpu       Fashion-MNIST and MNIST with a small CNN, hours on two cores
  full      CIFAR-10, MNIST and SVHN with ResNet-18, as in the paper: for a GPU

DIR/SCALE gets trainings/ with a run folder for each model, which report, verify and evaluate
read; for each experiment a folder with its results.json, tables (Markdown, CSV, LaTeX) and
figures (SVG, PNG); and one page of all: index.html, and as Markdown results.md. This needs pandas:
pip install 'equipoise[paper]'.
"""


def compare(
    what: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="What to compare; see below.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the runs and the table.")
    ],
    on: options.On = None,
    workers: options.Workers = None,
    resources: options.Resources = None,
    data_dir: options.DataDir = None,
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
) -> None:
    """Train and evaluate many methods alike, and write one table.

    Ctrl-C saves and stops. The same command continues, also inside a training or an attack, and
    repeats nothing that is finished; also after kill -9.
    """
    from equipoise.plans.compare import compare as job

    job(
        what,
        out,
        on=options.place(on, workers),
        resources=resources,
        data_dir=data_dir,
        plan_only=plan,
        command=shlex.join(["equipoise", *sys.argv[1:]]),
        console=Console(quiet=quiet),
    )


def reproduce(
    what: Annotated[
        list[str], typer.Argument(metavar="WHAT...", help="Tables and figures, or all; see below.")
    ],
    scale: Annotated[str, typer.Option(help="smoke, cpu or full; see below.")] = "smoke",
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of everything.")] = Path(
        "runs/reproduce"
    ),
    only: Annotated[
        str | None,
        typer.Option(help="Entries, separated by commas, like a3gt,mix-at-*; default: all."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Use an .npz file as this dataset, like cifar10=mine.npz; may be repeated.",
        ),
    ] = None,
    on: options.On = None,
    workers: options.Workers = None,
    resources: options.Resources = None,
    data_dir: options.DataDir = None,
    slice_: Annotated[
        bool,
        typer.Option(
            "--slice",
            help="Cut every training to 2 rounds (epochs) of 512 images with an eighth of the "
            "width, every evaluation to 8 images: shows that a scale runs on this machine; the "
            "numbers mean nothing.",
        ),
    ] = False,
    plan: options.PlanOnly = False,
    quiet: options.Quiet = False,
) -> None:
    """Make the paper's tables and figures from own trainings.

    The plan is printed first: trainings, gradient evaluations, an estimate of the time. A training
    that several tables need is run once. Ctrl-C saves and stops; the same command continues, and
    repeats nothing that is finished; also after kill -9.
    """
    from equipoise.plans.reproduce import reproduce as job

    names = [name.strip() for name in (only or "").split(",") if name.strip()]
    if only is not None and not names:
        raise UserError(f"expected --only ENTRY,..., like a3gt,mix-at-*, got {only!r}")
    job(
        what,
        scale,
        out,
        only=names,
        files=_files(data or ()),
        on=options.place(on, workers),
        resources=resources,
        data_dir=data_dir,
        slice_=slice_,
        plan_only=plan,
        command=shlex.join(["equipoise", *sys.argv[1:]]),
        console=Console(quiet=quiet),
    )


def _files(given: Sequence[str]) -> dict[str, Path]:
    """Return the files that replace datasets, by the names of these."""
    files = {}
    for text in given:
        name, equals, file = text.partition("=")
        if not (name and equals and file.endswith(".npz")):
            raise UserError(f"expected --data NAME=FILE.npz, like cifar10=mine.npz, got {text!r}")
        files[name] = Path(file).expanduser().absolute()
    return files
