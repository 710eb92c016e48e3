"""Timing: all sides in turn, in one process, and what their times come to."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

LEAST_SECONDS = 0.4  # a shorter run is repeated within one time, so that the clock can tell
MOST_LOOPS = 100
BEGINNING = 10  # how many times as long the first run may take


@dataclass(kw_only=True)
class Side:
    """One of those that do the same work, and what was measured of it.

    Arguments:
        name: Its name.
        run: Does the work once; what it returns depends on the benchmark.
        about: How it does the work, in a few words.
        gradients: The gradient evaluations of the work; None: not known.
        flops: The useful floating-point operations of the work, the same for all; None: not known.
        warm: What is done once before anything is timed; None: ``run``.
        loops: The number of runs within each time.
        seconds: The times of a run, one a repeat.
        peak: The most bytes that it held beyond what was there before; None: not measured.
        notes: What the benchmark has to say of it besides.
        last: What the last run returned.
    """

    name: str
    run: Callable[[], Any]
    about: str = ""
    gradients: int | None = None
    flops: int | None = None
    warm: Callable[[], Any] | None = None
    loops: int = 1
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    last: Any = None

    def record(self, ours: "Side") -> dict[str, Any]:
        """Return everything for a file, compared with our side."""
        record: dict[str, Any] = {"about": self.about, "loops": self.loops}
        record |= {"times": self.seconds, "gradient_evaluations": self.gradients}
        record |= {"useful_flops": self.flops, "peak_memory": self.peak}
        if self.seconds:
            times = record["seconds"] = spread(self.seconds)
            for name, count in (("gradients", self.gradients), ("flops", self.flops)):
                record[f"{name}_per_second"] = count / times["median"] if count else None
        pairs = ratios(self.seconds, ours.seconds)
        record["times_ours"] = {"pairs": pairs, **spread(pairs)} if pairs else None
        return record | self.notes


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median of some values and their range."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratios(these: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how many times as long these took as ours, pair by pair: those of one repeat."""
    return [a / b for a, b in zip(these, ours, strict=False)]


def alternate(
    sides: Sequence[Side],
    repeats: int,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
    least: float = LEAST_SECONDS,
) -> Iterator[None]:
    """Time sides in turn; each repeat begins with the next of them.

    Each is run once before, untimed. The time of the first decides how often the work of all is
    done within each time.

    Arguments:
        sides: Those that do the work.
        repeats: How often each is timed.
        device: Where the work is done.
        clock: Seconds.
        least: The shortest time that is wanted.

    Yields:
        After each time.
    """
    first, *others = [side.warm or side.run for side in sides]
    once, _ = _timed(first, 1, device, clock)
    for run in others:
        run()
    if once < BEGINNING * least:  # the first run also prepares: only the next tells
        once, _ = _timed(first, 1, device, clock)
    loops = max(1, min(MOST_LOOPS, round(least / max(once, 1e-9))))
    for side in sides:
        side.loops, side.seconds, side.last = loops, [], None
    for repeat in range(repeats):
        turn = repeat % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            seconds, side.last = _timed(side.run, loops, device, clock)
            side.seconds.append(seconds)
            yield


def _timed(
    run: Callable[[], Any], loops: int, device: torch.device, clock: Callable[[], float]
) -> tuple[float, Any]:
    """Return the seconds of one run of so many in a row, and what the last of them returned."""
    _settle(device)
    began, last = clock(), None
    for _ in range(loops):
        last = run()
    _settle(device)
    return (clock() - began) / loops, last


def _settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
