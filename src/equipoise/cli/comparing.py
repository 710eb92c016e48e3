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

base holds settings of every entry. An entry holds settings of a recipe; its method is by default
its name. budget is the number of gradient evaluations of a training: an entry without rounds
(epochs) gets budget / (gradient evaluations of an image x images of a round) rounds. `cost: 4.1`
in an entry gives the gradient evaluations of an image where they are only known afterwards.
evaluate may also hold eps (one radius or a list), weights (like [model, rounds, gamma-0.4]),
individual, first, precision, batch_size, points (measure a front) and cmmr; the plan may also
hold grids, only and published.

DIR gets a run folder for each entry and seed, which report, verify and evaluate read, and
table.md, table.csv, results.json, report.html and logs/.
"""


def compare(
    what: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="What to compare; see below.")],
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder of the runs and the table.")
    ],
    workers: Annotated[
        int, typer.Option(help="Processes side by side, each with its share of the threads.")
    ] = 1,
    data_dir: DataDir = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Print what is done and what is left, and stop.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the table and warnings only.")
    ] = False,
) -> None:
    """Train and evaluate many methods in the same way, and write one table.

    Ctrl-C saves and stops. The same command continues, inside a training or an attack, and
    repeats nothing that is finished; also after kill -9.
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
