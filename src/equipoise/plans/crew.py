"""The processes of a comparison: commands side by side, none of them left behind."""

__all__ = ["Crew", "Failure", "Stopped", "Work", "claim", "spawn"]

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from equipoise.errors import RunError, UserError
from equipoise.jobs import signals
from equipoise.plans import child_process
from equipoise.plans.runs import Step
from equipoise.settings.recipe import Recipe
from equipoise.store.locks import locked
from equipoise.terminal.progress import Console

LOOK_SECONDS = 0.1
SHOW_SECONDS = 1.0
WAIT_SECONDS = 20.0


class Work(Protocol):
    """What a crew works off: commands, one after the other, until nothing is left to do."""

    @property
    def name(self) -> str:
        """Return its name."""

    @property
    def recipe(self) -> Recipe:
        """Return what is trained."""

    @property
    def log(self) -> Path:
        """Return the file that its commands write to."""

    def step(self) -> Step | None:
        """Return what is to be done next; None: nothing."""

    def prepare(self) -> None:
        """Make what the next step needs."""

    def work(self) -> float:
        """Return how much of it is done, in gradient evaluations."""


@dataclass(frozen=True)
class Failure:
    """A run that failed.

    Arguments:
        item: The run.
        phase: In which phase.
        line: The last line that its command wrote.
    """

    item: Work
    phase: str
    line: str


@dataclass
class _Child:
    item: Work
    step: Step
    process: subprocess.Popen[bytes]
    told: bool = False  # to save and stop: once, for the second time means at once


class Stopped(RunError):
    """The comparison was asked to stop, and every run is saved."""


class Crew:
    """Works off runs, so many at a time.

    Arguments:
        items: The runs that are not finished.
        workers: How many are worked on side by side.
        lock: Handles of the lock on the folder; the processes hold it, too, to their end.
        console: Where progress is shown.
        total: The work of the whole comparison, in gradient evaluations.
        done: How much of it the other runs have done.
        finished: Told when a run is at its end.
    """

    def __init__(
        self,
        items: Sequence[Work],
        *,
        workers: int,
        lock: tuple[int, ...],
        console: Console,
        total: float,
        done: float,
        finished: Callable[[Work], None],
    ) -> None:
        self.waiting = deque(items)
        self.workers, self.lock, self.console = workers, lock, console
        self.total, self.done, self.finished = total, done, finished
        self.children: list[_Child] = []
        self.failures: list[Failure] = []
        self.stopped = ""

    def work(self) -> list[Failure]:
        """Work off all runs; return those that failed.

        Raises:
            Stopped: On Ctrl-C or SIGTERM, with every run saved.
        """
        with signals.handled(self._asked), self._bar() as show:
            try:
                while self.children or (self.waiting and not self.stopped):
                    self._fill()
                    self._look()
                    if self.stopped:
                        self._tell()
                    show()
                    time.sleep(LOOK_SECONDS)
            finally:
                self._end()
        if self.stopped:
            raise Stopped(self.stopped)
        return self.failures

    def _fill(self) -> None:
        """Start what there is room for."""
        while self.waiting and len(self.children) < self.workers and not self.stopped:
            item = self.waiting.popleft()
            step = item.step()
            if step is not None:
                self._start(item, step)

    def _start(self, item: Work, step: Step) -> None:
        item.prepare()
        with item.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(['equipoise', *step.words])}\n")
        process = spawn(step.words, item.log, self._environment(item), self.lock)
        self.children.append(_Child(item, step, process))

    def _environment(self, item: Work) -> Mapping[str, str]:
        """Return a share of the threads, and where the data are, also for what was begun."""
        given = os.environ.get("OMP_NUM_THREADS", "")
        cores = int(given) if given.isdigit() else os.cpu_count() or 1
        share = {"OMP_NUM_THREADS": str(max(1, cores // self.workers))}
        place = item.recipe.data_dir
        return share if place is None else share | {"EQUIPOISE_DATA": place}

    def _look(self) -> None:
        """Go on with the runs whose command has ended."""
        for child in list(self.children):
            code = child.process.poll()
            if code is None:
                continue
            self.children.remove(child)
            step = child.item.step()
            if step is None:
                self.done += child.item.work()
                self.finished(child.item)
            elif self.stopped:
                continue
            elif code or step == child.step:
                self._failed(child, code)
            else:
                self._start(child.item, step)

    def _failed(self, child: _Child, code: int) -> None:
        text = child.item.log.read_text(encoding="utf-8", errors="replace")
        last = text.strip().splitlines()[-1].strip()
        if last.startswith("$ ") or code < 0:
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            last = f"its process ended by {what}"
        failure = Failure(child.item, child.step.phase, last.removeprefix("equipoise: "))
        self.done += child.item.work()
        self.failures.append(failure)
        self.console.say(f"FAILED: {failure.item.name}, {failure.phase}: {failure.line}")

    def _end(self) -> None:
        """Let what still runs save and stop."""
        self._tell()
        for child in self.children:
            child.process.wait()

    def _tell(self) -> None:
        """Tell every process to save and stop."""
        for child in self.children:
            if not child.told:
                child.told = True
                child.process.terminate()

    def _kill(self) -> None:
        for child in self.children:
            child.process.kill()

    def _asked(self, name: str) -> None:
        """Remember the wish to save and stop; the second time stop at once."""
        if self.stopped:
            self._kill()
            raise KeyboardInterrupt
        self.stopped = name

    @contextmanager
    def _bar(self) -> Iterator[Callable[[], None]]:
        """Show a bar over all work while the block runs; what is yielded moves it."""
        whole = 1e9  # seconds: the work comes in lumps, so the time left is that of all of it
        with self.console.progress(self.total, self._work(), unit="", period=whole) as bar:
            due = 0.0

            def show() -> None:
                nonlocal due
                if time.monotonic() >= due:
                    due = time.monotonic() + SHOW_SECONDS
                    bar(self._work(), text=self._working())

            yield show

    def _work(self) -> float:
        begun = [*(child.item for child in self.children), *self.waiting]
        return self.done + sum(item.work() for item in begun)

    def _working(self) -> str:
        if self.stopped:
            return "saving"
        names = ", ".join(f"{c.item.name} ({c.step.phase})" for c in self.children)
        return f"{names}, {len(self.waiting)} waiting" if self.waiting else names


def spawn(
    words: Sequence[str], log: Path, environment: Mapping[str, str], lock: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    """Start a command that ends with this process.

    Arguments:
        words: The words after ``equipoise``.
        log: The file that its output is added to.
        environment: What is changed in the environment.
        lock: Handles that it holds open.
    """
    command = (sys.executable, "-P", child_process.__file__, str(os.getpid()), *words)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=os.environ | environment,
            process_group=0,  # Ctrl-C is for this process, which tells them
            pass_fds=lock,
        )


@contextmanager
def claim(out: Path, console: Console) -> Iterator[tuple[int, ...]]:
    """Keep other comparisons out of a folder, until the last process that works in it has ended.

    Processes of a comparison that was killed are given time to save.

    Yields:
        The handles of the lock, to be handed on.

    Raises:
        UserError: If another comparison works there, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}") from None
    busy = f"another comparison works in {out}"

    def waiting() -> None:
        console.say(f"{busy}: waiting for it to save and end")

    lock = out / ".comparison.lock"
    with locked(lock, f"{busy}; let it end", wait=WAIT_SECONDS, waiting=waiting) as handles:
        yield handles
