"""Tasks are worked off: their commands run one after the other, several tasks at a time."""

__all__ = ["Crew"]

import shlex
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from equipoise.jobs import signals
from equipoise.plans.executor import Executor
from equipoise.plans.task import Command, Task
from equipoise.terminal.progress import Console

LOOK_SECONDS = 0.1
SHOW_SECONDS = 1.0


class Crew:
    """Works off tasks.

    Arguments:
        executor: Where the commands run.
        tasks: All tasks; those that are finished count as progress.
        console: Where progress is shown.
        finished: Called with each task that is at its end.
    """

    def __init__(
        self,
        executor: Executor,
        tasks: Sequence[Task],
        console: Console,
        finished: Callable[[Task], None],
    ) -> None:
        self.executor, self.console, self.finished = executor, console, finished
        self.waiting = deque(task for task in tasks if task.step() is not None)
        left = sum(task.cost for task in self.waiting)
        self.total = sum(task.cost for task in tasks)
        self.done = self.total - left
        self.running: dict[str, tuple[Task, Command]] = {}
        self.failures: dict[str, str] = {}
        self.stopped, self.killed = "", False

    def work(self) -> None:
        """Work off all tasks; ``failures`` has those that failed, with what went wrong.

        On Ctrl-C or SIGTERM every run is saved, and ``stopped`` is the name of the signal.

        Raises:
            KeyboardInterrupt: At the second signal, which ends the commands at once.
        """
        with signals.handled(self._asked), self._bar() as show:
            try:
                while self.running or (self.waiting and not self.stopped):
                    self._fill()
                    self._look()
                    if self.stopped:
                        self.executor.stop(now=self.killed)
                    show()
                    time.sleep(LOOK_SECONDS)
            finally:
                self.executor.stop()
                while self.running:
                    self._ended()
                    time.sleep(LOOK_SECONDS)
        if self.killed:
            raise KeyboardInterrupt

    def _fill(self) -> None:
        """Start what there is room for."""
        while self.waiting and len(self.running) < self.executor.slots and not self.stopped:
            task = self.waiting.popleft()
            command = task.step()
            if command is not None:
                self._start(task, command)

    def _start(self, task: Task, command: Command) -> None:
        task.prepare()
        with task.log.open("a", encoding="utf-8") as log:
            log.write(f"$ {shlex.join(['equipoise', *command.words])}\n")
        self.executor.submit(task, command)
        self.running[task.name] = task, command

    def _ended(self) -> list[tuple[Task, Command, int]]:
        """Return the commands that have ended, with their exit codes."""
        codes = self.executor.poll().items()
        return [(*self.running.pop(name), code) for name, code in codes]

    def _look(self) -> None:
        """Go on with the tasks whose command has ended."""
        for task, command, code in self._ended():
            following = task.step()
            if following is None:
                self.done += task.done()
                self.finished(task)
            elif self.stopped:
                continue
            elif code or following == command:
                self._failed(task, command, code)
            else:
                self._start(task, following)

    def _failed(self, task: Task, command: Command, code: int) -> None:
        text = task.log.read_text(encoding="utf-8", errors="replace")
        last = text.strip().splitlines()[-1].strip()
        if last.startswith("$ ") or code < 0:
            what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            last = f"its process ended by {what}"
        line = last.removeprefix("equipoise: ")
        self.done += task.done()
        self.failures[task.name] = f"{command.phase} failed: {line}"
        self.console.say(f"FAILED: {task.name}: {self.failures[task.name]}")

    def _asked(self, name: str) -> None:
        """Remember the wish to save and stop; the second time stop at once."""
        self.killed = bool(self.stopped)
        self.stopped = name
        self.executor.stop(now=self.killed)

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
        begun = [*(task for task, _ in self.running.values()), *self.waiting]
        return self.done + sum(task.done() for task in begun)

    def _working(self) -> str:
        if self.stopped:
            return "saving"
        names = ", ".join(f"{name} ({c.phase})" for name, (_, c) in self.running.items())
        return f"{names}, {len(self.waiting)} waiting" if self.waiting else names
