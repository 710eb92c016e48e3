"""What is shown on the terminal while a job runs. No torch."""

import errno
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console as RichConsole


@dataclass(frozen=True, kw_only=True)
class AttackProgress:
    """The progress of an evaluation.

    Arguments:
        name: The attack that runs.
        done: The number of images that it has attacked.
        total: The number of images that it attacks.
        robust: The number of images that are correct under all attacks so far.
        n: The number of all images.
        number: The number of the attack, from 1 on.
        stages: The number of attacks.
        finished: Whether the attack is at its end.
        seconds: The time that the attack took so far.
    """

    name: str
    done: int
    total: int
    robust: int
    n: int
    number: int = 1
    stages: int = 1
    finished: bool = False
    seconds: float = 0.0


Show = Callable[..., None]
"""Moves a progress bar to ``show(done, total=None, *, task="", text="")``.

``done`` and ``total`` are in units (None: as before, or unknown). Another ``task`` restarts the
clock, and ``text`` stands next to the bar.
"""


def _nothing(*arguments: object, **options: object) -> None:
    """Show nothing."""


@contextmanager
def progress_bar(
    console: "RichConsole",
    total: float | None = None,
    done: float = 0.0,
    *,
    unit: str = "",
    text: str = "",
    period: float = 30.0,
) -> Iterator[Show]:
    """Show a progress bar while the block runs, on a terminal only.

    Arguments:
        console: Where it is shown.
        total: The units in all, where that is known.
        done: The units that were done before.
        unit: What is counted: ``images``, ``bytes``, or nothing.
        text: The text next to the bar.
        period: The seconds of the past from which the time that is left is estimated.

    Yields:
        The function that moves it.
    """
    if not console.is_terminal:
        yield _nothing
        return
    from rich import progress
    from rich.table import Column

    class ImageSpeed(progress.ProgressColumn):
        def render(self, task: progress.Task) -> str:
            speed = task.finished_speed or task.speed
            return "" if speed is None else f"{speed:,.0f} images/s"

    speed: dict[str, list[progress.ProgressColumn]] = {
        "images": [ImageSpeed()],
        "bytes": [progress.DownloadColumn(), progress.TransferSpeedColumn()],
    }
    last = Column(ratio=1, no_wrap=True)
    columns = (
        progress.BarColumn(20),
        progress.TextColumn("{task.percentage:>3.0f}%"),
        *speed.get(unit, []),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}", markup=False, table_column=last),
    )
    with progress.Progress(
        *columns, console=console, transient=True, expand=True, speed_estimate_period=period
    ) as bar:
        row = bar.add_task(text, total=total, completed=round(done))
        current = ""

        def show(
            done: float, total: float | None = None, *, task: str = "", text: str = ""
        ) -> None:
            nonlocal current
            if task != current:
                current = task
                bar.reset(row)
            bar.update(row, completed=done, total=total, description=text or task or None)

        yield show


class Console:
    """Sentences, warnings and a progress bar, on standard error.

    Arguments:
        quiet: Whether to show nothing but warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.quiet = quiet
        self.rich = RichConsole(file=sys.stderr, highlight=False, soft_wrap=True)
        self._show: Show = _nothing
        self._done = 0.0

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
    def progress(
        self,
        total: float | None = None,
        done: float = 0.0,
        *,
        unit: str = "images",
        text: str = "",
        period: float = 30.0,
    ) -> Iterator[Show]:
        """Show a bar while the block runs; the arguments are those of :func:`progress_bar`.

        :meth:`advance`, :meth:`attack` or the function that is yielded moves it.
        """
        if self.quiet:
            yield _nothing
            return
        with progress_bar(self.rich, total, done, unit=unit, text=text, period=period) as show:
            self._show, self._done = show, done
            try:
                yield show
            finally:
                self._show = _nothing

    def advance(self, n: int) -> None:
        """Move the bar by so many units."""
        self._done += n
        self._show(self._done)

    def attack(self, state: AttackProgress) -> None:
        """Show the progress of an attack, and a line of its own when it is at its end."""
        task = f"{state.name} ({state.number}/{state.stages})"
        bound = f"robust accuracy <= {state.robust / max(state.n, 1):.2%}"
        self._show(state.done, state.total, task=task, text=f"{task}: {bound}")
        if state.finished:
            self.say(f"{task}: {state.total} images, {bound}  [{state.seconds:.1f} s]")


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
