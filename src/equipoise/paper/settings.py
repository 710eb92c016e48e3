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


def gains(fronts: Curves) -> pd.DataFrame:
    """Return what each setting has more robust accuracy than the default, at equal clean accuracy.

    Returns:
        A row a ``seed`` and ``entry``, the greatest gain of a seed first: ``gain``, a fraction,
        and the ends ``low`` and ``high`` of its 95 % interval over resampled images.
    """
    rows = []
    for seed, default in fronts.get(DEFAULT, {}).items():
        n = default["n"].iloc[0]
        drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES)
        its = _resampled(default, drawn)
        of_seed = []
        for entry, by_seed in fronts.items():
            if entry == DEFAULT or seed not in by_seed:
                continue
            models = by_seed[seed]
            value = _gain(_array(models), _array(default))
            low: float | None = None
            high: float | None = None
            if models["n"].iloc[0] == n:
                every = map(_gain, _resampled(models, drawn), its)
                low, high = map(float, np.quantile(list(every), (0.025, 0.975)))
            of_seed.append((seed, entry, value, low, high))
        rows += sorted(of_seed, key=lambda row: -row[2])
    return pd.DataFrame(rows, columns=["seed", "entry", "gain", "low", "high"], dtype=object)


def chosen_by_others(gained: pd.DataFrame) -> dict[int, tuple[str, float]]:
    """Return for each seed the setting that is best with the other seeds, and its gain with this.

    It is not chosen by what it is measured on, so that chance does not favour it; it may be worse
    than the default.

    Arguments:
        gained: The result of :func:`gains`; a single seed is left out.
    """
    by_seed = {
        seed: dict(zip(some["entry"], some["gain"], strict=True))
        for seed, some in group(gained, "seed").items()
    }
    choices = {}
    for seed, here in by_seed.items():
        others = [there for other, there in by_seed.items() if other != seed]
        if others:
            shared = sorted(set.intersection(*map(set, [here, *others])))
            means = {entry: average([there[entry] for there in others]) for entry in shared}
            means = {DEFAULT: 0.0} | means
            best = max(means, key=lambda entry: means[entry])
            choices[seed] = best, here.get(best, 0.0)
    return choices


def blocks(results: Results) -> list[Block]:
    """Return the picture, the fronts of each setting and the regret of the default."""
    every = {panel: curves(results.of(panel, weights=None)) for panel in results.panels}
    every = {panel: fronts for panel, fronts in every.items() if fronts}
    if not every:
        return [prose("nothing", title="settings")]
    gained = {panel: gains(fronts) for panel, fronts in every.items()}
    tables = [_table(panel, fronts, gained[panel]) for panel, fronts in every.items()]
    regret: list[Block] = []
    if any(len(some) for some in gained.values()):
        regret = [_regret(gained), _summary(gained)]
    return [_picture(every), *tables, *regret]


def _picture(every: Mapping[PanelInfo, Curves]) -> Picture:
    names = list(dict.fromkeys(entry for fronts in every.values() for entry in fronts))
    styles = {
        entry: replace(style_of(entry, place), marker="") for place, entry in enumerate(names)
    }
    styles |= {DEFAULT: Style("ink", (), "", 2.6)}
    panels = {}
    for panel, fronts in every.items():
        lines = {}
        for entry in sorted(fronts, key=lambda entry: entry == DEFAULT):  # the default on top
            pairs = zip(*mean_curve(fronts[entry]), strict=True)
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


def _table(panel: PanelInfo, fronts: Curves, gained: pd.DataFrame) -> Table:
    lines, data = list[Line](), list[Numbers]()
    for entry, by_seed in fronts.items():
        corners = {seed: ends(models) for seed, models in by_seed.items()}
        areas = {seed: area(pairs_of(m), panel.classes) for seed, m in by_seed.items()}
        of_entry = gained[gained["entry"] == entry]
        gain = dict(zip(of_entry["seed"], of_entry["gain"], strict=True))
        firsts = {seed: models.iloc[0] for seed, models in by_seed.items()}
        starts = {str(row["t_start"]) for row in firsts.values() if row["t_start"] is not None}
        lines.append(
            {
                "setting": entry,
                "seeds": seeds_text(by_seed, panel.seeds),
                "parts after round": ", ".join(sorted(starts)) or wording.MISSING,
                "clean end": _end([pair[0] for pair in corners.values()]),
                "robust end": _end([pair[1] for pair in corners.values()]),
                "area": area_cell(list(areas.values())),
                "robust, at equal clean": points_cell(list(gain.values())),
            }
        )
        for seed, row in firsts.items():
            accuracies = (*corners[seed][0], *corners[seed][1], areas[seed])
            data.append((entry, seed, row["n"], *accuracies, row["t_start"], gain.get(seed)))
    head = (
        *("setting", "seed", "n", "clean_end_clean", "clean_end_robust"),
        *("robust_end_clean", "robust_end_robust", "area", "t_branch", "gain"),
    )
    name = file_name("settings", panel.name.removeprefix("settings-"))
    notes = (prose("settings_note"), prose("area_note", classes=panel.classes))
    return table(name, f"Every setting, {panel.title}", lines, head, data, *notes)


def _end(pairs: Sequence[tuple[float, float]]) -> Cell:
    clean, robust = (percent_cell(average([pair[i] for pair in pairs])) for i in (0, 1))
    return Cell(f"{clean.text} / {robust.text}", clean.value)


def _regret(gained: Mapping[PanelInfo, pd.DataFrame]) -> Table:
    lines, data = list[Line](), list[Numbers]()
    for panel, gains_ in gained.items():
        others = chosen_by_others(gains_)
        for seed, of_seed in group(gains_, "seed").items():
            entry, gain, low, high = of_seed.iloc[0][["entry", "gain", "low", "high"]]
            choice, value = others.get(seed, (None, None))
            settings = len(of_seed) + 1
            interval = "" if low is None else f"[{signed(low)} to {signed(high)}]"
            regret = (
                Cell(percent_cell(gain).text, gain, interval) if gain > 0 else Cell("0.0", 0.0)
            )
            lines.append(
                {
                    "where": panel.title,
                    "seed": Cell(str(seed), seed),
                    "settings": Cell(str(settings), settings),
                    "best setting": entry if gain > 0 else DEFAULT,
                    "regret": regret,
                    "choice of the other seeds": choice or wording.MISSING,
                    "its gain": points_cell([] if value is None else [value]),
                }
            )
            data.append((panel.name, seed, settings, entry, gain, low, high, choice, value))
    head = (
        *("panel", "seed", "settings", "best_other", "gain", "gain_low", "gain_high"),
        *("others_choice", "others_choice_gain"),
    )
    name, title = file_name("settings", "regret"), "Regret of the default"
    return table(name, title, lines, head, data, prose("regret_note"))


def _summary(gained: Mapping[PanelInfo, pd.DataFrame]) -> str:
    regrets = [
        max(some["gain"].iloc[0], 0.0)
        for gains_ in gained.values()
        for some in group(gains_, "seed").values()
    ]
    others = [gain for gains_ in gained.values() for _, gain in chosen_by_others(gains_).values()]
    return prose(
        "regret",
        panels=sum(bool(len(gains_)) for gains_ in gained.values()),
        regrets=regrets,
        median=median(regrets),
        bar=BAR,
        others=others,
        others_median=median(others) if others else None,
        better=sum(value > 0 for value in others),
    )
