"""Timing: all sides in turn, in one process, and what their times come to."""

__all__ = ["Measured", "Side", "Spread", "alternate", "ratios", "records", "spread", "timed"]

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

LEAST_SECONDS = 0.4  # a shorter run is repeated within one time, so that the clock can tell
MOST_LOOPS = 100
BEGINNING = 10  # how many times as long the first run may take


@dataclass(frozen=True, kw_only=True)
class Side:
    """Somebody who does the work.

    Arguments:
        name: Who.
        run: Does it once; what it returns depends on the bench.
        about: How, in a few words.
        gradients: The gradient evaluations of the work; None: not known.
        flops: The useful floating-point operations of the work, the same for all; None: not known.
        warm: What is done once before anything is timed; None: ``run``.
    """

    name: str
    run: Callable[[], Any]
    about: str = ""
    gradients: int | None = None
    flops: int | None = None
    warm: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest value.

    Arguments:
        median: The median.
        least: The least.
        most: The greatest.
    """

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some values and their range."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(these: Sequence[float], ours: Sequence[float]) -> list[float]:
    """Return how many times as long these took as ours, pair by pair: those of one repeat."""
    return [a / b for a, b in zip(these, ours, strict=False)]


@dataclass
class Measured:
    """What was measured of one side.

    Arguments:
        side: The side.
        loops: How often the work was done within each time.
        seconds: The times of the work, one a repeat.
        peak: The most bytes that it held beyond what was there before; None: not measured.
        found: What the bench has to say of it besides.
        last: What the last run returned.
    """

    side: Side
    loops: int = 1
    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    found: dict[str, Any] = field(default_factory=dict)
    last: Any = None

    def record(self, ours: "Measured | None") -> dict[str, Any]:
        """Return everything for a file, compared with ours where there is that."""
        record: dict[str, Any] = {"about": self.side.about, "loops": self.loops}
        record |= {"times": self.seconds, "gradient_evaluations": self.side.gradients}
        record |= {"useful_flops": self.side.flops, "peak_memory": self.peak}
        if self.seconds:
            times = spread(self.seconds)
            record["seconds"] = vars(times)
            for name, count in (("gradients", self.side.gradients), ("flops", self.side.flops)):
                record[f"{name}_per_second"] = count / times.median if count else None
        pairs = ratios(self.seconds, ours.seconds) if ours is not None else []
        record["times_ours"] = {"pairs": pairs, **vars(spread(pairs))} if pairs else None
        return record | self.found


def alternate(
    sides: Sequence[Side],
    repeats: int,
    device: torch.device,
    *,
    clock: Callable[[], float] = time.perf_counter,
    least: float = LEAST_SECONDS,
) -> Iterator[dict[str, Measured]]:
    """Time sides in turn; each repeat begins with the next of them.

    Each is run once before, untimed; by how long the first one takes it is decided how often
    the work is done within each time, by all.

    Arguments:
        sides: Who does the work.
        repeats: How often each is timed.
        device: Where the work is done.
        clock: Seconds.
        least: How long a time should be at least.

    Yields:
        All that was measured so far, after each time.
    """
    first, *others = [side.warm or side.run for side in sides]
    once, _ = timed(first, 1, device, clock)
    for run in others:
        run()
    if once < BEGINNING * least:  # the first run also prepares: only the next tells
        once, _ = timed(first, 1, device, clock)
    loops = max(1, min(MOST_LOOPS, round(least / max(once, 1e-9))))
    found = {side.name: Measured(side, loops) for side in sides}
    for repeat in range(repeats):
        turn = repeat % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            seconds, last = timed(side.run, loops, device, clock)
            found[side.name].seconds.append(seconds)
            found[side.name].last = last
            yield found


def timed(
    run: Callable[[], Any], loops: int, device: torch.device, clock: Callable[[], float]
) -> tuple[float, Any]:
    """Return the seconds of one run of so many in a row, and what the last of them returned."""
    _settle(device)
    began = clock()
    last = None
    for _ in range(loops):
        last = run()
    _settle(device)
    return (clock() - began) / loops, last


def _settle(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def records(found: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    """Return everything measured for a file, by side; ours is the first."""
    first = next(iter(found.values()), None)
    return {name: measured.record(first) for name, measured in found.items()}
