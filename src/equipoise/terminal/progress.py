"""What is shown on the terminal while a job runs. No torch."""

__all__ = ["Console", "round_line"]

import errno
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class AttackState(Protocol):
    """How far an evaluation is: see :class:`equipoise.evaluation.Progress`."""

    @property
    def name(self) -> str:
        """The attack."""
        ...

    @property
    def done(self) -> int:
        """How many images it is done with."""
        ...

    @property
    def total(self) -> int:
        """How many it attacks."""
        ...

    @property
    def robust(self) -> int:
        """How many have withstood everything so far."""
        ...

    @property
    def n(self) -> int:
        """How many there are."""
        ...

    @property
    def number(self) -> int:
        """Which of the stages it is."""
        ...

    @property
    def stages(self) -> int:
        """How many stages there are."""
        ...

    @property
    def finished(self) -> bool:
        """Whether it is at its end."""
        ...

    @property
    def seconds(self) -> float:
        """How long it took."""
        ...


class _Throughput(ProgressColumn):
    """The images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} images/s", style="cyan")


class Console:
    """Sentences, warnings and a progress bar, on standard error.

    Arguments:
        quiet: Whether to show nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.rich = RichConsole(file=sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        if not self.quiet:
            self._print(sentence)

    def warn(self, sentence: str) -> None:
        """Show a warning; also where all else is quiet."""
        self._print(f"WARNING: {sentence}", style="bold yellow")

    def _print(self, sentence: str, style: str | None = None) -> None:
        try:
            self.rich.print(sentence, markup=False, style=style)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed: its signal is on its way
                raise

    def round(self, record: Mapping[str, Any]) -> None:
        """Show the line of a round."""
        self.say(round_line(record))

    @contextmanager
    def progress(self, total: int, done: int = 0, what: str = "training") -> Iterator[None]:
        """Show a bar while the block runs; :meth:`advance` moves it."""
        if self.quiet or not self.rich.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _Throughput(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.rich, transient=True) as bar:
            bar.add_task(what, total=total, completed=done)
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Show how an evaluation goes on while the block runs; :meth:`attack` moves it."""
        if self.quiet or not self.rich.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=self.rich, transient=True) as bar:
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def attack(self, state: "AttackState") -> None:
        """Show how far an attack is; a line of its own when it is at its end."""
        what = f"{state.name} ({state.number}/{state.stages})"
        bound = f"robust accuracy <= {state.robust / max(state.n, 1):.2%}"
        if self._bar is not None:
            known = {task.fields.get("name"): task.id for task in self._bar.tasks}
            if state.name not in known:
                for task in self._bar.tasks:
                    self._bar.remove_task(task.id)
                known = {state.name: self._bar.add_task(what, total=state.total, name=state.name)}
            text = f"{what}: {bound}"
            self._bar.update(known[state.name], completed=state.done, description=text)
        if state.finished:
            self.say(f"{what}: {state.total} images, {bound}  [{state.seconds:.1f} s]")

    def advance(self, n: int) -> None:
        """Move the bar by so many images."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], n)


def round_line(record: Mapping[str, Any]) -> str:
    """Return a round in one line: clean and robust validation accuracy of each learner.

    A learner that is watched for catastrophic overfitting also shows its accuracy on the probe.

    Arguments:
        record: A line of ``log.jsonl``.
    """

    def pair(metrics: Mapping[str, float]) -> str:
        probe = f" probe {metrics['probe']:.2%}" if "probe" in metrics else ""
        return f"{metrics['clean_accuracy']:6.2%} / {metrics['robust_accuracy']:6.2%}{probe}"

    parts = [f"{name} {pair(metrics)}" for name, metrics in record["learners"].items()]
    parts.append(f"global {pair(record['global'])}")
    if len(record["weights"]) > 1:
        weights = ", ".join(f"{name} {w:.2f}" for name, w in record["weights"].items())
        parts.append(f"weights {weights}")
    marks = [said for mark, said in _MARKS.items() if record.get(mark)]
    if marks:
        parts.append(", ".join(marks))
    seconds = sum(record["seconds"].values())
    head = f"round {record['round']:>3}/{record['rounds']}"
    return f"{head}  " + "  |  ".join(parts) + f"  [{seconds:.0f} s]"


_MARKS = {
    "handover": "handed over",
    "kept": "kept",
    "rollbacks": "trained again",
    "collapse": "collapsed",
}
