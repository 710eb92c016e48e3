"""What was measured, on the terminal."""

__all__ = ["show_bars", "show_bench", "show_setting"]

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console as Terminal
from rich.table import Table

_MIB = 2**20


def show_setting(terminal: Terminal, content: Mapping[str, Any]) -> None:
    """Say where it is measured: device, threads, torch, form of our search."""
    origin = content["provenance"]
    terminal.print(
        f"{origin['device']}, {origin['threads']} threads, torch {origin['torch']}; ours: "
        f"{content['execution']}; {content['repeats']} times each, in turn",
        markup=False,
    )


def show_bench(terminal: Terminal, bench: Mapping[str, Any]) -> None:
    """Show one bench: a row a side, or a row an axis of growth."""
    if "axes" in bench:
        terminal.print(_growth(bench))
        for sentence in bench["faster"]:
            terminal.print(sentence, markup=False)
        return
    table = _table(bench["title"], "side")
    for head in _HEADS[bench["what"]]:
        table.add_column(head, justify="right")
    for name, side in bench["sides"].items():
        table.add_row(name, *_cells(bench["what"], side))
    terminal.print(table)
    for name, side in bench["sides"].items():
        terminal.print(f"  {name}: {side['about']}", markup=False)
    for name, remedy in bench["absent"].items():
        terminal.print(f"  {name} is not installed: {remedy}", markup=False)
    for sentence in bench.get("said", ()):
        terminal.print(f"  {sentence}", markup=False)


_SHARED = ("seconds", "times ours", "peak memory")
_RATES = ("gradients a second", "GFLOP/s")
_HEADS = {
    "attack": (*_SHARED, *_RATES, "loss reached"),
    "train": (*_SHARED, *_RATES),
    "evaluate": (*_SHARED, "robust", "robust here only", "for ours only"),
}


def _cells(what: str, side: Mapping[str, Any]) -> list[str]:
    peak = side["peak_memory"]
    cells = [
        _spread(side.get("seconds")),
        _spread(side["times_ours"]),
        "" if peak is None else f"{peak / _MIB:,.0f} MiB",
    ]
    if what == "evaluate":
        robust = f"{side['robust_accuracy']:.2%}" if "robust_accuracy" in side else ""
        cells.append(robust)
        differing = ("robust_here_only", "robust_for_first_only")
        return cells + [str(len(side[key])) if key in side else "" for key in differing]
    gradients, flops = side.get("gradients_per_second"), side.get("flops_per_second")
    cells.append("" if gradients is None else f"{gradients:,.0f}")
    cells.append("" if flops is None else f"{flops / 1e9:,.1f}")
    if what == "attack":
        cells.append(f"{side['loss']:.3f}" if "loss" in side else "")
    return cells


def _spread(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{_short(found['median'])} ({_short(found['least'])}..{_short(found['most'])})"


def _short(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _growth(bench: Mapping[str, Any]) -> Table:
    table = _table(bench["title"], "axis")
    for head in ("from", "to", "seconds", "power", "peak memory", "power of memory"):
        table.add_column(head, justify="right")
    for axis in bench["axes"]:
        points = [point for point in axis["points"] if point["seconds"]]
        if not points:
            continue
        first, last = points[0], points[-1]
        seconds = [_short(point["seconds"]["median"]) for point in (first, last)]
        peaks = [point["peak_memory"] for point in (first, last)]
        known = [f"{peak / _MIB:,.0f}" for peak in peaks if peak is not None]
        table.add_row(
            axis["axis"],
            f"{first['count']:,}",
            f"{last['count']:,}",
            " .. ".join(seconds),
            _power(axis["exponent"]),
            f"{' .. '.join(known)} MiB" if known else "",
            _power(axis["memory_exponent"]),
        )
    return table


def _power(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def show_bars(terminal: Terminal, found: Sequence[Mapping[str, Any]]) -> None:
    """Show what was wanted and what was reached."""
    if not found:
        return
    table = _table("ours", "bench")
    table.add_column("is")
    for head in ("wanted", "found"):
        table.add_column(head, justify="right")
    table.add_column("")
    words = {True: "reached", False: "not reached", None: "not measured"}
    for bar in found:
        table.add_row(
            bar["bench"],
            bar["bar"],
            f"{'<=' if bar['at_most'] else '>='} {bar['wanted']:g}",
            "" if bar["found"] is None else f"{bar['found']:.3f}",
            words[bar["reached"]],
        )
    terminal.print(table)


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    table.add_column(first)
    return table
