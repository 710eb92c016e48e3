"""Reproducing the paper's tables and figures as a job: plan, runs, findings, report."""

__all__ = ["reproduce"]

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote

import torch
from rich import box
from rich.console import Console as Terminal
from rich.table import Table

from equipoise import data, models
from equipoise.attacks.core import guest
from equipoise.errors import RunError, UserError
from equipoise.execution import fast
from equipoise.jobs.device import choose_device
from equipoise.paper.page import build
from equipoise.plans.crew import Crew, Failure, Stopped, Work, claim
from equipoise.plans.findings import findings, write
from equipoise.plans.overview import Shelf, refuse_others
from equipoise.plans.reproductions import EXPERIMENTS, View, views
from equipoise.plans.views import Chain, Look, chains, looks
from equipoise.settings.recipe import Recipe
from equipoise.terminal.progress import Console

MEASURED_SECONDS = 0.5
RUN_SECONDS = 6.0  # what a training and its evaluation take to begin and end


def reproduce(
    experiments: Sequence[str],
    scale: str,
    out: Path,
    *,
    only: Sequence[str] = (),
    files: Mapping[str, Path] | None = None,
    workers: int = 1,
    data_dir: Path | None = None,
    slice_: bool = False,
    plan_only: bool = False,
    command: str,
    terminal: Terminal,
    console: Console,
) -> Path | None:
    """Make some of the paper's tables and figures; go on with what is begun.

    Arguments:
        experiments: Names of :data:`equipoise.plans.reproductions.EXPERIMENTS`, or ``all``.
        scale: A name of :data:`equipoise.plans.reproductions.SCALES`.
        out: The folder of all scales.
        only: Names of entries, with ``*`` for any ending; none: all.
        files: ``.npz`` files that are taken in the place of a data set, by its name.
        workers: How many runs are worked on side by side.
        data_dir: The folder of the data; by default the usual places.
        slice_: Whether to cut trainings and evaluations down to a trial.
        plan_only: Whether to show what would be done, and stop.
        command: The command that repeats this, where it is interrupted.
        terminal: Where the plan is shown.
        console: Where progress is shown.

    Returns:
        The page; None with ``plan_only``.

    Raises:
        UserError: If data, names or folder will not do; nothing was started.
        RunError: If runs failed or it was interrupted; all else is kept.
    """
    if workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    folder = out / (f"{scale}-slice" if slice_ else scale)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --out")
    wanted = views(scale, experiments, only=only, slice_=slice_, files=files)
    found, problems = _found(wanted, folder / "trainings", data_dir)
    for lines in problems.values():
        for line in lines:
            console.warn(line)
    every = chains(found)
    refuse_others([chain.first for chain in every])
    job = _Reproduction(scale, folder, found, every, problems, command, console)
    if plan_only or not console.quiet:
        job.show(terminal, workers)
    if plan_only:
        return None
    with claim(folder, console) as lock:
        refuse_others([chain.first for chain in every])  # made meanwhile by another reproduction
        return job.run(workers, lock)


def _found(
    wanted: Sequence[View], trainings: Path, data_dir: Path | None
) -> tuple[list[Look], dict[str, list[str]]]:
    """Return all evaluations; a view whose data are not there is left out, and that is said.

    A file that somebody names is not left out: there must be one.
    """
    found, problems, shelf = list[Look](), dict[str, list[str]](), Shelf()
    for view in wanted:
        name = view.plan.entries[0].settings["data"]
        try:
            shelf.load(name, data_dir)
        except UserError as error:
            if name not in data.DATASETS:
                raise
            line = f"{view.experiment}: {view.plan.title} is left out: {error}"
            said = problems.setdefault(view.experiment, [])
            if line not in said:
                said.append(line)
            continue
        found += looks(view, trainings, data_dir, shelf)
    if not found:
        raise UserError("; ".join(line for lines in problems.values() for line in lines))
    return found, problems


