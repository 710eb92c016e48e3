"""Plans as a job: shown with their cost, run in child processes, and their results written."""

import shlex
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from equipoise.errors import RunError, UserError
from equipoise.execution.form import fast, guest
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device
from equipoise.jobs.initial import initial_model
from equipoise.plans import executor as executors
from equipoise.plans.child_process import STOPPED
from equipoise.plans.engines import slurm_script
from equipoise.plans.executor import Executor
from equipoise.plans.prepare import refuse_others
from equipoise.plans.processes import BUSY, LOST
from equipoise.plans.results import Experiment, Row
from equipoise.plans.task import Task, merged
from equipoise.settings.recipe import Recipe
from equipoise.store.locks import Busy
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.terminal.table import output, rich_table

if TYPE_CHECKING:
    from rich.table import Table

LOOK_SECONDS = 0.1
SHOW_SECONDS = 1.0
MEASURED_SECONDS = 0.5
RETRIES = 3  # in a row, without progress, of a task whose process died or was lost
AGAIN_SECONDS = 2.0  # until a task that another process had is looked at again
WAIT_SECONDS = 600.0  # for the results that another process writes
RUN_SECONDS = 6.0  # what a training and its evaluation take to begin and end


def run_plans(
    experiments: Sequence[Experiment],
    folder: Path,
    *,
    title: str,
    on: str,
    resources: Mapping[str, Any] = MappingProxyType({}),
    plan_only: bool,
    console: Console,
    ended: Callable[[bool], object],
) -> None:
    """Show the plan, run what is not finished yet, and write the results.

    Arguments:
        experiments: The experiments; they share the folder and their trainings.
        folder: The folder of all runs and results.
        title: The title of the plan.
        on: Where tasks run: :func:`equipoise.plans.executor.of`.
        resources: What each command needs there.
        plan_only: Whether only the plan is shown.
        console: Where progress is shown.
        ended: Called at the end, also if tasks failed; with whether a signal stopped it.

    Raises:
        UserError: If the folder cannot be used; nothing was started.
        RunError: If tasks failed or a signal stopped it; all results are kept.
    """
    tasks = merged(task for each in experiments for task in each.tasks)
    executor = executors.of(on, resources)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --out")
    refuse_others(tasks)
    if plan_only or not console.quiet:
        single = not experiments[0].scale
        output().print(_runs(title, tasks) if single else _experiments(title, experiments))
        output().print(
            f"{work_left(tasks, executor.slots)}. Runs and results: {folder}", soft_wrap=True
        )
    if plan_only:
        if on == "slurm":
            script = slurm_script(resources, folder / "logs")
            output().print(script, soft_wrap=True, markup=False, highlight=False)
        return
    scheduler = Scheduler(executor, tasks, experiments, folder, console)
    scheduler.work()
    with scheduler.writing():
        for experiment in experiments:
            experiment.failures = scheduler.failures
            experiment.write()
        stopped, failures = scheduler.stopped, scheduler.failures
        ended(bool(stopped))
    if stopped:
        raise RunError(
            f"{stopped}: stopped with {scheduler.finished} of {len(tasks)} runs done; continue "
            f"with: {experiments[0].command}"
        )
    if failures:
        lines = "; ".join(f"{name}: {line}" for name, line in failures.items())
        logs = ", ".join(dict.fromkeys(shlex.quote(str(task.log.parent)) for task in tasks))
        raise RunError(
            f"{len(failures)} of {len(tasks)} runs failed: {lines} (logs: {logs}; to try them "
            "again, repeat the command)"
        )


