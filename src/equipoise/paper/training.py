"""Figure 2: clean against AutoAttack accuracy along training, and along the final gamma."""

from collections.abc import Mapping

from equipoise.paper import figures
from equipoise.paper.measures import (
    Pair,
    Rows,
    area,
    average,
    group,
    half_width,
    mean_pair,
    pairs_of,
    points,
)
from equipoise.paper.prose import prose
from equipoise.paper.results import PanelInfo
from equipoise.paper.tables import Line, Numbers, area_cell, percent_cell, table
from equipoise.report.content import Block, Cell, Picture, Table
from equipoise.report.palette import style_of

Gaps = list[tuple[float, float]]  # of each seed the robust accuracy, and the gap in clean accuracy


def lines(rows: Rows, kind: str) -> dict[str, Rows]:
    """Return the models of each entry with their ``place`` along a line, if there are two.

    Along ``training`` they are the snapshots and the model of the last round, at their rounds;
    along ``gamma`` the mixes of two learners.
    """
    models = points(rows)
    kept_last = models["settings"].map(lambda settings: settings.get("keep") == "last")
    last = (models["weights"] == "model") & kept_last.astype(bool)
    rounds = models["round"].astype(float).fillna(models["rounds"].astype(float).where(last))
    models = models.assign(place=models["gamma"].astype(float) if kind == "gamma" else rounds)
    placed = group(models[models["place"].notna()], "entry")
    found = {entry: line(some) for entry, some in placed.items()}
    return {entry: some for entry, some in found.items() if some["place"].nunique() > 1}


def line(models: Rows) -> Rows:
    """Return the models of the seeds that have most places, at the places that all have."""
    first = models.drop_duplicates(["seed", "place"])
    places = {seed: set(some["place"]) for seed, some in group(first, "seed").items()}
    most = max(map(len, places.values()))
    kept = [seed for seed, some in places.items() if len(some) == most]
    shared = set.intersection(*(places[seed] for seed in kept))
    mine = first[first["seed"].isin(kept) & first["place"].isin(shared)]
    return mine.sort_values(["seed", "place"], kind="stable")


def line_means(models: Rows) -> dict[float, Pair]:
    """Return by place the mean (clean, robust) accuracy over the seeds."""
    return {place: mean_pair(some) for place, some in sorted(group(models, "place").items())}


def equal_robustness(first: Rows, second: Rows) -> Gaps:
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


def line_gaps(found: Mapping[str, Rows], entry: str) -> dict[str, Gaps]:
    """Return by other entry how an entry compares with it: see :func:`equal_robustness`."""
    hero = found.get(entry)
    others = {} if hero is None else {e: m for e, m in found.items() if e != entry}
    gaps = {other: equal_robustness(found[entry], models) for other, models in others.items()}
    return {other: pairs for other, pairs in gaps.items() if pairs}


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the areas, the points and how A3GT compares at equal robustness."""
    kinds = {kind: lines(rows, kind) for kind in ("training", "gamma")}
    found = {(kind, entry): m for kind, some in kinds.items() for entry, m in some.items()}
    if not found:
        return [prose("nothing", title=panel.title)]
    means = {key: line_means(models) for key, models in found.items()}
    half, gaps = 0.0, line_gaps(kinds["training"], "a3gt")
    if gaps:
        clean = max(pair[0] for pair in means["training", "a3gt"].values())
        half = half_width(clean, min(found["training", "a3gt"]["n"]))
    gammas = {entry: means["gamma", entry] for entry in kinds["gamma"]}
    return [
        _picture(found, means, panel, name),
        *_tables(found, means, panel, name),
        prose("training", gaps=gaps, half=half, gammas=gammas),
    ]


_TITLES = {"training": "along training (rounds)", "gamma": "along gamma, at the end"}
Found = Mapping[tuple[str, str], Rows]  # by kind and entry
Means = Mapping[tuple[str, str], Mapping[float, Pair]]


def _picture(found: Found, means: Means, panel: PanelInfo, name: str) -> Picture:
    panels: dict[str, dict[str, dict[str, Pair]]] = {}
    for (kind, entry), line in means.items():
        labelled = {f"{place:g}": pair for place, pair in line.items()}
        panels.setdefault(_TITLES[kind], {})[entry] = labelled
    entries = dict.fromkeys(entry for _, entry in found)
    styles = {entry: style_of(entry, place) for place, entry in enumerate(entries)}
    ends = {
        f"{entry}, {kind} {place:g}": line[place]
        for (kind, entry), line in means.items()
        for place in (min(line), max(line))
    }
    seeds = max(models["seed"].nunique() for models in found.values())
    return Picture(
        name,
        f"Clean against AutoAttack accuracy, {panel.title}",
        lambda palette: figures.planes(palette, panels, styles),
        prose("spoken", means=ends),
        prose("line_caption", kinds={kind for kind, _ in found}, seeds=seeds),
    )


def _tables(found: Found, means: Means, panel: PanelInfo, name: str) -> list[Table]:
    areas, points_, area_data, data = list[Line](), list[Line](), list[Numbers](), list[Numbers]()
    for (kind, entry), models in found.items():
        line, seeds = means[kind, entry], group(models, "seed")
        values = [area(pairs_of(mine), panel.classes) for mine in seeds.values()]
        head: Line = {"entry": entry, "along": kind}
        areas.append(head | {"points": Cell(str(len(line)), len(line)), "area": area_cell(values)})
        ends = (average(values), min(values), max(values))
        area_data.append((entry, kind, len(line), " ".join(map(str, seeds)), *ends))
        best = max(line, key=lambda place: line[place][1])
        names = ("clean", "autoattack", "last: clean", "last: autoattack")
        cells = map(percent_cell, (*line[best], *line[max(line)]))
        at = f"{'round' if kind == 'training' else 'gamma'} {best:g}"
        points_.append(head | {"most robust at": at, **dict(zip(names, cells, strict=True))})
        columns = (models[column] for column in ("place", "seed", "clean", "robust"))
        data += [(entry, kind, *row) for row in zip(*columns, strict=True)]
    return [
        table(
            f"{name}-area",
            f"Area below each line, {panel.title}",
            areas,
            ("entry", "along", "points", "seeds", "area", "lowest", "highest"),
            area_data,
            prose("area_note", classes=panel.classes),
        ),
        table(
            f"{name}-points",
            f"The most robust and the last point of each line, {panel.title}",
            points_,
            ("entry", "along", "at", "seed", "clean", "autoattack"),
            data,
            prose("points_note"),
        ),
    ]
