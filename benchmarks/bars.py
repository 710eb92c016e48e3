"""What a3gt must reach against its rivals, from the results of a comparison.

    equipoise compare comparisons/a3gt-fashion-mnist.yaml --out runs/a3gt-fashion-mnist
    python -m benchmarks.bars runs/a3gt-fashion-mnist [MORE FOLDERS]

Each bar is a mean over the seeds that all its entries have. Accuracies are in percent, on test
images that chose nothing; robust is AutoAttack.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich.console import Console

from equipoise.measures.statistics import front, hypervolume
from equipoise.terminal.table import rich_table

PGD_AT = ("pgd-at", "pgd-at-restart")
MIXED = ("mix-at-10", "mix-at-30", "mix-at-50", "mix-at-70", "mix-at-90")
RIVALS = (*MIXED, "trades-3", "trades-6", "fat", "fat-trades", "gat")
CHEAP = "mix-at-90-cheap"

Pair = tuple[float, float]  # clean and robust accuracy
Results = Mapping[str, Mapping[int, Mapping[str, Pair]]]  # by entry, seed and weights


class Bar(NamedTuple):
    """A bar: what is asked, what was found, and whether that is reached."""

    asked: str
    found: str
    reached: bool


def read(folder: Path) -> tuple[Results, Mapping[str, float], int]:
    """Return the accuracies, the gradient evaluations of an entry, and the number of classes."""
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    found: dict[str, dict[int, dict[str, Pair]]] = {}
    shares: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in content["results"]:
        key = row["entry"], row["seed"], row["weights"]
        shares.setdefault(key, {})[row["attack"]] = row["correct"] / row["n"]
    for (entry, seed, weights), by_attack in shares.items():
        if {"clean", "autoattack"} <= by_attack.keys():
            pair = by_attack["clean"], by_attack["autoattack"]
            found.setdefault(entry, {}).setdefault(seed, {})[weights] = pair
    spent: dict[str, list[float]] = {}
    for row in content["trainings"]:
        spent.setdefault(row["entry"], []).append(row["gradient_evaluations"])
    classes = int(content["panels"][0]["classes"])
    return found, {entry: fmean(values) for entry, values in spent.items()}, classes


def seeds_of(results: Results, entries: Iterable[str]) -> list[int]:
    """Return the seeds that all entries have."""
    every = [set(results.get(entry, {})) for entry in entries]
    return sorted(set.intersection(*every)) if every else []


def mean(results: Results, entry: str, seeds: Sequence[int], weights: str = "model") -> Pair:
    """Return the mean accuracies of an entry over some seeds."""
    pairs = [results[entry][seed][weights] for seed in seeds]
    return fmean(clean for clean, _ in pairs), fmean(robust for _, robust in pairs)


def mixes(results: Results, entry: str, seed: int) -> list[Pair]:
    """Return the accuracies of the mixes of a run's branches."""
    return [pair for name, pair in results[entry][seed].items() if name.startswith("gamma-")]


def robust_at(points: Sequence[Pair], clean: float) -> float | None:
    """Return the robust accuracy of a front at a clean accuracy; None beyond its cleanest model.

    Between neighbours on the front the line is straight; a less clean model than all is as
    robust as the most robust one.
    """
    best = np.array([points[i] for i in front(points)])
    best = best[best[:, 0].argsort()]
    if clean > best[-1, 0]:
        return None
    return float(np.interp(clean, *best.T))


def against_pgd_at(results: Results) -> Bar:
    """Compare the chosen model with averaged PGD-AT, the better one of both schedules."""
    seeds = seeds_of(results, ("a3gt", *PGD_AT))
    ours = mean(results, "a3gt", seeds)
    rivals = {entry: mean(results, entry, seeds) for entry in PGD_AT}
    name = max(rivals, key=lambda entry: sum(rivals[entry]))
    gaps = [100 * (a - b) for a, b in zip(ours, rivals[name], strict=True)]
    found = f"{gaps[0]:+.1f} clean, {gaps[1]:+.1f} robust against {name} ({shown(rivals[name])})"
    asked = "against averaged PGD-AT: ahead in one accuracy by a point, not behind in the other"
    return Bar(asked, found, max(gaps) >= 1 and min(gaps) >= 0)


