"""``equipoise compare``. Heavy imports stand inside the command, so that ``--help`` is quick."""

__all__ = ["EPILOG", "compare"]

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.options import DataDir, console_of

EPILOG = """The plan:

\b
  title: Every method at an equal budget
  base: {data: fashion-mnist, model: small-cnn, eps: 0.1, keep: last}
  budget: 2500000
  seeds: [0, 1]
  entries:
    standard: {}
    pgd-at: {}
    pgd-at-averaged: {method: pgd-at, alpha: 0.995}
  evaluate: {attacks: "pgd-100,autoattack", n: 1000}

base is laid under every entry; an entry holds what a recipe may say, and its method is by default
its name. budget is the gradient evaluations of a training: rounds that an entry does not give are
budget / (cost of an image in a round x images of a round); `cost: 4.1` in an entry is what an
image is expected to cost, where that shows only in the run. evaluate may also hold eps (one
radius or a list), weights (like [model, rounds, gamma-0.4]), individual, first, precision,
batch_size, points (measure a front) and cmmr; the plan may also hold grids, only and published.

DIR gets a run folder for each entry and seed, which report, verify and evaluate read, and
table.md, table.csv, results.json, report.html and logs/.
"""


def compare(
    what: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="What is compared.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs and table go.")],
    workers: Annotated[
        int, typer.Option(help="Runs side by side, each with its share of the threads.")
    ] = 1,
    data_dir: DataDir = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what is to be done and what is done; stop there.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show nothing but the table and warnings.")
    ] = False,
) -> None:
    """Train and judge many methods under one protocol; make one table.

    Ctrl-C saves and stops. The same command goes on, inside a training or an attack, and does
    nothing again that is finished; also after kill -9.
    """
    from equipoise.plans.compare import compare as job

    job(
        what,
        out,
        workers=workers,
        data_dir=data_dir,
        plan_only=plan,
        command=shlex.join(["equipoise", *sys.argv[1:]]),
        console=console_of(quiet),
    )
