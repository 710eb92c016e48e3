"""Comparing: many methods, trained and judged under one protocol, in one table."""

__all__ = ["compare"]

import csv
import io
from pathlib import Path

from equipoise.errors import UserError
from equipoise.plans import plan as plans
from equipoise.plans.engine import PlanJob
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.results import Experiment, Row
from equipoise.plans.table import csv_rows, facts, markdown, models, summary
from equipoise.report import build
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
    """Train and judge what a plan names, and make one table of it; go on with what is begun.

    Arguments:
        path: The plan, see :mod:`equipoise.plans.plan`.
        out: The folder of the runs and of the table.
        workers: How many runs are worked on side by side.
        data_dir: The folder of the data; by default that of the plan.
        plan_only: Whether to show what would be done, and stop.
        command: The command that repeats this, for the table and where it is interrupted.
        console: Where progress is shown.

    Raises:
        UserError: If plan, data or folder will not do; nothing was started.
        RunError: If runs failed or it was interrupted; all else is kept.
    """
    plan = plans.read(path)
    parts = [(plan, tasks(plan, out, data_dir, Datasets()))]
    experiment = Experiment("comparison", plan.title, out, command, parts)

    job = PlanJob([experiment], out, title=plan.title, console=console, written=_write)
    try:
        job.run(workers, plan_only=plan_only)
    finally:
        if job.ending == "finished":
            _report(experiment, console)


def _write(experiment: Experiment, content: Row) -> None:
    """Write the table of what there is."""
    folder, buffer = Run(experiment.folder), io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(csv_rows(experiment, models(content)))
    folder.write_text("table.md", markdown(experiment, content))
    folder.write_text("table.csv", buffer.getvalue())


def _report(experiment: Experiment, console: Console) -> None:
    """Write the report of all finished runs, and show the table; it does without the report."""
    out, content = experiment.folder, experiment.results()
    runs = [out / f"{row['entry']}-seed{row['seed']}" for row in content["trainings"]]
    try:
        if runs:
            page = build(runs, out / "report.html")
            console.say(f"report: {page}; table: {out / 'table.md'}")
    except UserError as error:
        console.warn(f"there is no report: {error}")
    terminal = output()
    heads, rows = summary(experiment, models(content))
    terminal.print(rich_table(experiment.title, heads, rows, numbers=heads[2:]))
    for line in facts(experiment, content):
        terminal.print(line, soft_wrap=True)
    for line in content["missing"]:
        terminal.print(f"MISSING: {line}", soft_wrap=True)