class Scheduler:
    """Runs the commands of tasks with an executor, several tasks at a time.

    When a task is finished, the results of its experiments are written. Other schedulers may work
    on the same tasks: each task has a lock, which the one that runs it holds.
    """

    def __init__(
        self,
        executor: Executor,
        tasks: Sequence[Task],
        experiments: Sequence[Experiment],
        folder: Path,
        console: Console,
    ) -> None:
        self.executor, self.experiments, self.folder = executor, experiments, folder
        self.console, self.every = console, len(tasks)
        self.waiting = deque(task for task in tasks if task.step() is not None)
        self.finished = self.every - len(self.waiting)
        self.total = sum(task.cost for task in tasks)
        self.done = self.total - sum(task.cost for task in self.waiting)
        self.running: dict[str, tuple[Task, list[str]]] = {}
        self.claims: dict[str, ExitStack] = {}
        self.elsewhere: dict[str, float] = {}  # when tasks of other processes are looked at again
        self.retries: dict[str, tuple[int, float]] = {}
        self.failures: dict[str, str] = {}
        self.stopped, self.killed = "", False

    def work(self) -> None:
        """Run all tasks; ``failures`` has those that failed, with the reason.

        On Ctrl-C or SIGTERM every run is saved, and ``stopped`` is the name of the signal.

        Raises:
            KeyboardInterrupt: At the second signal, which ends the commands at once.
        """
        shown, whole = 0.0, 1e9  # seconds: progress is uneven, so the speed is that of all of it
        bar = self.console.progress(self.total, self._work(), unit="", period=whole)
        with signals.handled(self._signal), bar as show:
            try:
                while self.running or (not self.stopped and self._more()):
                    while not self.stopped and self._free() and (task := self._next()):
                        self._start(task)
                    for task, words, code in self._ended():
                        self._follow(task, words, code)
                    if self.stopped:
                        self.executor.stop(now=self.killed)
                    if time.monotonic() >= shown + SHOW_SECONDS:
                        show(self._work(), text=self._working())
                        shown = time.monotonic()
                    time.sleep(LOOK_SECONDS)
            finally:
                self.executor.stop(now=self.killed)
                while self.running:
                    self._ended()
                    time.sleep(LOOK_SECONDS)
                    self.executor.stop(now=self.killed)
                for claim in self.claims.values():
                    claim.close()
        if self.killed:
            raise KeyboardInterrupt

    def writing(self) -> AbstractContextManager[object]:
        """Lock the results of the folder while they are written."""
        line = f"another process writes results in {self.folder}: waiting for it"
        waiting = partial(self.console.say, line)
        return Run(self.folder).lock("writing results", "comparison", WAIT_SECONDS, waiting)

    def _more(self) -> bool:
        """Return whether there are tasks to start, now or later."""
        return bool(self.waiting)

    def _free(self) -> bool:
        return len(self.running) < self.executor.slots

    def _next(self) -> Task | None:
        """Return a task to start, which no longer waits; None: there is none now."""
        now = time.monotonic()
        due = (task for task in self.waiting if self.elsewhere.get(task.name, now) <= now)
        task = next(due, None)
        if task is not None:
            self.waiting.remove(task)
        return task

    def _start(self, task: Task) -> None:
        """Start the next command of a task, unless another process has the task."""
        if task.name not in self.claims:
            claim = ExitStack()
            try:
                claim.enter_context(Run(task.out).lock(name=f"{task.run.path.name}.claim"))
            except Busy:
                self._set_aside(task)
                return
            self.claims[task.name] = claim
        words = task.step()
        if words is None:  # another process has finished it
            self._finish(task)
            return
        task.prepare()
        place = task.recipe.data_dir  # also if the run was begun with another folder
        environment = {} if place is None else {"EQUIPOISE_DATA": place}
        self.executor.submit(task.name, words, task.log, environment)
        self.running[task.name] = task, words

    def _set_aside(self, task: Task) -> None:
        if not self.elsewhere:
            self.console.say(f"another process works in {self.folder}, too: each run is done once")
        self.elsewhere[task.name] = time.monotonic() + AGAIN_SECONDS
        self.waiting.append(task)

    def _ended(self) -> list[tuple[Task, list[str], int]]:
        """Return the commands that have ended, with their exit codes; none of them runs."""
        return [(*self.running.pop(name), code) for name, code in self.executor.poll().items()]

    def _follow(self, task: Task, words: list[str], code: int) -> None:
        """Continue a task whose command has ended."""
        following = task.step()
        if following is None:
            self._finish(task)
        elif self.stopped:
            self._leave(task)
        elif code == BUSY:
            self._set_aside(task)
        elif (code < 0 or code == STOPPED) and self._retries(task) <= RETRIES:
            self.console.say(f"{task.name}: {_last_line(task, code)}; it goes on")
            self._start(task)
        elif code or following == words:
            self.failures[task.name] = f"{_phase(words)} failed: {_last_line(task, code)}"
            self.console.say(f"FAILED: {task.name}: {self.failures[task.name]}")
            self._leave(task)
        else:
            self._start(task)

    def _retries(self, task: Task) -> int:
        """Count a retry of a task, and return how many there were since it made progress."""
        count, before = self.retries.get(task.name, (0, -1.0))
        done = task.done()
        self.retries[task.name] = (count + 1 if done <= before else 1), done
        return self.retries[task.name][0]

    def _finish(self, task: Task) -> None:
        self.finished += 1
        with self.writing():
            self._write(task)
        self._leave(task)

    def _leave(self, task: Task) -> None:
        """Count what is done of a task, and leave it to others."""
        self.done += task.done()
        self.claims.pop(task.name).close()

    def _write(self, task: Task) -> None:
        """Write the results of the experiments that a task belongs to, and show them in a line."""
        rows = list[Row]()
        for experiment in self.experiments:
            if any(each.name == task.name for each in experiment.tasks):
                results = experiment.write()["results"]
                rows = rows or [row for row in results if _is_of(row, task)]
        attacked = (row for row in rows if row["eps"])
        accuracies = ", ".join(f"{r['attack']} {r['correct'] / r['n']:.1%}" for r in attacked)
        judged = len(task.evaluations)
        what = accuracies if judged == 1 else f"{judged} evaluations"
        self.console.say(f"{self.finished}/{self.every}  {task.name}: {what}")

    def _signal(self, name: str) -> None:
        """Save and stop at the first signal; stop at once at the second one."""
        self.killed = bool(self.stopped)
        self.stopped = name

    def _work(self) -> float:
        begun = [*(task for task, _ in self.running.values()), *self.waiting]
        return self.done + sum(task.done() for task in begun)

    def _working(self) -> str:
        if self.stopped:
            return "saving"
        names = [f"{name} ({_phase(words)})" for name, (_, words) in self.running.items()]
        return ", ".join([*names, *([f"{len(self.waiting)} waiting"] if self.waiting else [])])


