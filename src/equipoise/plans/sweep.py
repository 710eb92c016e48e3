"""A sweep: settings of a method are searched for the best clean and robust accuracy.

Each trial is a training, whose command runs like those of a plan. Its model is measured on two
parts of the training images that it was not trained on: by the accuracies on the first one
(``validation``) the search chooses the next settings and the front, and the second one
(``reserve``) chooses nothing. No command of a sweep measures anything on test images.
"""

import sys
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from equipoise.errors import RunError, UserError
from equipoise.fronts.held_out import CONTENT
from equipoise.plans import executor as executors
from equipoise.plans import space as spaces
from equipoise.plans.engine import WAIT_SECONDS, Scheduler, work_left
from equipoise.plans.engines import slurm_script
from equipoise.plans.executor import Executor
from equipoise.plans.keys import resources as needed
from equipoise.plans.prepare import refuse_others
from equipoise.plans.space import Space
from equipoise.plans.sweep_results import in_lines, next_commands, table, write, write_front
from equipoise.plans.task import Task
from equipoise.plans.trials import JOURNAL, RANDOM, Journal, Trial, accuracies, check_optuna
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.store.runs import Run, is_free
from equipoise.terminal.progress import Console
from equipoise.terminal.table import output, rich_table

HOPELESS = 3  # failures, and no success
DIVERGED = "not finite"  # such a training fails again; one that failed otherwise may not
_OPEN = ("data", "data_dir", "device")  # may be others when a sweep goes on


