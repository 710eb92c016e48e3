"""What was measured, on the terminal, and beside it the targets."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console as Terminal

from benchmarks.memory import at_least
from benchmarks.timing import spread
from equipoise.terminal.table import rich_table

Json = Mapping[str, Any]

PEERS = {
    "attack": ("torchattacks", "foolbox"),
    "train": ("plain loop",),
    "evaluate": ("pyautoattack",),
}
TIMES = {"train": 2.5, "evaluate": 3.0}  # as fast as the fastest peer
ATTACK_TIMES = {"without": 1.2, "with": 2.3}  # likewise, by processors without and with bfloat16
OVERHEAD = 1.15  # of an attack over its bare passes and one forward pass
MEMORY = 1.0  # of that of the leanest peer

_MIB = 2**20
_SHARED = ("seconds", "times ours", "peak memory")
_RATES = ("gradients a second", "GFLOP/s")
_COLUMNS = {
    "attack": (*_SHARED, *_RATES, "loss reached"),
    "train": (*_SHARED, *_RATES),
    "evaluate": (*_SHARED, "robust", "robust here only", "for ours only"),
}


def targets(benches: Iterable[Json]) -> list[dict[str, Any]]:
    """Return every target with what was reached.

    Arguments:
        benches: The records of what was measured, see ``bench.json``.

    Returns:
        For each its ``bench`` and ``target``, the numbers ``wanted`` and ``found`` (None: not
        measured), and whether it is ``reached``.
    """
    return [
        target
        for bench in benches
        if bench["what"] in PEERS
        for target in (*_speeds(bench), _memory(bench))
    ]


def _speeds(bench: Json) -> list[dict[str, Any]]:
    """Return the targets of speed; of those by processor only this one's is measured."""
    what, sides = bench["what"], bench["sides"]
    fastest = _least_peer(bench, lambda side: (side["times_ours"] or {}).get("median"))
    if what in TIMES:
        return [_target(bench, "times as fast as", TIMES[what], fastest)]
    here = "with" if bench.get("has_bfloat16") else "without"
    found = [
        _target(
            bench,
            f"{kind} bfloat16 instructions, times as fast as",
            wanted,
            fastest if kind == here else None,
        )
        for kind, wanted in ATTACK_TIMES.items()
    ]
    pairs = ((sides.get("bare passes") or {}).get("times_ours") or {}).get("pairs")
    ours = (spread([1 / pair for pair in pairs])["median"], "bare passes") if pairs else None
    target = _target(bench, "of the time of", OVERHEAD, ours, "bare passes", most=True)
    return [*found, target]


def _memory(bench: Json) -> dict[str, Any]:
    ours = bench["sides"].get("ours", {}).get("peak_memory")
    leanest = _least_peer(bench, lambda side: side["peak_memory"])
    found = None
    if ours is not None and leanest is not None:
        found = at_least(ours) / at_least(round(leanest[0])), leanest[1]
    return _target(bench, "of the memory of", MEMORY, found, most=True)


def _target(
    bench: Json,
    target: str,
    wanted: float,
    found: tuple[float, str] | None,
    peers: str = "",
    *,
    most: bool = False,
) -> dict[str, Any]:
    value, peer = found or (None, peers or " and ".join(PEERS[bench["what"]]))
    return {
        "bench": bench["title"],
        "target": f"{target} {peer}",
        "wanted": wanted,
        "at_most": most,
        "found": value,
        "reached": None if value is None else (value <= wanted if most else value >= wanted),
    }


def _least_peer(bench: Json, read: Callable[[Json], float | None]) -> tuple[float, str] | None:
    """Return the least number of the peers that were measured, and whose it is."""
    sides = bench["sides"]
    values = [(read(sides[name]), name) for name in PEERS[bench["what"]] if name in sides]
    return min(((value, name) for value, name in values if value), default=None)


# On the terminal