def _is_of(row: Row, task: Task) -> bool:
    panel = task.plan or "comparison"
    return (row["panel"], row["entry"], row["seed"]) == (panel, task.entry, task.recipe.seed)


def _phase(words: Sequence[str]) -> str:
    return "training" if words[0] == "train" else "evaluation"


def _last_line(task: Task, code: int) -> str:
    """Return why a command failed: the last line of its log, or how its process ended."""
    text = task.log.read_text(encoding="utf-8", errors="replace")
    last = text.strip().splitlines()[-1].strip()
    if last.startswith("$ ") or LOST < code < 0:
        what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"its process ended by {what}"
    return last.removeprefix("equipoise: ")


def _runs(title: str, tasks: Sequence[Task]) -> "Table":
    """Return a table of the runs and how far they are."""
    heads = ("run", "rounds", "gradient evaluations", "training", "evaluation")
    rows = [(t.name, str(t.recipe.rounds), f"{t.gradients:,.0f}", *t.state()) for t in tasks]
    return rich_table(title, heads, rows, numbers=heads[1:])


def _experiments(title: str, experiments: Sequence[Experiment]) -> "Table":
    """Return a table of the experiments and their cost."""
    heads = ("experiment", "title", "runs", "evaluations", "gradient evaluations")
    rows = [
        (e.name, e.title, str(len(e.tasks)), str(e.evaluations), f"{cost:,.0f}")
        for e in experiments
        for cost in [sum(task.cost for task in e.tasks)]
    ]
    return rich_table(title, heads, rows, numbers=heads[2:])


def work_left(tasks: Sequence[Task], slots: int) -> str:
    """Return how many runs are done, and the cost of the others in gradient evaluations and time.

    The time is estimated from a short measurement of each kind of model.
    """
    unfinished = [task for task in tasks if task.step() is not None]
    line = f"{len(tasks)} runs, {len(tasks) - len(unfinished)} of them done"
    if not unfinished:
        return line
    rates: dict[tuple[str, str, float], float] = {}
    total, seconds = 0.0, 0.0
    for task in unfinished:
        recipe, work = task.recipe, task.cost - task.done()
        kind = recipe.data, recipe.model, recipe.width
        if kind not in rates:
            rates[kind] = _rate(recipe)
        total, seconds = total + work, seconds + RUN_SECONDS + work / rates[kind]
    known = slots < sys.maxsize
    minutes = max(1, round(seconds / (min(slots, len(unfinished)) if known else 1) / 60))
    hours, rest = divmod(minutes, 60)
    roughly = f"{hours} h {rest:02d} min" if hours else f"{rest} min"
    return (
        f"{line}; the others take about {total:,.0f} gradient evaluations, roughly {roughly} "
        + (f"with {slots} at a time" if known else "one after the other on a core of this machine")
    )


def _rate(recipe: Recipe) -> float:
    """Return the gradient evaluations per second of one thread with a model."""
    dataset = recipe.dataset()
    device = choose_device(recipe.device)
    initial, _ = initial_model(recipe, dataset)
    model = fast(initial.to(device), execution=recipe.execution)
    x = dataset.train.take(slice(recipe.batch_size)).to(device).pixels().requires_grad_()
    passes, began, threads = 0, 0.0, torch.get_num_threads()
    torch.set_num_threads(1)
    with guest(model):
        while not began or time.perf_counter() - began < MEASURED_SECONDS:
            torch.autograd.grad(model(x).logsumexp(1).sum(), x)[0].sum().item()
            if not began:  # the first pass is slower
                began = time.perf_counter()
            else:
                passes += 1
        rate = passes * len(x) / (time.perf_counter() - began)
    torch.set_num_threads(threads)
    return rate
