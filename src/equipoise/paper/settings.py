"""Settings of a3gt: the front of each and that of the default, at equal clean accuracy.

A front as a curve: at a clean accuracy, the highest robust accuracy of the models that are at
least as clean, straight between neighbours of which none is better in both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.measures.statistics import front
from equipoise.paper import figures
from equipoise.paper.measures import Rows, area, average, group, pairs_of, points, resampled
from equipoise.paper.prose import prose, seeds_text, signed
from equipoise.paper.results import WORST, PanelInfo, Results
from equipoise.paper.tables import AREA, Line, mean_cell, percent_cell, table
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
    every = group(mixed, "entry")
    names = [entry for entry in dict.fromkeys(models["entry"]) if entry in every]
    return {entry: dict(sorted(group(every[entry], "seed").items())) for entry in names}


def _front(models: Rows | Points) -> Points:
    """Return the points that no other one dominates, the least clean first."""
    every = np.array(pairs_of(models)) if isinstance(models, pd.DataFrame) else models
    best: Points = every[front([(float(clean), float(robust)) for clean, robust in every])]
    return best


def _gain(first: Rows | Points, second: Rows | Points) -> float:
    """Return how much more robust the first curve is at equal clean accuracy, in the mean.

    The clean accuracies go from that of the less clean of the two robust ends to the highest that
    both reach.
    """
    a, b = _front(first), _front(second)
    levels = np.linspace(min(a[0, 0], b[0, 0]), min(a[-1, 0], b[-1, 0]), _LEVELS)
    return float((np.interp(levels, *a.T) - np.interp(levels, *b.T)).mean())


def mean_curve(by_seed: Mapping[int, Rows]) -> tuple[list[float], list[float]]:
    """Return the clean accuracies that all seeds reach, and the mean robust ones there."""
    best = [_front(models) for models in by_seed.values()]
    levels = np.linspace(min(b[0, 0] for b in best), min(b[-1, 0] for b in best), _LEVELS)
    robust = np.mean([np.interp(levels, *b.T) for b in best], 0)
    return levels.tolist(), robust.tolist()


def gains(fronts: Curves) -> pd.DataFrame:
    """Return what each setting has more robust accuracy than the default, at equal clean accuracy.

    Returns:
        A row a ``seed`` and ``entry``, the greatest gain of a seed first: ``gain``, a fraction,
        and the ends ``low`` and ``high`` of its 95 % interval over resampled images.
    """
    rows = []
    for seed, default in fronts.get(DEFAULT, {}).items():
        drawn = resampled(default, _RESAMPLES)[1:]
        of_seed = []
        for entry, by_seed in fronts.items():
            if entry == DEFAULT or seed not in by_seed:
                continue
            models = by_seed[seed]
            low: float | None = None
            high: float | None = None
            if models["n"].iloc[0] == default["n"].iloc[0]:
                every = map(_gain, resampled(models, _RESAMPLES)[1:], drawn)
                low, high = map(float, np.quantile(list(every), (0.025, 0.975)))
            of_seed.append((seed, entry, _gain(models, default), low, high))
        rows += sorted(of_seed, key=lambda row: -row[2])
    return pd.DataFrame(rows, columns=["seed", "entry", "gain", "low", "high"], dtype=object)


def chosen_by_others(gained: pd.DataFrame) -> dict[int, tuple[str, float]]:
    """Return for each seed the setting that is best with the other seeds, and its gain with this.

    It is not chosen by what it is measured on, so that chance does not favour it; it may be worse
    than the default. The argument is the result of :func:`gains`; a single seed is left out.
    """
    gain = gained.pivot(index="entry", columns="seed", values="gain")
    shared = gain.dropna().astype(float)
    shared = pd.concat([pd.DataFrame(0.0, [DEFAULT], gain.columns), shared])
    choices: dict[Any, tuple[str, float]] = {}
    for seed in gain.columns if len(gain.columns) > 1 else ():
        best = str(shared.drop(columns=seed).mean(axis=1).idxmax())
        choices[seed] = best, float(shared[seed][best])
    return choices


def blocks(results: Results) -> list[Block]:
    """Return the picture, the fronts of each setting and the regret of the default."""
    every = {panel: curves(results.of(panel)) for panel in results.panels}
    every = {panel: fronts for panel, fronts in every.items() if fronts}
    if not every:
        return [prose("nothing", title="settings")]
    gained = {panel: gains(fronts) for panel, fronts in every.items()}
    tables = [_table(panel, fronts, gained[panel]) for panel, fronts in every.items()]
    return [_picture(every), *tables, *_regret(gained)]


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


def _table(panel: PanelInfo, fronts: Curves, gained: pd.DataFrame) -> Table:
    lines, data = list[Line](), []
    for entry, by_seed in fronts.items():
        best = {seed: _front(models) for seed, models in by_seed.items()}
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
                "clean end": _end([points[-1] for points in best.values()]),
                "robust end": _end([points[0] for points in best.values()]),
                "area": mean_cell(areas.values(), AREA, span=True),
                "robust, at equal clean": mean_cell(gain.values(), signed, span=True),
            }
        )
        for seed, row in firsts.items():
            ends = (*best[seed][-1].tolist(), *best[seed][0].tolist())
            numbers = (areas[seed], row["t_start"], gain.get(seed))
            data.append((entry, seed, row["n"], *ends, *numbers))
    head = "setting seed n clean_end_clean clean_end_robust robust_end_clean robust_end_robust"
    head += " area t_branch gain"
    name = file_name("settings", panel.name.removeprefix("settings-"))
    notes = (prose("settings_note"), prose("area_note", classes=panel.classes))
    return table(name, f"Every setting, {panel.title}", lines, head, data, *notes)


def _end(ends: Sequence[Points]) -> Cell:
    """Return the mean (clean, robust) accuracies of an end of a front."""
    clean, robust = (percent_cell(average([float(end[i]) for end in ends])) for i in (0, 1))
    return Cell(f"{clean.text} / {robust.text}", clean.value)


def _regret(gained: Mapping[PanelInfo, pd.DataFrame]) -> list[Block]:
    lines, data = list[Line](), []
    for panel, of_panel in gained.items():
        others = chosen_by_others(of_panel)
        for seed, of_seed in group(of_panel, "seed").items():
            entry, gain, low, high = of_seed.iloc[0][["entry", "gain", "low", "high"]]
            choice, value = others.get(seed, (None, None))
            settings = len(of_seed) + 1
            interval = "" if low is None else f"[{signed(low)} to {signed(high)}]"
            regret = Cell(percent_cell(gain).text, gain, interval)
            lines.append(
                {
                    "where": panel.title,
                    "seed": Cell(str(seed), seed),
                    "settings": Cell(str(settings), settings),
                    "best setting": entry if gain > 0 else DEFAULT,
                    "regret": regret if gain > 0 else Cell("0.0", 0.0),
                    "choice of the other seeds": choice or wording.MISSING,
                    "its gain": mean_cell([value], signed),
                }
            )
            data.append((panel.name, seed, settings, entry, gain, low, high, choice, value))
    if not data:
        return []
    regrets = [max(row[4], 0.0) for row in data]
    values = [row[-1] for row in data if row[-1] is not None]
    summary = prose(
        "regret",
        panels=len({row[0] for row in data}),
        regrets=regrets,
        median=median(regrets),
        bar=BAR,
        others=values,
        others_median=median(values) if values else None,
        better=sum(value > 0 for value in values),
    )
    name, title = file_name("settings", "regret"), "Regret of the default"
    head = (
        "panel seed settings best_other gain gain_low gain_high others_choice others_choice_gain"
    )
    return [table(name, title, lines, head, data, prose("regret_note")), summary]
