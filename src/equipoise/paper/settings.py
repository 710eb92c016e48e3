"""Settings of a3gt-front: the front of each beside that of the default, at equal clean accuracy.

A front as a curve: at a clean accuracy, the highest robust accuracy of the models that are at
least as clean, straight between neighbours of which none is better in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.measures.statistics import front
from equipoise.paper import figures
from equipoise.paper.measures import Rows, area, average, group, pairs_of, points
from equipoise.paper.prose import prose, seeds_text, signed
from equipoise.paper.results import WORST, PanelInfo, Results
from equipoise.paper.tables import (
    Line,
    Numbers,
    area_cell,
    percent_cell,
    points_cell,
    table,
)
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Picture, Table, file_name
from equipoise.report.palette import Style, style_of

DEFAULT = "a3gt-front"
BAR = 0.01  # the median regret, in robust accuracy, that the default may have
_LEVELS, _RESAMPLES = 101, 200
Curves = Mapping[str, Mapping[int, Rows]]  # by setting and seed, models in the order of gamma
Points = NDArray[np.float64]  # (clean, robust) accuracies, of shape (models, 2)


def curves(rows: Rows) -> dict[str, dict[int, Rows]]:
    """Return the models of a panel that mix two learners, by setting and seed."""
    models = points(rows, WORST)
    mixed = models[models["gamma"].notna()].sort_values("gamma", kind="stable")
    return {
        entry: dict(sorted(group(mixed[mixed["entry"] == entry], "seed").items()))
        for entry in dict.fromkeys(models["entry"])
        if (mixed["entry"] == entry).any()
    }


def _front(every: Points) -> Points:
    """Return the points that no other one dominates, the least clean first."""
    best: Points = every[front([(float(clean), float(robust)) for clean, robust in every])]
    return best


def _array(models: Rows) -> Points:
    return np.array(pairs_of(models))


def _at(every: Points, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the robust accuracy of a curve at clean accuracies that it reaches."""
    best = _front(every)
    robust: Points = np.interp(levels, best[:, 0], best[:, 1])
    return robust


def _gain(one: Points, other: Points) -> float:
    """Return how much more robust the first curve is at equal clean accuracy, in the mean.

    The clean accuracies go from that of the less clean of the two robust ends to the highest that
    both reach.
    """
    a, b = _front(one), _front(other)
    levels = np.linspace(min(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0]), _LEVELS)
    return float((_at(a, levels) - _at(b, levels)).mean())


