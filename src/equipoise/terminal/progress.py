"""Messages and progress on the terminal while a job runs. No torch."""

import errno
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from equipoise.measures.by_class import classes_in_words

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


@dataclass(frozen=True, kw_only=True)
class AttackProgress:
    """The progress of an evaluation.

    Arguments:
        name: The running attack.
        done: The number of images that it has attacked.
        total: The number of images to attack.
        robust: The number of images that are correct under all attacks so far.
        n: The number of all images.
        number: The number of the attack, from 1.
        stages: The number of attacks.
        finished: Whether the attack has finished.
        seconds: The duration of the attack so far.
        note: What is shown in place of the number of the attack and its images.
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
    note: str = ""


class TimeUp(KeyboardInterrupt):
    """The time that a job was given is over: it saves and stops, as after Ctrl-C.

    ``finished`` is the number of its parts that are finished, where a job counts them.
    """

    finished = 0


class Console:
    """Sentences, warnings and a progress bar, on standard error.

    Arguments:
        quiet: Whether to show only warnings.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self.quiet = quiet
        self.rich = RichConsole(file=sys.stderr, highlight=False, soft_wrap=True)
        self._show: Callable[..., None] = lambda *arguments, **options: None
        self._done = 0.0
        self._until, self._clock = math.inf, time.monotonic

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        if not self.quiet:
            self._print(sentence)

    def warn(self, sentence: str) -> None:
        """Show a warning, even if the console is quiet."""
        self._print(f"WARNING: {sentence}", style="bold yellow")

    def _print(self, sentence: str, style: str | None = None) -> None:
        try:
            self.rich.print(sentence, markup=False, style=style)
        except OSError as error:
            if error.errno != errno.EIO:  # the terminal was closed: a signal will follow
                raise

    def round(self, record: Mapping[str, Any], *, classes: bool = False) -> None:
        """Show the line of a round; ``classes``: with balanced accuracy and worst class."""
        self.say(round_line(record, classes=classes))

    @contextmanager
    def within(
        self, seconds: float | None, clock: Callable[[], float] = time.monotonic
    ) -> Iterator[None]:
        """Give the block a time: then the next :meth:`attack` or :meth:`due` raises TimeUp.

        Arguments:
            seconds: The time; None: no limit.
            clock: Returns the seconds since some moment.
        """
        before = self._until, self._clock
        self._clock = clock
        self._until = math.inf if seconds is None else clock() + seconds
        try:
            yield
        finally:
            self._until, self._clock = before

    def due(self) -> None:
        """Raise TimeUp if the time that the running block was given is over."""
        if self._clock() >= self._until:
            raise TimeUp

    @contextmanager
    def progress(
        self,
        total: float | None = None,
        done: float = 0.0,
        *,
        unit: str = "images",
        text: str = "",
        period: float = 30.0,
    ) -> Iterator[Callable[..., None]]:
        """Show a progress bar while the block runs, on a terminal only.

        :meth:`advance`, :meth:`attack` or the yielded function moves it.

        Arguments:
            total: The number of units; None: unknown.
            done: The units that were done before.
            unit: The kind of unit: ``images``, ``bytes``, or empty.
            text: The text next to the bar.
            period: The last seconds, from whose speed the remaining time is estimated.

        Yields:
            ``show(done, total=None, *, task="", text="")``. ``total=None`` keeps the total;
            another ``task`` restarts the clock.
        """
        from rich.progress import Progress

        hidden = self.quiet or not self.rich.is_terminal
        bar = Progress(
            *_columns(unit),
            console=self.rich,
            transient=True,
            expand=True,
            speed_estimate_period=period,
            disable=hidden,
        )
        row, current = bar.add_task(text, total=total, completed=round(done)), ""

        def show(
            done: float, total: float | None = None, *, task: str = "", text: str = ""
        ) -> None:
            nonlocal current
            if task != current:
                current = task
                bar.reset(row)
            bar.update(row, completed=done, total=total, description=text or task or None)

        before, self._show, self._done = self._show, show, done
        try:
            with nullcontext() if hidden else bar:  # a disabled bar of old rich writes a newline
                yield show
        finally:
            self._show = before

    def advance(self, n: int) -> None:
        """Move the bar by ``n`` units."""
        self._done += n
        self._show(self._done)

    def attack(self, state: AttackProgress) -> None:
        """Show the progress of an attack, and a line when it has finished; see :meth:`within`."""
        task = f"{state.name} ({state.note or f'{state.number}/{state.stages}'})"
        bound = f"robust accuracy <= {state.robust / max(state.n, 1):.2%}"
        self._show(state.done, state.total, task=task, text=f"{task}: {bound}")
        if state.finished:
            self.say(f"{task}: {state.total} images, {bound}  [{state.seconds:.1f} s]")
        self.due()


def _columns(unit: str) -> "tuple[ProgressColumn, ...]":
    """Return what stands in the line of a progress bar, with the speed in a kind of unit."""
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
    return (
        progress.BarColumn(20),
        progress.TextColumn("{task.percentage:>3.0f}%"),
        *speed.get(unit, []),
        progress.TimeElapsedColumn(),
        progress.TextColumn("ETA"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}", markup=False, table_column=last),
    )


def round_line(record: Mapping[str, Any], *, classes: bool = False) -> str:
    """Return one line for a round (epoch): clean and robust validation accuracy of each learner.

    With a check for catastrophic overfitting it also has the accuracy on the probe.

    Arguments:
        record: A line of ``log.jsonl``.
        classes: Whether to add the balanced accuracy and the worst class of the global model.
    """

    def pair(metrics: Mapping[str, float]) -> str:
        probe = f" probe {metrics['probe']:.2%}" if "probe" in metrics else ""
        return f"{metrics['clean_accuracy']:6.2%} / {metrics['robust_accuracy']:6.2%}{probe}"

    parts = [f"{name} {pair(metrics)}" for name, metrics in record["learners"].items()]
    of_classes = classes_in_words(record["global"]) if classes else ""
    parts.append(", ".join(filter(None, [f"global {pair(record['global'])}", of_classes])))
    if len(record["weights"]) > 1:
        parts.append(
            "weights " + ", ".join(f"{name} {w:.2f}" for name, w in record["weights"].items())
        )
    if events := [text for key, text in _EVENTS.items() if record.get(key)]:
        parts.append(", ".join(events))
    seconds = sum(record["seconds"].values())
    head = f"round {record['round']:>3}/{record['rounds']}"
    return f"{head}  {'  |  '.join(parts)}  [{seconds:.0f} s]"


_EVENTS = {
    "handover": "handed over",
    "kept": "kept",
    "rollbacks": "trained again",
    "collapse": "collapsed",
}
