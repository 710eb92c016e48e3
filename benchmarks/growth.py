"""How time and memory of PGD grow along five axes, all else being fixed."""

__all__ = [
    "AXES",
    "FASTER",
    "Axis",
    "Point",
    "axis_record",
    "cases",
    "exponent",
    "faster",
    "sentences",
]

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from benchmarks.case import Case
from benchmarks.memory import told
from benchmarks.timing import spread

FASTER = 1.1  # a power above this counts as faster than linear: times vary by some percent


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Arguments:
        name: What it is.
        values: From the case at its origin to values on the axis.
        at: From that case and a value to the case there.
        count: From a value to what is counted; the pixels of an image rather than its side.
    """

    name: str
    values: Callable[[Case], Sequence[int]]
    at: Callable[[Case, int], Case]
    count: Callable[[int], int] = lambda value: value


AXES: Mapping[str, Axis] = {
    "batch size": Axis(
        "batch size",
        lambda case: (4, 8, 16, 32, 64, 128),
        lambda case, value: replace(case, batch_size=value, images=value),
    ),
    "images": Axis(
        "images",
        lambda case: [case.batch_size * factor for factor in (1, 2, 4, 8, 16)],
        lambda case, value: replace(case, images=value),
    ),
    "steps": Axis(
        "steps", lambda case: (1, 2, 5, 10, 20), lambda case, value: replace(case, steps=value)
    ),
    "classes": Axis(
        "classes",
        lambda case: (10, 30, 100, 300, 1000),
        lambda case, value: replace(case, classes=value),
    ),
    "pixels": Axis(
        "pixels",
        lambda case: (32, 64, 128, 224),
        lambda case, value: replace(case, size=value),
        lambda value: value * value,
    ),
}


@dataclass
class Point:
    """What was measured at one place of an axis.

    Arguments:
        value: The value there.
        count: What it counts.
        times: The seconds, one a repeat.
        peak: The peak memory in bytes; None: not measured.
    """

    value: int
    count: int
    times: list[float] = field(default_factory=list)
    peak: int | None = None

    @property
    def seconds(self) -> float:
        """Return the median of the times."""
        return spread(self.times).median


def cases(axis: Axis, case: Case) -> list[tuple[Point, Case]]:
    """Return the points of an axis, without times, and what is benched at each."""
    values = axis.values(case)
    return [(Point(value, axis.count(value)), axis.at(case, value)) for value in values]


def exponent(counts: Sequence[float], found: Sequence[float | None]) -> float | None:
    """Return the power with which something grows: the slope of a line through the logarithms.

    Arguments:
        counts: What grows.
        found: What was found there; None and what is not positive is left out.

    Returns:
        The power, by least squares; None with less than two points.
    """
    pairs = [(n, f) for n, f in zip(counts, found, strict=True) if f is not None and f > 0]
    if len({n for n, _ in pairs}) < 2:
        return None
    x, y = np.log([n for n, _ in pairs]), np.log([f for _, f in pairs])
    return float(np.polyfit(x, y, 1)[0])


def faster(counts: Sequence[float], found: Sequence[float | None]) -> list[dict[str, float]]:
    """Return the stretches between neighbours where something grows faster than linearly."""
    stretches = []
    places = list(zip(counts, found, strict=True))
    for (low, less), (high, more) in pairwise(places):
        if less is None or more is None or less <= 0 or more <= 0:
            continue
        power = math.log(more / less) / math.log(high / low)
        if power > FASTER:
            stretches.append({"from": low, "to": high, "exponent": power})
    return stretches


def axis_record(axis: Axis, points: Sequence[Point]) -> dict[str, Any]:
    """Return what was found along an axis, for a file."""
    counts = [float(point.count) for point in points]
    seconds = [point.seconds if point.times else None for point in points]
    peaks = [None if point.peak is None else float(told(point.peak)) for point in points]
    return {
        "axis": axis.name,
        "points": [
            {"value": p.value, "count": p.count, "times": p.times}
            | {"seconds": vars(spread(p.times)) if p.times else None, "peak_memory": p.peak}
            for p in points
        ],
        "exponent": exponent(counts, seconds),
        "memory_exponent": exponent(counts, peaks),
        "faster_than_linear": faster(counts, seconds),
        "memory_faster_than_linear": faster(counts, peaks),
    }


def sentences(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where time or memory grows faster than linearly."""
    said = [
        f"{what} grows faster than linearly from {part['from']:,.0f} to {part['to']:,.0f} "
        f"{axis['axis']}: power {part['exponent']:.2f}"
        for axis in axes
        for key, what in (("", "time"), ("memory_", "memory"))
        for part in axis[f"{key}faster_than_linear"]
    ]
    return said or ["nothing grows faster than linearly"]