def _resampled(models: Rows, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the points on images drawn anew, of shape (drawings, models, 2)."""
    flags = (np.stack(list(models[column])) for column in ("flags", "robust_flags"))
    counts = np.stack([some @ drawn.T for some in flags], -1).transpose(1, 0, 2)
    return np.asarray(counts / models["n"].iloc[0])


def mean_curve(by_seed: Mapping[int, Rows]) -> tuple[list[float], list[float]]:
    """Return the clean accuracies that all seeds reach, and the mean robust ones there."""
    every = [_array(models) for models in by_seed.values()]
    best = [_front(some) for some in every]
    levels = np.linspace(min(b[0, 0] for b in best), min(b[-1, 0] for b in best), _LEVELS)
    robust = np.mean([_at(some, levels) for some in every], 0)
    return levels.tolist(), robust.tolist()


def gains(found: Curves) -> pd.DataFrame:
    """Return what each setting has more robust accuracy than the default, at equal clean accuracy.

    Returns:
        A row a ``seed`` and ``entry``, the greatest gain of a seed first: ``gain``, a fraction,
        and the ends ``low`` and ``high`` of its 95 % interval over resampled images.
    """
    rows = []
    for seed, default in found.get(DEFAULT, {}).items():
        n = default["n"].iloc[0]
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
        its = _resampled(default, drawn)
        own = []
        for entry, by_seed in found.items():
            if entry == DEFAULT or seed not in by_seed:
                continue
            models = by_seed[seed]
            value = _gain(_array(models), _array(default))
            low: float | None = None
            high: float | None = None
            if models["n"].iloc[0] == n:
                every = map(_gain, _resampled(models, drawn), its)
                low, high = map(float, np.quantile(list(every), (0.025, 0.975)))
            own.append((seed, entry, value, low, high))
        rows += sorted(own, key=lambda row: -row[2])
    return pd.DataFrame(rows, columns=["seed", "entry", "gain", "low", "high"], dtype=object)


def chosen_by_others(found: pd.DataFrame) -> dict[int, tuple[str, float]]:
    """Return for each seed the setting that is best with the other seeds, and its gain with this.

    It is not chosen by what it is measured on, so that chance does not favour it; it may be worse
    than the default.

    Arguments:
        found: The result of :func:`gains`; a single seed is left out.
    """
    by_seed = {
        s: dict(zip(g["entry"], g["gain"], strict=True)) for s, g in group(found, "seed").items()
    }
    made = {}
    for seed, here in by_seed.items():
        others = [there for other, there in by_seed.items() if other != seed]
        if others:
            shared = sorted(set.intersection(*map(set, [here, *others])))
            means = {entry: average([there[entry] for there in others]) for entry in shared}
            means = {DEFAULT: 0.0} | means
            best = max(means, key=lambda entry: means[entry])
            made[seed] = best, here.get(best, 0.0)
    return made


def blocks(results: Results) -> list[Block]:
    """Return the picture, the fronts of each setting and the regret of the default."""
    every = {panel: curves(results.of(panel, weights=None)) for panel in results.panels}
    every = {panel: found for panel, found in every.items() if found}
    if not every:
        return [prose("nothing", title="settings")]
    gained = {panel: gains(found) for panel, found in every.items()}
    made: list[Block] = [_picture(every)]
    made += [_table(panel, found, gained[panel]) for panel, found in every.items()]
    if any(len(some) for some in gained.values()):
        made += [_regret(gained), _summary(gained)]
    return made


def _picture(every: Mapping[PanelInfo, Curves]) -> Picture:
    names = list(dict.fromkeys(entry for found in every.values() for entry in found))
    styles = {
        entry: replace(style_of(entry, place), marker="") for place, entry in enumerate(names)
    }
    styles |= {DEFAULT: Style("ink", (), "", 2.6)}
    panels = {}
    for panel, found in every.items():
        lines = {}
        for entry in sorted(found, key=lambda entry: entry == DEFAULT):  # the default on top
            pairs = zip(*mean_curve(found[entry]), strict=True)
            lines[entry] = {str(i): pair for i, pair in enumerate(pairs)}
        panels[panel.title.partition(" (")[0]] = lines  # the name of a file is too long here
    return Picture(
        file_name("settings", "fronts"),
        "The front of every setting",
        lambda palette: figures.planes(
            palette, panels, styles, robust="robust accuracy", columns=3
        ),
        f"Robust against clean accuracy of {', '.join(names)}, on {', '.join(panels)}.",
        prose("settings_caption"),
    )


def ends(models: Rows) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the point with the highest clean and that with the highest robust accuracy."""
    best = _front(_array(models))
    return (float(best[-1][0]), float(best[-1][1])), (float(best[0][0]), float(best[0][1]))


def _table(panel: PanelInfo, found: Curves, gained: pd.DataFrame) -> Table:
    printed, data = list[Line](), list[Numbers]()
    for entry, by_seed in found.items():
        own = {seed: ends(models) for seed, models in by_seed.items()}
        areas = {seed: area(pairs_of(m), panel.classes) for seed, m in by_seed.items()}
        mine = gained[gained["entry"] == entry]
        values = dict(zip(mine["seed"], mine["gain"], strict=True))
        starts = {seed: models["t_start"].iloc[0] for seed, models in by_seed.items()}
        branched = ", ".join(sorted({str(t) for t in starts.values() if t is not None}))
        printed.append(
            {
                "setting": entry,
                "seeds": seeds_text(by_seed, panel.seeds),
                "parts after round": branched or wording.MISSING,
                "clean end": _end([pair[0] for pair in own.values()]),
                "robust end": _end([pair[1] for pair in own.values()]),
                "area": area_cell(list(areas.values())),
                "robust, at equal clean": points_cell(list(values.values())),
            }
        )
        data += [
            (entry, seed, n, *own[seed][0], *own[seed][1], areas[seed], starts[seed], gain)
            for seed, models in by_seed.items()
            for n, gain in [(models["n"].iloc[0], values.get(seed))]
        ]
    head = (
        *("setting", "seed", "n", "clean_end_clean", "clean_end_robust"),
        *("robust_end_clean", "robust_end_robust", "area", "t_branch", "gain"),
    )
    name = file_name("settings", panel.name.removeprefix("settings-"))
    notes = (prose("settings_note"), prose("area_note", classes=panel.classes))
    return table(name, f"Every setting, {panel.title}", printed, head, data, *notes)


def _end(pairs: Sequence[tuple[float, float]]) -> Cell:
    clean, robust = (percent_cell(average([pair[i] for pair in pairs])) for i in (0, 1))
    return Cell(f"{clean.text} / {robust.text}", clean.value)


def _regret(gained: Mapping[PanelInfo, pd.DataFrame]) -> Table:
    printed, data = list[Line](), list[Numbers]()
    for panel, found in gained.items():
        others = chosen_by_others(found)
        for seed, some in group(found, "seed").items():
            best, settings = some.iloc[0], len(some) + 1
            choice, value = others.get(seed, (None, None))
            interval = (
                "" if best["low"] is None else f"[{signed(best['low'])} to {signed(best['high'])}]"
            )
            better = best["gain"] > 0
            printed.append(
                {
                    "where": panel.title,
                    "seed": Cell(str(seed), seed),
                    "settings": Cell(str(settings), settings),
                    "best setting": best["entry"] if better else DEFAULT,
                    "regret": Cell(percent_cell(best["gain"]).text, best["gain"], interval)
                    if better
                    else Cell("0.0", 0.0),
                    "choice of the other seeds": choice or wording.MISSING,
                    "its gain": Cell() if value is None else Cell(signed(value), value),
                }
            )
            gain = best["gain"], best["low"], best["high"]
            data.append((panel.name, seed, settings, best["entry"], *gain, choice, value))
    head = (
        *("panel", "seed", "settings", "best_other", "gain", "gain_low", "gain_high"),
        *("others_choice", "others_choice_gain"),
    )
    name, title = file_name("settings", "regret"), "Regret of the default"
    return table(name, title, printed, head, data, prose("regret_note"))


def _summary(gained: Mapping[PanelInfo, pd.DataFrame]) -> str:
    regrets = [
        max(some["gain"].iloc[0], 0.0)
        for found in gained.values()
        for some in group(found, "seed").values()
    ]
    others = [gain for found in gained.values() for _, gain in chosen_by_others(found).values()]
    return prose(
        "regret",
        panels=sum(bool(len(found)) for found in gained.values()),
        regrets=regrets,
        median=median(regrets),
        bar=BAR,
        others=others,
        others_median=median(others) if others else None,
        better=sum(value > 0 for value in others),
    )
