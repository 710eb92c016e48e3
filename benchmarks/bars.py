"""The bars: what the house wants to reach, and what was reached."""

__all__ = ["bars"]

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.memory import told
from benchmarks.timing import spread

PEERS = {
    "attack": ("torchattacks", "foolbox"),
    "train": ("plain loop",),
    "evaluate": ("pyautoattack",),
}
TIMES = {"train": 2.5, "evaluate": 3.0}  # as fast as the fastest peer
ATTACK_TIMES = {"without": 1.2, "with": 2.3}  # likewise, by processors without and with bfloat16
OVERHEAD = 1.15  # of an attack over its bare passes and one forward pass
MEMORY = 1.0  # of that of the leanest peer


def bars(benches: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every bar with what was reached.

    Arguments:
        benches: The records of what was benched, see ``bench.json``.

    Returns:
        For each its ``bench``, ``bar``, the numbers ``wanted`` and ``found`` (None: not
        measured) and ``reached``.
    """
    found = []
    for bench in benches:
        what, sides = bench["what"], bench.get("sides", {})
        if what not in PEERS:
            continue
        if what in TIMES:
            wanted = TIMES[what]
            found.append(_bar(bench, "times as fast as", wanted, _fastest(what, sides), False))
        else:
            found += _attack_times(bench, sides)
            found.append(_bar(bench, "of the time of", OVERHEAD, _overhead(sides), True))
        found.append(_bar(bench, "of the memory of", MEMORY, _leanest(what, sides), True))
    return found


def _attack_times(bench: Mapping[str, Any], sides: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a bar for each kind of processor; only that of this one is measured."""
    here = "with" if bench.get("has_bfloat16") else "without"
    return [
        _bar(
            bench,
            f"{kind} bfloat16 instructions, times as fast as",
            wanted,
            _fastest("attack", sides) if kind == here else None,
            False,
        )
        for kind, wanted in ATTACK_TIMES.items()
    ]


def _bar(
    bench: Mapping[str, Any], bar: str, wanted: float, found: tuple[float, str] | None, most: bool
) -> dict[str, Any]:
    value, whom = found if found is not None else (None, _missing(bench, bar))
    return {
        "bench": bench["title"],
        "bar": f"{bar} {whom}",
        "wanted": wanted,
        "at_most": most,
        "found": value,
        "reached": None if value is None else (value <= wanted if most else value >= wanted),
    }


def _missing(bench: Mapping[str, Any], bar: str) -> str:
    if "time of" in bar:
        return "bare passes"
    return " and ".join(PEERS[bench["what"]])


def _fastest(what: str, sides: Mapping[str, Any]) -> tuple[float, str] | None:
    times = _of_peers(what, sides, lambda side: (side["times_ours"] or {}).get("median"))
    return min(times) if times else None


def _leanest(what: str, sides: Mapping[str, Any]) -> tuple[float, str] | None:
    ours = sides.get("ours", {}).get("peak_memory")
    peaks = _of_peers(what, sides, lambda side: side["peak_memory"])
    if ours is None or not peaks:
        return None
    least, whom = min(peaks)
    return told(ours) / told(round(least)), whom


def _overhead(sides: Mapping[str, Any]) -> tuple[float, str] | None:
    pairs: Sequence[float] = (sides.get("bare passes", {}).get("times_ours") or {}).get(
        "pairs", ()
    )
    return (spread([1 / pair for pair in pairs]).median, "bare passes") if pairs else None


def _of_peers(what: str, sides: Mapping[str, Any], read: Any) -> list[tuple[float, str]]:
    found = [(read(sides[name]), name) for name in PEERS[what] if name in sides]
    return [(value, name) for value, name in found if value]
