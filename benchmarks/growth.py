"""How time and memory of PGD grow along five axes, all else being fixed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.case import Case
from benchmarks.memory import at_least
from benchmarks.timing import spread

FASTER = 1.1  # a power above this counts as faster than linear: times vary by some percent

Points = Sequence[tuple[int, list[float], int | None]]
"""Counts, times in seconds and peak memory in bytes, at each place of an axis."""

AXES: Mapping[str, Callable[[Case], Mapping[int, Any]]] = {
    "batch size": lambda case: {
        n: {"batch_size": n, "images": n} for n in (4, 8, 16, 32, 64, 128)
    },
    "images": lambda case: {
        n: {"images": n} for n in (case.batch_size * factor for factor in (1, 2, 4, 8, 16))
    },
    "steps": lambda case: {n: {"steps": n} for n in (1, 2, 5, 10, 20)},
    "classes": lambda case: {n: {"classes": n} for n in (10, 30, 100, 300, 1000)},
    "pixels": lambda case: {side**2: {"size": side} for side in (32, 64, 128, 224)},
}
"""From a case to the counts along an axis, and what is another than in the case at each."""


def cases(name: str, case: Case) -> list[tuple[int, Case]]:
    """Return the counts along an axis with what is measured at each."""
    return [(count, replace(case, **change)) for count, change in AXES[name](case).items()]


def exponent(counts: Sequence[float], found: Sequence[float | None]) -> float | None:
    """Return the power with which something grows: the slope of a line through the logarithms.

    Arguments:
        counts: What grows.
        found: What was measured there; None and what is not positive is left out.

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
    for (low, less), (high, more) in pairwise(zip(counts, found, strict=True)):
        if less and more and less > 0 and more > 0:
            power = math.log(more / less) / math.log(high / low)
            if power > FASTER:
                stretches.append({"from": low, "to": high, "exponent": power})
    return stretches


def axis_record(name: str, points: Points) -> dict[str, Any]:
    """Return what was measured along an axis, for a file.

    Arguments:
        name: The axis.
        points: What was measured along it.
    """
    counts = [float(count) for count, _, _ in points]
    times = [spread(seconds) if seconds else None for _, seconds, _ in points]
    medians = [None if seconds is None else seconds["median"] for seconds in times]
    peaks = [None if peak is None else float(at_least(peak)) for _, _, peak in points]
    return {
        "axis": name,
        "points": [
            {"count": count, "times": seconds, "seconds": spread_, "peak_memory": peak}
            for (count, seconds, peak), spread_ in zip(points, times, strict=True)
        ],
        "exponent": exponent(counts, medians),
        "memory_exponent": exponent(counts, peaks),
        "faster_than_linear": faster(counts, medians),
        "memory_faster_than_linear": faster(counts, peaks),
    }


def sentences(axes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say where time or memory grows faster than linearly."""
    lines = [
        f"{what} grows faster than linearly from {part['from']:,.0f} to {part['to']:,.0f} "
        f"{axis['axis']}: power {part['exponent']:.2f}"
        for axis in axes
        for key, what in (("", "time"), ("memory_", "memory"))
        for part in axis[f"{key}faster_than_linear"]
    ]
    return lines or ["nothing grows faster than linearly"]


def figure(axes: Sequence[Mapping[str, Any]], title: str) -> str:
    """Return the figure as SVG: seconds and memory along each axis, both scales logarithmic.

    Arguments:
        axes: What :func:`axis_record` returned.
        title: What was measured.
    """
    rows = [("seconds", "exponent", _seconds), ("MiB", "memory_exponent", _mebibytes)]
    rows = [row for row in rows if any(row[2](p) for axis in axes for p in axis["points"])]
    with matplotlib.rc_context({"svg.fonttype": "none", "font.size": 9}):
        drawing = Figure(figsize=(2.6 * len(axes), 0.5 + 2.2 * len(rows)), layout="constrained")
        panels = drawing.subplots(max(1, len(rows)), len(axes), squeeze=False)
        drawing.suptitle(f"{title}; dashed: linear")
        for (unit, key, value_of), row in zip(rows, panels, strict=False):
            for axis, panel in zip(axes, row, strict=True):
                power = "unknown" if axis[key] is None else f"{axis[key]:.2f}"
                pairs = [(p["count"], value_of(p)) for p in axis["points"] if value_of(p)]
                counts, values = [n for n, _ in pairs], [v for _, v in pairs]
                panel.set(xscale="log", yscale="log", xlabel=axis["axis"])
                panel.set_title(f"{unit}, power {power}")
                panel.plot(counts, values, "o-")
                if values:
                    linear = [values[-1] * count / counts[-1] for count in counts]
                    panel.plot(counts, linear, "--", color="grey")
        file = StringIO()
        drawing.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _seconds(point: Mapping[str, Any]) -> float | None:
    return point["seconds"]["median"] if point["seconds"] else None


def _mebibytes(point: Mapping[str, Any]) -> float | None:
    return point["peak_memory"] / 2**20 if point["peak_memory"] else None
