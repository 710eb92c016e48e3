"""The front of one run of a3gt-front beside a training for each point of a front."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.paper import figures
from equipoise.paper.measures import Rows, accuracies, area, group, pairs_of, points
from equipoise.paper.prose import prose, seeds_text
from equipoise.paper.results import AUTOATTACK, CLEAN, PanelInfo
from equipoise.paper.tables import (
    Line,
    Numbers,
    area_cell,
    number_cell,
    spread_cell,
    table,
)
from equipoise.paper.training import line as line_of
from equipoise.paper.training import line_means
from equipoise.report.content import Block, Picture, Table
from equipoise.report.palette import Style

BUDGET = 1 / 3  # of the gradient evaluations of the rival's trainings
ONE_RUN, RIVAL = "one run", "mixed AT"
_RESAMPLES = 1000
# Pattern of the entries of a family, and the setting that differs between its models.
FAMILIES = {
    ONE_RUN: ("a3gt-front", "gamma"),
    RIVAL: ("mix-at-*", "weight"),
    "TRADES": ("trades-*", "beta"),
    "averaged PGD-AT": ("pgd-at-averaged", ""),
    "A3GT": ("a3gt", ""),
    "Generalist": ("generalist", ""),
}
SYMBOLS = {"gamma": "gamma", "weight": "w", "beta": "beta"}
Families = Mapping[str, Rows]


def families(rows: Rows) -> dict[str, Rows]:
    """Return the models of each family with their ``place``: the value of its setting."""
    models, by_family = points(rows), {}
    for name, (pattern, setting) in FAMILIES.items():
        chosen = models[[fnmatchcase(entry, pattern) for entry in models["entry"]]]
        if len(chosen):
            columns = (chosen[c] for c in ("entry", "seed", "gamma", "settings"))
            places = [_place(setting, *model) for model in zip(*columns, strict=True)]
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


def differences(one: Rows, rival: Rows, classes: int) -> pd.DataFrame:
    """Return how the area of the one run differs from the rival's.

    Returns:
        A row a seed on which both are complete: ``seed``, ``difference`` of the areas, the ends
        ``low`` and ``high`` of its 95 % interval over resampled images, and ``share``, the
        gradient evaluations of the one run as a share of the rival's (None: not known).
    """
    seeds, rival_seeds = complete(one), complete(rival)
    gaps = []
    for seed in sorted({*seeds} & {*rival_seeds}):
        pair = seeds[seed], rival_seeds[seed]
        areas = [area(pairs_of(models), classes) for models in pair]
        spent = [cost(models) for models in pair]
        share = spent[0] / spent[1] if spent[0] is not None and spent[1] else None
        gaps.append((seed, areas[0] - areas[1], *_interval(pair, classes), share))
    columns = ["seed", "difference", "low", "high", "share"]
    return pd.DataFrame(gaps, columns=columns, dtype=object)


def _interval(pair: tuple[Rows, Rows], classes: int) -> tuple[float | None, float | None]:
    """Return the 95 % interval of a difference of areas over images drawn with replacement."""
    sizes = {n for models in pair for n in models["n"]}
    if len(sizes) > 1:
        return None, None
    n = sizes.pop()
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES) / n
    first, second = (_resampled(models, drawn, classes) for models in pair)
    low, high = np.quantile(first - second, (0.025, 0.975))
    return float(low), float(high)


def _resampled(models: Rows, drawn: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return the area of some models for each drawing of images."""
    flags = (np.stack(list(models[column]), 1) for column in ("flags", "robust_flags"))
    clean, robust = ((drawn @ some).tolist() for some in flags)
    pairs = zip(clean, robust, strict=True)
    return np.array([area(zip(*both, strict=True), classes) for both in pairs])


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the areas, the points and the comparison with the rival."""
    by_family = families(rows)
    if not by_family:
        return [prose("nothing", title=panel.title)]
    made: list[Block] = [
        _picture(by_family, panel, name),
        _areas(by_family, panel, f"{name}-area"),
        _points(by_family, rows, panel, f"{name}-points"),
    ]
    if ONE_RUN in by_family and RIVAL in by_family:
        pair = by_family[ONE_RUN], by_family[RIVAL]
        gaps = differences(*pair, panel.classes)
        models = [models["place"].nunique() for models in pair]
        seeds = list(gaps.itertuples())
        made.append(
            prose("front", panel=panel, gaps=seeds, models=models, budget=BUDGET, rival=RIVAL)
        )
    return made


_STYLES = {
    ONE_RUN: Style(1, (), "o", 2.4),
    RIVAL: Style(2, (3, 1.5), "v"),
    "TRADES": Style(3, (5, 2), "D"),
    "averaged PGD-AT": Style(2, (), ">"),
    "A3GT": Style("ink", (), "h"),
    "Generalist": Style(0, (), "s"),
}


def _picture(by_family: Families, panel: PanelInfo, name: str) -> Picture:
    lines = {family: line_means(line_of(models)) for family, models in by_family.items()}
    lines = {family: means for family, means in lines.items() if means}  # some place is shared
    labelled = {
        family: {f"{at:g}" if FAMILIES[family][1] else "": pair for at, pair in means.items()}
        for family, means in lines.items()
    }
    styles = {  # a single point has no line
        family: replace(_STYLES[family], width=0) if len(means) == 1 else _STYLES[family]
        for family, means in lines.items()
    }
    symbols = {f: SYMBOLS[FAMILIES[f][1]] for f in by_family if FAMILIES[f][1]}
    spoken = {
        f"{f} {label}".strip(): pair for f, of in labelled.items() for label, pair in of.items()
    }
    seeds = max(models["seed"].nunique() for models in by_family.values())
    return Picture(
        name,
        f"One run and many trainings, {panel.title}",
        lambda palette: figures.planes(palette, {"": labelled}, styles),
        prose("spoken", means=spoken),
        prose("front_caption", symbols=symbols, seeds=seeds),
    )


def _areas(by_family: Families, panel: PanelInfo, name: str) -> Table:
    lines, data = list[Line](), list[Numbers]()
    for family, models in by_family.items():
        seeds = complete(models)
        areas = [area(pairs_of(of_seed), panel.classes) for of_seed in seeds.values()]
        trained = [of_seed["entry"].nunique() for of_seed in seeds.values()]
        counts = [len(of_seed) for of_seed in seeds.values()]
        spent = [cost(of_seed) for of_seed in seeds.values()]
        lines.append(
            {
                "family": family,
                "seeds": seeds_text(seeds, panel.seeds),
                "trainings": number_cell(trained),
                "models": number_cell(counts),
                "gradient evaluations": number_cell(spent),
                "area": area_cell(areas),
            }
        )
        data += zip([family] * len(seeds), seeds, trained, counts, spent, areas, strict=True)
    head = ("family", "seed", "trainings", "models", "gradient_evaluations", "area")
    note = prose("area_note", classes=panel.classes)
    return table(name, f"Areas, {panel.title}", lines, head, data, note)


def _points(by_family: Families, rows: Rows, panel: PanelInfo, name: str) -> Table:
    lines, data = list[Line](), list[Numbers]()
    for family, models in by_family.items():
        setting = FAMILIES[family][1]
        for place, at_place in sorted(group(models, "place").items()):
            made_with = f"{SYMBOLS[setting]} = {place:g}" if setting else ""
            keys = ["panel", "entry", "seed", "weights", "eps"]
            chosen = rows.merge(at_place[keys], on=keys)
            both: Line = {a: spread_cell(accuracies(chosen, a)) for a in (CLEAN, AUTOATTACK)}
            line: Line = {"family": family, "made with": made_with}
            lines.append(line | {"seeds": seeds_text(at_place["seed"], panel.seeds)} | both)
            columns = (at_place[c] for c in ("seed", "n", "clean", "robust", "t_start"))
            data += [(family, made_with, *row) for row in zip(*columns, strict=True)]
    head = ("family", "made_with", "seed", "n", "clean", "autoattack", "t_branch")
    title = f"Every model, {panel.title}"
    return table(name, title, lines, head, data, prose("front_points_note"))