class _Reproduction:
    """Some experiments in their folder."""

    def __init__(
        self,
        scale: str,
        folder: Path,
        found: Sequence[Look],
        every: Sequence[Chain],
        problems: Mapping[str, Sequence[str]],
        command: str,
        console: Console,
    ) -> None:
        self.scale, self.folder, self.found, self.every = scale, folder, found, every
        self.problems, self.command, self.console = problems, command, console
        self.done = 0

    def show(self, terminal: Terminal, workers: int) -> None:
        """Show what is to be done, and how long that may take."""
        table = Table(title=f"Reproducing, scale {self.scale}", box=box.SIMPLE_HEAD)
        for name in ("experiment", "what it is", "runs", "evaluations", "gradient evaluations"):
            table.add_column(name, justify="left" if name.startswith(("ex", "wh")) else "right")
        for name in dict.fromkeys(look.view.experiment for look in self.found):
            mine = [look for look in self.found if look.view.experiment == name]
            of = chains(mine)
            gradients = f"{sum(chain.total for chain in of):,.0f}"
            table.add_row(name, EXPERIMENTS[name], str(len(of)), str(len(mine)), gradients)
        terminal.print(table)
        left = [chain for chain in self.every if not chain.done]
        work = sum(chain.total - chain.work() for chain in left)
        lines = f"{len(self.every)} runs in all, {len(self.every) - len(left)} of them done"
        if left:
            lines += (
                f"; left are about {work:,.0f} gradient evaluations, roughly "
                f"{_roughly(_seconds(left, workers))} with {workers} at a time"
            )
        terminal.print(f"{lines}. Runs and report: {self.folder}", markup=False)

    def run(self, workers: int, lock: tuple[int, ...]) -> Path:
        """Work off what is left, write findings and report."""
        left = [chain for chain in self.every if not chain.done]
        self.done = len(self.every) - len(left)
        crew = Crew(
            left,
            workers=workers,
            lock=lock,
            console=self.console,
            total=sum(chain.total for chain in self.every),
            done=sum(chain.total for chain in self.every if chain not in left),
            finished=self._finished,
        )
        try:
            failed = crew.work()
        except Stopped as stopped:
            self._write([])
            raise RunError(
                f"{stopped}: stopped with {self.done} of {len(self.every)} runs done; go on "
                f"with: {self.command}"
            ) from None
        page = self._write(failed)
        if failed:
            told = "; ".join(f"{f.item.name} ({f.phase}): {f.line}" for f in failed)
            raise RunError(
                f"{len(failed)} of {len(self.every)} runs failed: {told} (their logs are beside "
                f"them in {quote(str(self.folder / 'trainings'))}; a repeated command tries them "
                "again)"
            )
        self.console.say(f"report: {page}; tables and figures as text: {page.parent}/results.md")
        return page

    def _finished(self, work: Work) -> None:
        self.done += 1
        self.console.say(f"{self.done}/{len(self.every)}  {work.name} is trained and judged")

    def _write(self, failed: Sequence[Failure]) -> Path:
        """Write the findings of each experiment and the report of all that are there."""
        failures = {f.item.name: f"{f.phase} failed: {f.line}" for f in failed}
        for name in dict.fromkeys(look.view.experiment for look in self.found):
            mine = [look for look in self.found if look.view.experiment == name]
            content = findings(
                name,
                self.folder.name,
                mine,
                command=self.command,
                failures=failures,
                problems=self.problems.get(name, ()),
            )
            write(self.folder, content)
        return build(self.folder)


def _seconds(left: Sequence[Chain], workers: int) -> float:
    """Return a rough time for what is left, from a short measurement of each kind of model."""
    rates: dict[tuple[str, str, float], float] = {}
    total = 0.0
    for chain in left:
        recipe = chain.recipe
        kind = recipe.data, recipe.model, recipe.width
        if kind not in rates:
            rates[kind] = _rate(recipe)
        total += RUN_SECONDS + (chain.total - chain.work()) / rates[kind]
    return total / min(workers, len(left))


def _rate(recipe: Recipe) -> float:
    """Return how many gradient evaluations a second one thread does with a model."""
    dataset = data.load(recipe.data, recipe.data_dir)
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
