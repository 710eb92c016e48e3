"""Figure 2: clean against AutoAttack accuracy along training, and along the final gamma."""

__all__ = ["blocks", "line", "line_gaps", "line_means", "lines"]

from collections.abc import Mapping

import pandas as pd

from equipoise.paper import figures
from equipoise.paper.measures import Pair, Rows, area, average, group, half_width, pairs_of, points
from equipoise.paper.prose import prose
from equipoise.paper.results import PanelInfo
from equipoise.paper.tables import Line, Numbers, area_cell, percent_cell, table
from equipoise.report.content import Block, Cell, Picture, Table
from equipoise.report.palette import style_of

Lines = Mapping[str, Rows]  # by entry, models with a place along the line


def lines(rows: Rows, kind: str) -> dict[str, Rows]:
    """Return the models of each entry along its training or along gamma, if there are two.

    Arguments:
        rows: The rows of a panel.
        kind: ``training``: snapshots and the model of the last round; or ``gamma``.
    """
    models = points(rows)
    if kind == "gamma":
        places = [None if gamma is None else float(gamma) for gamma in models["gamma"]]
    else:
        places = [
            _round(*row) for row in models[["round", "weights", "settings", "rounds"]].to_numpy()
        ]
    models = models.assign(place=pd.Series(places, models.index, dtype=float))
    placed = group(models[models["place"].notna()], "entry")
    found = {entry: line(some) for entry, some in placed.items()}
    return {entry: some for entry, some in found.items() if some["place"].nunique() > 1}


def _round(
    saved: int | None, weights: str, settings: Mapping[str, object], rounds: int | None
) -> float | None:
    if saved is not None:
        return float(saved)
    last = weights == "model" and settings.get("keep") == "last"
    return float(rounds) if last and rounds else None


def line(models: Rows) -> Rows:
    """Return the models of the seeds that have most places, at the places that all of them have.

    Arguments:
        models: Models of one entry, with their ``place``.
    """
    first = models.drop_duplicates(["seed", "place"])
    places = {seed: set(some["place"]) for seed, some in group(first, "seed").items()}
    most = max(map(len, places.values()))
    kept = [seed for seed, some in places.items() if len(some) == most]
    shared = set.intersection(*(places[seed] for seed in kept))
    mine = first[first["seed"].isin(kept) & first["place"].isin(shared)]
    return mine.sort_values(["seed", "place"], kind="stable")


def line_means(models: Rows) -> dict[float, tuple[float, float]]:
    """Return by place the mean (clean, robust) accuracy over the seeds."""
    return {
        place: (average(list(some["clean"])), average(list(some["robust"])))
        for place, some in sorted(group(models, "place").items())
    }


def equal_robustness(first: Rows, second: Rows) -> list[tuple[float, float]]:
    """Return how clean accuracy differs at the highest robust accuracy that both lines reach.

    There the clean accuracy of a line is the highest among its points that are robust enough.

    Returns:
        For each seed that both have that robust accuracy and the difference, first minus second.
    """
    found = []
    for seed in sorted({*first["seed"]} & {*second["seed"]}):
        pair = [pairs_of(some[some["seed"] == seed]) for some in (first, second)]
        level = min(max(robust for _, robust in some) for some in pair)
        best = [max(clean for clean, robust in some if robust >= level) for some in pair]
        found.append((level, best[0] - best[1]))
    return found


def line_gaps(found: Lines, entry: str) -> dict[str, list[tuple[float, float]]]:
    """Return by other entry how an entry compares with it: see :func:`equal_robustness`."""
    hero = found.get(entry)
    others = {} if hero is None else {e: m for e, m in found.items() if e != entry}
    gaps = {other: equal_robustness(found[entry], models) for other, models in others.items()}
    return {other: pairs for other, pairs in gaps.items() if pairs}


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the areas, the points and how A3GT compares at equal robustness."""
    found = {kind: lines(rows, kind) for kind in ("training", "gamma")}
    if not any(found.values()):
        return [prose("nothing", title=panel.title)]
    gaps = line_gaps(training := found["training"], "a3gt")
    half = None
    if gaps:
        hero = training["a3gt"]
        half = half_width(max(clean for clean, _ in line_means(hero).values()), min(hero["n"]))
    shown = {
        kind: {e: line_means(m) for e, m in some.items()} for kind, some in found.items() if some
    }
    gammas = shown.get("gamma", {})
    return [
        _picture(
            shown,
            max(len({*m["seed"]}) for some in found.values() for m in some.values()),
            panel,
            name,
        ),
        _areas(found, panel, f"{name}-area"),
        _points(found, panel, f"{name}-points"),
        prose("training", gaps=gaps, half=half, gammas=gammas),
    ]


_TITLES = {"training": "along training (rounds)", "gamma": "along gamma, at the end"}


def _picture(
    shown: Mapping[str, Mapping[str, Mapping[float, Pair]]],
    seeds: int,
    panel: PanelInfo,
    name: str,
) -> Picture:
    panels = {
        _TITLES[kind]: {
            e: {f"{at:g}": pair for at, pair in means.items()} for e, means in some.items()
        }
        for kind, some in shown.items()
    }
    entries = list(dict.fromkeys(entry for some in shown.values() for entry in some))
    styles = {entry: style_of(entry, place) for place, entry in enumerate(entries)}
    ends = {
        f"{e}, {kind} {at:g}": means[at]
        for kind, some in shown.items()
        for e, means in some.items()
        for at in (min(means), max(means))
    }
    return Picture(
        name,
        f"Clean against AutoAttack accuracy, {panel.title}",
        lambda palette: figures.planes(palette, panels, styles),
        prose("spoken", means=ends),
        prose("line_caption", kinds=list(shown), seeds=seeds),
    )


def _areas(found: Mapping[str, Lines], panel: PanelInfo, name: str) -> Table:
    printed, data = list[Line](), list[Numbers]()
    for kind, some in found.items():
        for entry, models in some.items():
            seeds = group(models, "seed")
            areas = [area(pairs_of(mine), panel.classes) for mine in seeds.values()]
            count = models["place"].nunique()
            printed.append(
                {
                    "entry": entry,
                    "along": kind,
                    "points": Cell(str(count), count),
                    "area": area_cell(areas),
                }
            )
            ends = (average(areas), min(areas), max(areas))
            data.append((entry, kind, count, " ".join(map(str, seeds)), *ends))
    head = ("entry", "along", "points", "seeds", "area", "lowest", "highest")
    note = prose("area_note", classes=panel.classes)
    title = f"Area below each line, {panel.title}"
    return table(name, title, printed, head, data, note)


def _points(found: Mapping[str, Lines], panel: PanelInfo, name: str) -> Table:
    printed, data = list[Line](), list[Numbers]()
    for kind, some in found.items():
        for entry, models in some.items():
            means = line_means(models)
            best = max(means, key=lambda place: means[place][1])
            last = means[max(means)]
            heads = ("clean", "autoattack", "last: clean", "last: autoattack")
            cells = map(percent_cell, (*means[best], *last))
            at = f"{'round' if kind == 'training' else 'gamma'} {best:g}"
            printed.append(
                {
                    "entry": entry,
                    "along": kind,
                    "most robust at": at,
                    **dict(zip(heads, cells, strict=True)),
                }
            )
            columns = ("place", "seed", "clean", "robust")
            data += [
                (entry, kind, *row) for row in zip(*(models[c] for c in columns), strict=True)
            ]
    head = ("entry", "along", "at", "seed", "clean", "autoattack")
    title = f"The most robust and the last point of each line, {panel.title}"
    return table(name, title, printed, head, data, prose("points_note"))