def against_mixed(
    results: Results, spent: Mapping[str, float], classes: int, entry: str, least: float
) -> Bar:
    """Compare the area of a front with that of five trainings of mixed AT."""
    seeds = seeds_of(results, (entry, *MIXED))
    gaps = []
    for seed in seeds:
        five = [results[rival][seed]["model"] for rival in MIXED]
        areas = [hypervolume(p, (1 / classes, 0.0)) for p in (mixes(results, entry, seed), five)]
        gaps.append(areas[0] - areas[1])
    share = spent[entry] / sum(spent[rival] for rival in MIXED)
    each = ", ".join(f"{gap:+.4f}" for gap in gaps)
    found = f"area {fmean(gaps):+.4f} ({each}) at {share:.0%} of their gradients"
    asked = f"{entry}: area of the front minus that of five mixed AT at least {least:g}"
    return Bar(asked, found, fmean(gaps) >= least)


def at_equal_clean(results: Results, rivals: Sequence[str], asked: str) -> Bar:
    """Compare with the best single rival, at its clean accuracy."""
    seeds = seeds_of(results, ("a3gt", *rivals))
    gaps: dict[str, float] = {}
    for rival in rivals:
        clean, robust = mean(results, rival, seeds)
        of_seed = [robust_at(mixes(results, "a3gt", seed), clean) for seed in seeds]
        reached = [value for value in of_seed if value is not None]
        if len(reached) == len(seeds):  # else the front does not go so far
            gaps[rival] = 100 * (fmean(reached) - robust)
    beyond = [rival for rival in rivals if rival not in gaps]
    worst = min(gaps, key=lambda rival: gaps[rival])
    rest = f"; cleaner than the front: {', '.join(beyond)}" if beyond else ""
    return Bar(asked, f"{gaps[worst]:+.1f} against {worst}{rest}", gaps[worst] >= -1)


def shown(pair: Pair) -> str:
    """Return two accuracies in percent."""
    return f"{100 * pair[0]:.1f} / {100 * pair[1]:.1f}"


def bars(results: Results, spent: Mapping[str, float], classes: int) -> list[Bar]:
    """Return every bar."""
    least = "at equal clean accuracy: robust at least that of"
    return [
        against_pgd_at(results),
        against_mixed(results, spent, classes, "a3gt-same-rounds", -0.005),
        against_mixed(results, spent, classes, "a3gt-40", 0.0),
        at_equal_clean(results, RIVALS, f"{least} the best rival, less a point"),
        at_equal_clean(results, (CHEAP,), f"{least} mixed AT with the cheap search (control)"),
    ]


def main(folders: Sequence[str]) -> None:
    """Print the models and the bars of some comparisons."""
    terminal = Console()
    for folder in map(Path, folders):
        results, spent, classes = read(folder)
        rows = []
        for entry, by_seed in results.items():
            weights = dict.fromkeys(name for of_seed in by_seed.values() for name in of_seed)
            for name in weights:
                seeds = [seed for seed in by_seed if name in by_seed[seed]]
                pair = shown(mean(results, entry, seeds, name))
                rows.append([entry, name, str(len(seeds)), pair, f"{spent[entry]:,.0f}"])
        heads = ["entry", "weights", "seeds", "clean / AutoAttack", "gradient evaluations"]
        terminal.print(rich_table(str(folder), heads, rows, numbers=heads[2:]))
        for bar in bars(results, spent, classes):
            terminal.print(f"{'reached' if bar.reached else 'MISSED'}: {bar.asked}: {bar.found}")


if __name__ == "__main__":
    main(sys.argv[1:])
