"""Plans as a job: shown with their cost, run, and their results written."""

__all__ = ["Ending", "PlanJob", "Written"]

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, Literal

import torch

from equipoise import models
from equipoise.attacks.core import guest
from equipoise.errors import RunError, UserError
from equipoise.execution import fast
from equipoise.jobs.device import choose_device
from equipoise.plans.crew import Crew, Failure, Stopped
from equipoise.plans.executor import LocalProcesses, claim
from equipoise.plans.prepare import Datasets, merged, refuse_others
from equipoise.plans.results import Experiment, write_results
from equipoise.plans.table import finished_line
from equipoise.plans.task import Task
from equipoise.settings.recipe import Recipe
from equipoise.terminal.progress import Console
from equipoise.terminal.table import output, rich_table

if TYPE_CHECKING:
    from rich.table import Table

Written = tuple[Experiment, dict[str, Any]]
"""An experiment with the content of its results.json."""

Ending = Literal["stopped", "finished"]

MEASURED_SECONDS = 0.5
RUN_SECONDS = 6.0  # what a training and its evaluation take to begin and end


class PlanJob:
    """Experiments that share a folder, its lock and their trainings.

    Arguments:
        experiments: What is made.
        folder: The folder of all of it.
        title: What stands above the plan.
        console: Where progress is shown.
        written: Called with the experiments whose results were written, and how the job
            ended; None: it goes on.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        folder: Path,
        *,
        title: str,
        console: Console,
        written: Callable[[Sequence[Written], Ending | None], None],
    ) -> None:
        self.experiments, self.folder, self.title = experiments, folder, title
        self.console, self.written = console, written
        self.command = experiments[0].command
        self.tasks = merged(task for each in experiments for task in each.tasks)
        self.done = 0

    def run(self, workers: int, *, plan_only: bool = False) -> None:
        """Show what is to be done, do it, and write what was found; go on with what is begun.

        Arguments:
            workers: How many tasks are worked on side by side.
            plan_only: Whether to stop after the plan was shown.

        Raises:
            UserError: If the folder will not do; nothing was started.
            RunError: If tasks failed or it was interrupted; all else is kept.
        """
        if workers < 1:
            raise UserError(f"--workers must be at least 1, got {workers}")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder; choose another --out")
        refuse_others(self.tasks)
        if plan_only or not self.console.quiet:
            self._show(workers)
        if plan_only:
            return
        with claim(self.folder, self.console) as lock:
            refuse_others(self.tasks)  # again: another command may have made them meanwhile
            self._work(LocalProcesses(workers, lock))

    def _work(self, executor: LocalProcesses) -> None:
        left = [task for task in self.tasks if task.step() is not None]
        self.done = len(self.tasks) - len(left)
        crew = Crew(
            executor,
            left,
            console=self.console,
            total=sum(task.cost for task in self.tasks),
            done=sum(task.cost for task in self.tasks if task not in left),
            finished=self._finished,
        )
        try:
            failed = crew.work()
        except Stopped as stopped:
            self._write(self.experiments, "stopped")
            raise RunError(
                f"{stopped}: stopped with {self.done} of {len(self.tasks)} runs done; go on "
                f"with: {self.command}"
            ) from None
        for experiment in self.experiments:
            experiment.failures = {f.name: f"{f.phase} failed: {f.line}" for f in failed}
        self._write(self.experiments, "finished")
        if failed:
            raise RunError(self._complaint(failed))

    def _finished(self, task: Task) -> None:
        """Write the results of the experiments that a task belongs to, and say so in a line."""
        self.done += 1
        having = [e for e in self.experiments if any(t.name == task.name for t in e.tasks)]
        self._write(having)
        rows = having[0].rows_of(task.name)
        self.console.say(f"{self.done}/{len(self.tasks)}  {task.name}: {finished_line(rows)}")

    def _write(self, experiments: Sequence[Experiment], ending: Ending | None = None) -> None:
        self.written([(each, write_results(each)) for each in experiments], ending)

    def _complaint(self, failed: Sequence[Failure]) -> str:
        lines = "; ".join(f"{f.name} ({f.phase}): {f.line}" for f in failed)
        logs = ", ".join(dict.fromkeys(quote(str(task.log.parent)) for task in self.tasks))
        return (
            f"{len(failed)} of {len(self.tasks)} runs failed: {lines} (their logs are in {logs}; "
            "a repeated command tries them again)"
        )

    def _show(self, workers: int) -> None:
        """Show what is to be done, and how long that may take."""
        terminal = output()
        left = [task for task in self.tasks if task.step() is not None]
        terminal.print(self._runs() if not self.experiments[0].scale else self._experiments())
        lines = f"{len(self.tasks)} runs, {len(self.tasks) - len(left)} of them done"
        if left:
            work = sum(task.cost - task.done() for task in left)
            lines += (
                f"; left are about {work:,.0f} gradient evaluations, roughly "
                f"{_roughly(_seconds(left, workers))} with {workers} at a time"
            )
        terminal.print(f"{lines}. Runs and results: {self.folder}", soft_wrap=True)

    def _runs(self) -> "Table":
        """Return a table of the runs and how far they are."""
        heads = ("run", "rounds", "gradient evaluations", "training", "evaluation")
        rows = [
            (t.name, str(t.recipe.rounds), f"{t.gradients:,.0f}", *t.state()) for t in self.tasks
        ]
        return rich_table(self.title, heads, rows, numbers=heads[1:])

    def _experiments(self) -> "Table":
        """Return a table of the experiments and what they take."""
        heads = ("experiment", "what it is", "runs", "evaluations", "gradient evaluations")
        rows = [
            (e.name, e.title, str(len(e.tasks)), str(e.evaluations), f"{cost:,.0f}")
            for e in self.experiments
            for cost in [sum(task.cost for task in e.tasks)]
        ]
        return rich_table(self.title, heads, rows, numbers=heads[2:])


def _seconds(left: Sequence[Task], workers: int) -> float:
    """Return a rough time for what is left, from a short measurement of each kind of model."""
    rates: dict[tuple[str, str, float], float] = {}
    total = 0.0
    for task in left:
        recipe = task.recipe
        kind = recipe.data, recipe.model, recipe.width
        if kind not in rates:
            rates[kind] = _rate(recipe)
        total += RUN_SECONDS + (task.cost - task.done()) / rates[kind]
    return total / min(workers, len(left))


def _rate(recipe: Recipe) -> float:
    """Return how many gradient evaluations a second one thread does with a model."""
    dataset = Datasets().load(recipe.data, recipe.data_dir)
    device = choose_device(recipe.device)
    config = dataset.settings | {"width": recipe.width}
    model = fast(models.build(recipe.model, config).to(device), execution=recipe.execution)
    x = dataset.train.take(slice(recipe.batch_size)).to(device).pixels().requires_grad_()
    done, began, threads = 0, 0.0, torch.get_num_threads()
    torch.set_num_threads(1)
    with guest(model):
        while True:
            torch.autograd.grad(model(x).logsumexp(1).sum(), x)[0].sum().item()
            now = time.perf_counter()
            if not began:  # the first pass prepares
                began = now
                continue
            done += len(x)
            if now - began > MEASURED_SECONDS:
                break
    torch.set_num_threads(threads)
    return done / (now - began)


def _roughly(seconds: float) -> str:
    """Return a time in whole minutes: an estimate has no seconds."""
    minutes = max(1, round(seconds / 60))
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"
