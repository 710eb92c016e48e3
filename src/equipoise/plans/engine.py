"""Plans as a job: shown with their cost, run, and their results written."""

__all__ = ["PlanJob"]

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import torch

from equipoise import models
from equipoise.attacks.core import guest
from equipoise.errors import RunError, UserError
from equipoise.execution import fast
from equipoise.jobs.device import choose_device
from equipoise.plans.crew import Crew
from equipoise.plans.executor import Executor, LocalProcesses, claim
from equipoise.plans.prepare import Datasets, merged, refuse_others
from equipoise.plans.results import Experiment, Row, write_results
from equipoise.plans.task import Task
from equipoise.settings.recipe import Recipe
from equipoise.terminal.progress import Console
from equipoise.terminal.table import output, rich_table

if TYPE_CHECKING:
    from rich.table import Table

MEASURED_SECONDS = 0.5
RUN_SECONDS = 6.0  # what a training and its evaluation take to begin and end


class PlanJob:
    """Experiments that share a folder, its lock and their trainings.

    Arguments:
        experiments: What is made.
        folder: The folder of all of it.
        title: The title of the plan.
        console: Where progress is shown.
        written: Called with each experiment whose ``results.json`` was written, and its content.

    Attributes:
        ending: ``"finished"``, also with tasks that failed, ``"stopped"``, or nothing.
    """

    def __init__(
        self,
        experiments: Sequence[Experiment],
        folder: Path,
        *,
        title: str,
        console: Console,
        written: Callable[[Experiment, Row], None] = lambda experiment, content: None,
    ) -> None:
        self.experiments, self.folder, self.title = experiments, folder, title
        self.console, self.written, self.ending = console, written, ""
        self.tasks = merged(task for each in experiments for task in each.tasks)
        self.left = [task for task in self.tasks if task.step() is not None]

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

    def _work(self, executor: Executor) -> None:
        crew = Crew(executor, self.tasks, self.console, self._finished)
        self.left = [*crew.waiting]
        crew.work()
        for experiment in self.experiments:
            experiment.failures = crew.failures
        self._write(self.experiments)
        self.ending = "stopped" if crew.stopped else "finished"
        every, done = len(self.tasks), len(self.tasks) - len(self.left)
        if crew.stopped:
            raise RunError(
                f"{crew.stopped}: stopped with {done} of {every} runs done; go on with: "
                f"{self.experiments[0].command}"
            )
        if crew.failures:
            lines = "; ".join(f"{name}: {line}" for name, line in crew.failures.items())
            logs = ", ".join(dict.fromkeys(quote(str(task.log.parent)) for task in self.tasks))
            raise RunError(
                f"{len(crew.failures)} of {every} runs failed: {lines} (their logs are in {logs}; "
                "a repeated command tries them again)"
            )

    def _finished(self, task: Task) -> None:
        """Write the results of the experiments that a task belongs to, and say so in a line."""
        self.left.remove(task)
        having = [e for e in self.experiments if any(t.name == task.name for t in e.tasks)]
        self._write(having)
        rows, judged = having[0].rows_of(task.name), len(task.evaluations)
        attacked = (row for row in rows if row["eps"])
        found = ", ".join(f"{row['attack']} {row['correct'] / row['n']:.1%}" for row in attacked)
        what = found if judged == 1 else f"{judged} evaluations"
        done = len(self.tasks) - len(self.left)
        self.console.say(f"{done}/{len(self.tasks)}  {task.name}: {what}")

    def _write(self, experiments: Sequence[Experiment]) -> None:
        for experiment in experiments:
            self.written(experiment, write_results(experiment))

    def _show(self, workers: int) -> None:
        """Show what is to be done, and how long that may take."""
        terminal, every = output(), len(self.tasks)
        terminal.print(self._runs() if not self.experiments[0].scale else self._experiments())
        lines = f"{every} runs, {every - len(self.left)} of them done"
        if self.left:
            work = sum(task.cost - task.done() for task in self.left)
            lines += (
                f"; left are about {work:,.0f} gradient evaluations, roughly "
                f"{_roughly(_seconds(self.left, workers))} with {workers} at a time"
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