class TrialTask(Task):
    """The training of a trial, in ``trials/NUMBER``."""

    @property
    def run(self) -> Run:
        """Return the run folder, which may not exist yet."""
        return Run(self.out / "trials" / self.entry)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep: what its trials have in common.

    Arguments:
        base: The settings that all trials have, method included.
        recipe: The recipe with these alone.
        space: The settings that are searched.
        most: How many trials there are in all.
        folder: The folder of all.
        command: The command that makes it.
        images: The training images of a trial.
        eps: The radius.
        digests: The checksums of the images, without those of the test images.
    """

    base: Mapping[str, Any]
    recipe: Recipe
    space: Space
    most: int
    folder: Path
    command: str
    images: int
    eps: float
    digests: Mapping[str, str]

    def about(self) -> Mapping[str, Any]:
        """Return what the trials of a journal have in common."""
        settings = {k: v for k, v in self.recipe.to_dict().items() if k not in _OPEN}
        space = {name: dimension.content() for name, dimension in self.space.items()}
        return {"settings": settings, "space": space, "images": dict(self.digests)}

    def head(self) -> Mapping[str, Any]:
        """Return the first fields of ``sweep.json``."""
        return {
            "method": self.recipe.method,
            "command": self.command,
            "planned": self.most,
            "norm": self.recipe.norm,
            "eps": self.eps,
            "attack": self.recipe.validation_attack,
            **self.about(),
        }

    def task(self, trial: Trial) -> Task:
        """Return the training of a trial.

        Raises:
            UserError: If its settings do not fit together.
        """
        recipe = spaces.recipe_with(self.base, trial.settings)
        if recipe.batch_size > self.images:
            raise UserError(f"batch_size={recipe.batch_size} is more than {self.images} images")
        images = (self.images // recipe.batch_size or 1) * recipe.batch_size
        cost = recipe.settings.build(recipe.threat(self.eps)).cost(recipe.rounds)
        return TrialTask(
            plan="trial",
            entry=f"{trial.number:03}",
            recipe=recipe,
            out=self.folder,
            evaluations=(),
            images=images,
            gradients=float(recipe.rounds * cost * images),
        )

    def journal(self, path: Path | None) -> Journal:
        """Return the journal in a file; None: of a search of which nothing is kept."""
        lock = partial(Run(self.folder).lock, "writing results", "sweep", WAIT_SECONDS)
        locked = nullcontext if path is None else lock
        return Journal(path, self.space, self.recipe.seed, self.about(), locked)

    def shown(self) -> None:
        """Print the space."""
        rows = [(name, str(dimension)) for name, dimension in self.space.items()]
        title = f"Space of {self.recipe.method}: {self.most} trials"
        output().print(rich_table(title, ("setting", "values"), rows))


def sweep(
    given: Mapping[str, Any],
    space: Path | None,
    out: Path,
    *,
    fixed: Collection[str] = (),
    trials: int,
    on: str = "local:1",
    resources: str | None = None,
    dry_run: bool = False,
    command: str,
    console: Console,
) -> None:
    """Search settings of a method, and write the front of the trials; continue what was begun.

    Arguments:
        given: The settings of all trials, method included.
        space: The file of the space; None: the usual one.
        out: The folder of all.
        fixed: The names of settings that the space may not have.
        trials: How many trials there are in all.
        on: Where trainings run: :func:`equipoise.plans.executor.of`.
        resources: What each of them needs there, as text.
        dry_run: Whether only the space, the cost and the first settings are shown.
        command: The command that repeats it.
        console: Where progress is shown.

    Raises:
        UserError: If anything given is wrong; nothing was started.
        RunError: If trials failed or a signal stopped it; all results are kept.
    """
    if trials < 1:
        raise UserError(f"--trials must be at least 1, got {trials}")
    check_optuna()
    needs = needed(resources, on)
    executor = executors.of(on, needs)
    made = _sweep(given, space, out, fixed, trials, command, console)
    if not (is_free(out) or (out / JOURNAL).is_file()):
        raise UserError(f"{out} is not the folder of a sweep, and not empty; choose another --out")
    if dry_run:
        _show(made, executor.slots, dry_run)
        if on == "slurm":
            output().print(slurm_script(needs, out / "logs"), soft_wrap=True)
        return
    search = SweepScheduler(executor, made, made.journal(out / JOURNAL), console)
    if not console.quiet:
        _show(made, executor.slots, dry_run)
    search.work()
    content = search.write()
    if any(trial["state"] == "complete" for trial in content["trials"]):
        with search.journal.locked():
            write_front(
                out, content, lambda values: spaces.recipe_with(made.base, values).to_yaml()
            )
        output().print(table(content))
        for line in (*in_lines(content), *next_commands(content, out)):
            output().print(line, soft_wrap=True)
    search.check(content)


def _sweep(
    given: Mapping[str, Any],
    space: Path | None,
    out: Path,
    fixed: Collection[str],
    most: int,
    command: str,
    console: Console,
) -> Sweep:
    """Return a sweep; the arguments are those of :func:`sweep`."""
    recipe = recipes.parse(given)
    if not recipe.reserve and "reserve" in fixed:
        raise UserError("a sweep measures its front on reserved images: give reserve=N, N > 0")
    if not recipe.reserve:
        recipe = recipes.parse(given := {**given, "reserve": recipe.validation})
    searched = spaces.usual(given, fixed) if space is None else spaces.read(space, given, fixed)
    dataset = recipe.dataset(console=console)
    images = len(recipe.split(dataset, torch.device("cpu")).train)
    return Sweep(
        base=given,
        recipe=recipe,
        space=searched,
        most=most,
        folder=out,
        command=command,
        images=images,
        eps=recipe.threat(dataset.eps).eps,
        digests={key: dataset.sha256[key] for key in CONTENT if key in dataset.sha256},
    )


def _show(sweep: Sweep, slots: int, first: bool) -> None:
    """Print the space and the cost, and with ``first`` the settings of the first trials.

    The cost is that of random settings: later ones follow from results.
    """
    sweep.shown()
    journal, tasks, rows = sweep.journal(None), list[Task](), list[list[str]]()
    while (trial := journal.ask(sweep.most)) is not None:
        try:
            tasks.append(sweep.task(trial))
        except UserError:
            continue  # it will fail with this reason
        rows.append([f"{trial.number:03}", *map(spaces.in_words, trial.settings.values())])
    output().print(f"{work_left(tasks, slots)}. Trials: {sweep.folder}", soft_wrap=True)
    if first:
        title = "The first trials, at random; later ones follow from the results"
        heads = ["trial", *sweep.space]
        output().print(rich_table(title, heads, rows[:RANDOM], numbers=heads[1:]))


class SweepScheduler(Scheduler):
    """Runs the trials of a sweep: those that are open in its journal, and new ones.

    Other processes may work on the same journal.
    """

    def __init__(
        self, executor: Executor, sweep: Sweep, journal: Journal, console: Console
    ) -> None:
        super().__init__(executor, (), (), sweep.folder, console)
        self.sweep, self.journal = sweep, journal
        self.every, self.total = sweep.most, float(sweep.most)
        self.succeeded = False

    def writing(self) -> AbstractContextManager[object]:
        """Return a block without a lock: the journal has its own."""
        return nullcontext()

    def write(self) -> Mapping[str, Any]:
        """Write ``sweep.json`` and the table, and return the content."""
        with self.journal.locked():
            numbers = {int(name.rpartition("/")[2]): line for name, line in self.failures.items()}
            return write(self.sweep.folder, self.sweep.head(), self.journal.trials(), numbers)

    def check(self, content: Mapping[str, Any]) -> None:
        """Raise a RunError if a signal stopped it, or trials failed that can be repeated."""
        done = sum(trial["state"] != "open" for trial in content["trials"])
        state, again = f"{done} of {self.every} trials are done", self.sweep.command
        if self.stopped:
            raise RunError(f"{self.stopped}: stopped; {state}; continue with: {again}")
        failed = "; ".join(f"{name}: {line}" for name, line in self.failures.items())
        logs = f"logs: {self.folder / 'logs'}"
        if not any(trial["state"] == "complete" for trial in content["trials"]):
            raise RunError(f"no trial has succeeded: {failed or 'all failed'} ({logs})")
        if done < self.every:
            raise RunError(f"{state}: {failed} ({logs}; to try them again, repeat the command)")

    def _free(self) -> bool:
        """Return whether one more may run; where the engine has no limit, as many as are random.

        More would be drawn at random, too: there would be no results that they could follow from.
        """
        most = RANDOM if self.executor.slots == sys.maxsize else self.executor.slots
        return len(self.running) < most

    def _more(self) -> bool:
        """Return whether there are trials to start, now or later."""
        if not self.succeeded and len(self.failures) >= HOPELESS:
            return False
        trials = self.journal.trials()
        return len(trials) < self.every or any(self._open(trial) for trial in trials)

    def _open(self, trial: Trial) -> bool:
        return trial.state == "open" and _name(trial) not in self.failures

    def _next(self) -> Task | None:
        """Return an open trial of the journal that no one runs, or else a new one."""
        if not self._more():
            return None
        trials = {_name(trial): trial for trial in self.journal.trials() if self._open(trial)}
        self.waiting = deque(task for task in self.waiting if task.name in trials)
        known = {*self.running, *(task.name for task in self.waiting)}
        for name in trials.keys() - known:
            if (task := self._task(trials[name])) is not None:
                refuse_others([task])
                self.waiting.append(task)
        task = super()._next()
        while task is None and (trial := self.journal.ask(self.every)) is not None:
            task = self._new(trial)
        return task

    def _new(self, trial: Trial) -> Task | None:
        """Return the training of a new trial; None: it is settled without one."""
        twins = (t.number for t in self.journal.trials() if t.settings == trial.settings)
        twin = next(twins)
        if twin == trial.number:
            return self._task(trial)
        self.journal.tell(trial.number, None, f"it has the same settings as trial {twin}")
        return None

    def _task(self, trial: Trial) -> Task | None:
        """Return the training of a trial; None: its settings do not fit together."""
        try:
            return self.sweep.task(trial)
        except UserError as error:
            self._fail(_name(trial), str(error))
            return None

    def _follow(self, task: Task, words: list[str], code: int) -> None:
        super()._follow(task, words, code)
        reason = self.failures.get(task.name, "")
        if DIVERGED in reason:
            self._fail(task.name, reason)

    def _fail(self, name: str, reason: str) -> None:
        """Note a trial that would fail again."""
        if name not in self.failures:
            self.console.say(f"FAILED: {name}: {reason}")
        self.failures[name] = reason
        self.journal.tell(int(name.rpartition("/")[2]), None, reason)

    def _write(self, task: Task) -> None:
        """Tell the results of a trial to the journal, and show them in a line."""
        measured = task.run.read_json("summary.json")["measured"]
        self.journal.tell(int(task.entry), measured)
        self.succeeded = True
        trials = self.write()["trials"]
        done = sum(trial["state"] != "open" for trial in trials)
        clean, robust = accuracies(measured["validation"])
        self.console.say(
            f"{done}/{self.every}  {task.name}: clean {clean:.1%}, robust {robust:.1%}"
        )

    def _work(self) -> float:
        done = sum(trial.state != "open" for trial in self.journal.trials())
        begun = [*(task for task, _ in self.running.values()), *self.waiting]
        return done + sum(task.done() / task.cost for task in begun)


def _name(trial: Trial) -> str:
    return f"trial/{trial.number:03}"
