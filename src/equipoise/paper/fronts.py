"""The front of one run of a3gt and the fronts of a training for each point."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd

from equipoise.errors import UserError
from equipoise.paper import figures, measures
from equipoise.paper.measures import Pair, Rows, group
from equipoise.paper.prose import prose, seeds_text
from equipoise.paper.results import PanelInfo
from equipoise.paper.tables import AREA, Line, mean_cell, spread_cell, table
from equipoise.paper.training import line as line_of
from equipoise.paper.training import line_means
from equipoise.report.content import Block, Picture, Table
from equipoise.report.palette import Style

BUDGET = 1 / 3  # of the gradient evaluations of the rival's trainings
ONE_RUN, RIVAL = "one run", "mixed AT"
_RESAMPLES = 1000


# The pattern of a family's entries, the setting that differs between its models (if any), how this
# is written, and how its line is drawn.
FAMILIES = {
    ONE_RUN: ("a3gt-front", "gamma", "gamma", Style(1, (), "o", 2.4)),
    RIVAL: ("mix-at-*", "weight", "w", Style(2, (3, 1.5), "v")),
    "TRADES": ("trades-*", "beta", "beta", Style(3, (5, 2), "D")),
    "averaged PGD-AT": ("pgd-at-averaged", "", "", Style(2, (), ">")),
    "A3GT": ("a3gt", "", "", Style("ink", (), "h")),
    "Generalist": ("generalist", "", "", Style(0, (), "s")),
}
Families = Mapping[str, Rows]


def families(rows: Rows) -> dict[str, Rows]:
    """Return the models of each family with their ``place``: the value of its setting."""
    models, by_family = measures.points(rows), {}
    for name, (pattern, setting, _, _) in FAMILIES.items():
        chosen = models[[fnmatchcase(entry, pattern) for entry in models["entry"]]]
        if len(chosen):
            columns = chosen[["entry", "seed", "gamma", "settings"]].itertuples(index=False)
            places = [_place(setting, *model) for model in columns]
            by_family[name] = chosen.assign(place=places).drop_duplicates(["seed", "place"])
    return by_family


def _place(
    setting: str, entry: str, seed: int, gamma: float | None, settings: Mapping[str, Any]
) -> float:
    """Return what distinguishes a model from the others of its family."""
    if not setting:
        return 0.0
    if setting == "gamma" and gamma is not None:
        return gamma
    own = settings if setting == "gamma" else settings.get("robust", {})
    value = own.get(setting) if isinstance(own, Mapping) else None
    if not isinstance(value, int | float):
        raise UserError(
            f"the results have no {setting} of {entry}, seed {seed}; make them again with "
            "`equipoise reproduce front`"
        )
    return float(value)


def complete(models: Rows) -> dict[int, Rows]:
    """Return the models of each seed that has every place of the family."""
    every = {*models["place"]}
    seeds = sorted(group(models, "seed").items())
    return {seed: of_seed for seed, of_seed in seeds if {*of_seed["place"]} == every}


def cost(models: Rows) -> float | None:
    """Return the gradient evaluations of all trainings of a seed; None: not all are known."""
    spent = models.drop_duplicates("entry")["gradient_evaluations"]
    return None if spent.isna().any() else sum(spent)


def differences(one_run: Rows, rival: Rows, classes: int) -> pd.DataFrame:
    """Return how the area of the one run differs from the rival's.

    Returns:
        A row a seed on which both are complete: ``seed``, ``difference`` of the areas, the ends
        ``low`` and ``high`` of its 95 % interval over resampled images (None if the numbers of
        images differ), and ``share``, the gradient evaluations of the one run as a share of the
        rival's (None: not known).
    """
    seeds, rival_seeds = complete(one_run), complete(rival)
    gaps = []
    for seed in sorted({*seeds} & {*rival_seeds}):
        pair = seeds[seed], rival_seeds[seed]
        areas = [measures.area(measures.pairs_of(models), classes) for models in pair]
        low = high = None
        if len({n for models in pair for n in models["n"]}) == 1:
            drawn = (measures.resampled(models, _RESAMPLES)[1:].tolist() for models in pair)
            a, b = ([measures.area(map(tuple, p), classes) for p in each] for each in drawn)
            low, high = np.quantile(np.array(a) - np.array(b), (0.025, 0.975)).tolist()
        spent, rival_spent = map(cost, pair)
        share = spent / rival_spent if spent is not None and rival_spent else None
        gaps.append((seed, areas[0] - areas[1], low, high, share))
    columns = ["seed", "difference", "low", "high", "share"]
    return pd.DataFrame(gaps, columns=columns, dtype=object)


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the areas, the points and the comparison with the rival."""
    by_family = families(rows)
    if not by_family:
        return [prose("nothing", title=panel.title)]
    parts: list[Block] = [
        _picture(by_family, panel, name),
        _areas(by_family, panel, f"{name}-area"),
        _points(by_family, rows, panel, f"{name}-points"),
    ]
    if ONE_RUN in by_family and RIVAL in by_family:
        pair = by_family[ONE_RUN], by_family[RIVAL]
        gaps = list(differences(*pair, panel.classes).itertuples())
        counts = [models["place"].nunique() for models in pair]
        blanks = {"gaps": gaps, "models": counts, "budget": BUDGET, "rival": RIVAL}
        parts.append(prose("front", panel=panel, **blanks))
    return parts