def show_setting(terminal: Terminal, content: Json) -> None:
    """Show where it is measured: device, threads, torch, form of our search."""
    origin = content["provenance"]
    clock = "; seconds of the processor" if content.get("cpu_time") else ""
    terminal.print(
        f"{origin['device']}, {origin['threads']} threads, torch {origin['torch']}; ours: "
        f"{content['execution']}; {content['repeats']} times each, in turn{clock}",
        markup=False,
    )


def show_bench(terminal: Terminal, bench: Json) -> None:
    """Show one benchmark: a row a side, or a row an axis of growth."""
    if "axes" in bench:
        columns: tuple[str, ...] = (
            "axis",
            "from",
            "to",
            "seconds",
            "power",
            "peak memory",
            "power of memory",
        )
        rows = [_axis_row(axis) for axis in bench["axes"]]
        lines = bench["faster"]
    else:
        columns = ("side", *_COLUMNS[bench["what"]])
        rows = [[name, *_cells(bench["what"], side)] for name, side in bench["sides"].items()]
        lines = [f"  {name}: {side['about']}" for name, side in bench["sides"].items()]
        absent = bench["absent"].items()
        lines += [f"  {name} is not installed: {remedy}" for name, remedy in absent]
        lines += [f"  {sentence}" for sentence in bench.get("sentences", ())]
    terminal.print(rich_table(bench["title"], columns, rows, numbers=columns[1:]))
    for line in lines:
        terminal.print(line, markup=False)


def _cells(what: str, side: Json) -> list[str]:
    peak = side["peak_memory"]
    cells = [_range(side.get("seconds")), _range(side["times_ours"])]
    cells.append("" if peak is None else f"{peak / _MIB:,.0f} MiB")
    if what == "evaluate":
        cells.append(f"{side['robust_accuracy']:.2%}" if "robust_accuracy" in side else "")
        differing = ("robust_here_only", "robust_for_first_only")
        return cells + [str(len(side[key])) if key in side else "" for key in differing]
    gradients, flops = side.get("gradients_per_second"), side.get("flops_per_second")
    cells.append("" if gradients is None else f"{gradients:,.0f}")
    cells.append("" if flops is None else f"{flops / 1e9:,.1f}")
    if what == "attack":
        cells.append(f"{side['loss']:.3f}" if "loss" in side else "")
    return cells


def _axis_row(axis: Json) -> list[str]:
    points = [point for point in axis["points"] if point["seconds"]]
    ends = [points[0], points[-1]] if points else []
    seconds = [_short(point["seconds"]["median"]) for point in ends]
    peaks = [f"{p['peak_memory'] / _MIB:,.0f}" for p in ends if p["peak_memory"] is not None]
    first, last = (f"{point['count']:,}" for point in ends) if ends else ("", "")
    memory = f"{' .. '.join(peaks)} MiB" if peaks else ""
    powers = ("" if v is None else f"{v:.2f}" for v in (axis["exponent"], axis["memory_exponent"]))
    power, power_of_memory = powers
    return [axis["axis"], first, last, " .. ".join(seconds), power, memory, power_of_memory]


def _range(values: Mapping[str, float] | None) -> str:
    if values is None:
        return ""
    return f"{_short(values['median'])} ({_short(values['least'])}..{_short(values['most'])})"


def _short(value: float) -> str:
    """Return a number with three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def show_targets(terminal: Terminal, found: Sequence[Json]) -> None:
    """Show the targets and what was reached."""
    words = {True: "reached", False: "not reached", None: "not measured"}
    rows = [
        (
            target["bench"],
            target["target"],
            f"{'<=' if target['at_most'] else '>='} {target['wanted']:g}",
            "" if target["found"] is None else f"{target['found']:.3f}",
            words[target["reached"]],
        )
        for target in found
    ]
    if rows:
        columns = ("benchmark", "target", "wanted", "found", "")
        terminal.print(rich_table("targets", columns, rows, numbers=columns[2:4]))
