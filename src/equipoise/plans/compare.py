"""Comparing as a job: many methods, trained and judged under one protocol, in one table."""

__all__ = ["compare"]

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from rich import box
from rich.console import Console as Terminal
from rich.table import Table

from equipoise.errors import RunError, UserError
from equipoise.plans import comparison
from equipoise.plans.comparison import Plan
from equipoise.plans.crew import Crew, Failure, Stopped, Work, claim
from equipoise.plans.overview import items as plan_items
from equipoise.plans.overview import refuse_others
from equipoise.plans.runs import Item
from equipoise.plans.table import Found, collect
from equipoise.report import build
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console


def compare(
    path: Path,
    out: Path,
    *,
    workers: int = 1,
    data_dir: Path | None = None,
    plan_only: bool = False,
    command: str,
    terminal: Terminal,
    console: Console,
) -> None:
    """Train and judge what a plan names, and make one table of it; go on with what is begun.

    Arguments:
        path: The plan, see :mod:`equipoise.plans.comparison`.
        out: The folder of the runs and of the table.
        workers: How many runs are worked on side by side.
        data_dir: The folder of the data; by default that of the plan.
        plan_only: Whether to show what would be done, and stop.
        command: The command that repeats this, for the table and where it is interrupted.
        terminal: Where plan and table are shown.
        console: Where progress is shown.

    Raises:
        UserError: If plan, data or folder will not do; nothing was started.
        RunError: If runs failed or it was interrupted; all else is kept.
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is not a folder; choose another --out")
    plan = comparison.read(path)
    items = plan_items(plan, out, data_dir)
    refuse_others(items)
    if plan_only or not console.quiet:
        _show_plan(plan, items, terminal)
    if plan_only:
        return
    with claim(out, console) as lock:
        refuse_others(items)  # again: another comparison may have made them meanwhile
        _Comparison(plan, items, out, command, terminal, console).run(workers, lock)


class _Comparison:
    """A comparison in its folder."""

    def __init__(
        self,
        plan: Plan,
        items: Sequence[Item],
        out: Path,
        command: str,
        terminal: Terminal,
        console: Console,
    ) -> None:
        self.plan, self.items, self.out = plan, items, out
        self.command, self.terminal, self.console = command, terminal, console
        self.failures: dict[str, str] = {}
        self.done = 0

    def run(self, workers: int, lock: tuple[int, ...]) -> None:
        """Work off what is left, and write the table."""
        left = [item for item in self.items if item.step() is not None]
        self.done = len(self.items) - len(left)
        crew = Crew(
            left,
            workers=workers,
            lock=lock,
            console=self.console,
            total=sum(item.gradients + item.evaluation for item in self.items),
            done=sum(item.work() for item in self.items if item not in left),
            finished=self._finished,
        )
        try:
            failed = crew.work()
        except Stopped as stopped:
            raise RunError(
                f"{stopped}: stopped with {len(self._write().rows)} of {len(self.items)} runs "
                f"done; go on with: {self.command}"
            ) from None
        self.failures = {f.item.name: f"{f.phase} failed: {f.line}" for f in failed}
        found = self._write()
        self._report(found)
        _show_found(found, self.terminal)
        if failed:
            raise RunError(self._complaint(failed))

    def _finished(self, item: Work) -> None:
        found = self._write()
        row = next(row for row in found.rows if row.run == item.name)
        self.done += 1
        self.console.say(f"{self.done}/{len(self.items)}  {row.line()}")

    def _write(self) -> Found:
        """Write the table of what there is."""
        found = collect(self.plan, self.items, self.failures, self.command)
        folder, buffer = Run(self.out), io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows(found.csv())
        folder.write_text("table.md", found.markdown())
        folder.write_text("table.csv", buffer.getvalue())
        folder.write_text("comparison.json", found.json())
        return found

    def _report(self, found: Found) -> None:
        """Write the report of all finished runs; the tables do without it."""
        if not found.rows:
            return
        try:
            page = build([self.out / row.run for row in found.rows], self.out / "report.html")
            self.console.say(f"report: {page}; table: {self.out / 'table.md'}")
        except UserError as error:
            self.console.warn(f"there is no report: {error}")

    def _complaint(self, failed: Sequence[Failure]) -> str:
        told = "; ".join(f"{f.item.name} ({f.phase}): {f.line}" for f in failed)
        return (
            f"{len(failed)} of {len(self.items)} runs failed: {told} (their logs are in "
            f"{quote(str(self.out / 'logs'))}; a repeated command tries them again)"
        )


def _show_plan(plan: Plan, items: Sequence[Item], terminal: Terminal) -> None:
    table = _table(plan.title)
    for name in ("run", "rounds", "gradient evaluations", "training", "evaluation"):
        table.add_column(name, justify="left" if name == "run" else "right")
    done = 0
    for item in items:
        state = item.state()
        done += state == ("done", "done")
        table.add_row(item.name, str(item.recipe.rounds), f"{item.gradients:,.0f}", *state)
    judging = plan.judging
    terminal.print(table)
    terminal.print(
        f"{len(items)} runs, {done} of them done; the trainings take "
        f"{sum(item.gradients for item in items):,.0f} gradient evaluations. Judged by "
        f"{', '.join(judging.names)} on {items[0].sample.words('test images')}.",
        markup=False,
    )


def _show_found(found: Found, terminal: Terminal) -> None:
    table = _table(found.plan.title)
    for name in found.columns():
        table.add_column(name, justify="left" if name in ("entry", "method") else "right")
    for entry in found.entries():
        table.add_row(*entry)
    terminal.print(table)
    for line in [*found.facts(), *(f"MISSING: {line}" for line in found.missing)]:
        terminal.print(line, markup=False)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