def _picture(by_family: Families, panel: PanelInfo, name: str) -> Picture:
    labelled, styles, spoken = {}, {}, dict[str, Pair]()
    for title, models in by_family.items():
        _, setting, _, style = FAMILIES[title]
        if means := line_means(line_of(models)):  # empty if the seeds share no place
            line = {f"{at:g}" if setting else "": pair for at, pair in means.items()}
            labelled[title] = line
            styles[title] = replace(style, width=0) if len(line) == 1 else style  # a point
            spoken |= {f"{title} {label}".strip(): pair for label, pair in line.items()}
    symbols = {title: FAMILIES[title][2] for title in by_family if FAMILIES[title][2]}
    seeds = max(models["seed"].nunique() for models in by_family.values())
    return Picture(
        name,
        f"One run and many trainings, {panel.title}",
        lambda palette: figures.planes(palette, {"": labelled}, styles),
        prose("spoken", means=spoken),
        prose("front_caption", symbols=symbols, seeds=seeds),
    )


def _areas(by_family: Families, panel: PanelInfo, name: str) -> Table:
    lines, data = list[Line](), list[tuple[Any, ...]]()
    for family, models in by_family.items():
        seeds = complete(models)
        areas = [
            measures.area(measures.pairs_of(of_seed), panel.classes) for of_seed in seeds.values()
        ]
        trained = [of_seed["entry"].nunique() for of_seed in seeds.values()]
        counts = [len(of_seed) for of_seed in seeds.values()]
        spent = [cost(of_seed) for of_seed in seeds.values()]
        lines.append(
            {
                "family": family,
                "seeds": seeds_text(seeds, panel.seeds),
                "trainings": mean_cell(trained),
                "models": mean_cell(counts),
                "gradient evaluations": mean_cell(spent),
                "area": mean_cell(areas, AREA, span=True),
            }
        )
        data += zip([family] * len(seeds), seeds, trained, counts, spent, areas, strict=True)
    head = "family seed trainings models gradient_evaluations area"
    note = prose("area_note", classes=panel.classes)
    return table(name, f"Areas, {panel.title}", lines, head, data, note)


def _points(by_family: Families, rows: Rows, panel: PanelInfo, name: str) -> Table:
    lines, data = list[Line](), []
    for family, models in by_family.items():
        _, setting, symbol, _ = FAMILIES[family]
        for place, at_place in sorted(group(models, "place").items()):
            made_with = f"{symbol} = {place:g}" if setting else ""
            keys = ["panel", "entry", "seed", "weights", "eps"]
            both = measures.both_accuracies(rows.merge(at_place[keys], on=keys))
            line: Line = {"family": family, "made with": made_with}
            line["seeds"] = seeds_text(at_place["seed"], panel.seeds)
            clean, attacked = map(spread_cell, both)
            lines.append(line | {"clean": clean, "autoattack": attacked})
            numbers = at_place[["seed", "n", "clean", "robust", "t_start"]]
            data += [(family, made_with, *row) for row in numbers.itertuples(index=False)]
    title = f"Every model, {panel.title}"
    head = "family made_with seed n clean autoattack t_branch"
    return table(name, title, lines, head, data, prose("front_points_note"))
