"""Comparing: many methods, trained and judged under one protocol, in one table."""

__all__ = ["compare"]

import csv
import io
from pathlib import Path

from equipoise.errors import UserError
from equipoise.plans import plan as plans
from equipoise.plans.engine import run_plans
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.results import Experiment, Row
from equipoise.plans.table import facts, markdown, table
from equipoise.report.page import build
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.terminal.table import output, rich_table


def compare(
    path: Path,
    out: Path,
    *,
    workers: int = 1,
    data_dir: Path | None = None,
    plan_only: bool = False,
    command: str,
    console: Console,
) -> None:
    """Train and judge the models of a plan, and make one table; continue what was begun.

    Arguments:
        path: The plan, see :mod:`equipoise.plans.plan`.
        out: The folder of the runs and of the table.
        workers: How many runs are worked on at a time.
        data_dir: The folder of the data; by default that of the plan.
        plan_only: Whether to show what would be done, and stop.
        command: The command that repeats this, for the table and where it is interrupted.
        console: Where progress is shown.

    Raises:
        UserError: If plan, data or folder will not do; nothing was started.
        RunError: If runs failed or it was interrupted; all else is kept.
    """
    plan = plans.read(path)
    parts = [(plan, tasks(plan, out, Datasets(data_dir)))]
    experiment = Experiment("comparison", plan.title, out, command, parts)

    def ended(interrupted: bool) -> None:
        if not interrupted:
            _report(experiment, console)

    run_plans(
        [experiment],
        out,
        title=plan.title,
        workers=workers,
        plan_only=plan_only,
        console=console,
        written=_write,
        ended=ended,
    )


def _write(experiment: Experiment, content: Row) -> None:
    """Write the table of the results."""
    folder, buffer = Run(experiment.folder), io.StringIO()
    rows = table(experiment, content, numbers=True)
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    folder.write_text("table.md", markdown(experiment, content))
    folder.write_text("table.csv", buffer.getvalue())


def _report(experiment: Experiment, console: Console) -> None:
    """Write the report of all finished runs, and show the table, also without a report."""
    out, content = experiment.folder, experiment.results()
    runs = [out / f"{row['entry']}-seed{row['seed']}" for row in content["trainings"]]
    try:
        if runs:
            page = build(runs, out / "report.html")
            console.say(f"report: {page}; table: {out / 'table.md'}")
    except UserError as error:
        console.warn(f"there is no report: {error}")
    terminal = output()
    heads, *rows = table(experiment, content)
    terminal.print(rich_table(experiment.title, heads, rows, numbers=heads[2:]))
    missing = (f"MISSING: {line}" for line in content["missing"])
    for line in (*facts(experiment, content), *missing):
        terminal.print(line, soft_wrap=True)
