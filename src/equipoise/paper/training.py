"""Figure 2: clean against AutoAttack accuracy along training, and along the final gamma."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from equipoise.paper import figures, measures
from equipoise.paper.accuracy import PAPERS
from equipoise.paper.measures import Accuracies, Pair, Rows, group
from equipoise.paper.prose import prose
from equipoise.paper.results import PanelInfo
from equipoise.paper.tables import AREA, Line, mean_cell, percent_cell, table
from equipoise.report.content import Block, Cell, Picture, Table
from equipoise.report.palette import style_of

Array = NDArray[np.float64]
Gaps = dict[int, tuple[Array, Array]]  # by seed: robust accuracies, differences of clean accuracy
Lines = Mapping[tuple[str, str], Rows]  # by kind (training, gamma) and entry
Means = Mapping[tuple[str, str], Mapping[float, Pair]]


def lines(rows: Rows, kind: str) -> dict[str, Rows]:
    """Return the models of each entry with their ``place`` along a line, if there are two.

    Along ``training`` they are the snapshots and the model of the last round, at their rounds;
    along ``gamma`` the mixes of two learners.
    """
    models = measures.points(rows)
    kept_last = models["settings"].map(lambda settings: settings.get("keep") == "last")
    last = (models["weights"] == "model") & kept_last.astype(bool)
    rounds = models["round"].astype(float).fillna(models["rounds"].astype(float).where(last))
    models = models.assign(place=models["gamma"].astype(float) if kind == "gamma" else rounds)
    placed = group(models[models["place"].notna()], "entry")
    by_entry = {entry: line(of_entry) for entry, of_entry in placed.items()}
    return {
        entry: of_entry for entry, of_entry in by_entry.items() if len({*of_entry["place"]}) > 1
    }


def line(models: Rows) -> Rows:
    """Return the models of the seeds that have most places, at the places that all have."""
    first = models.drop_duplicates(["seed", "place"])
    places = {seed: {*of_seed["place"]} for seed, of_seed in group(first, "seed").items()}
    most = max(map(len, places.values()))
    longest = [seed for seed, of_seed in places.items() if len(of_seed) == most]
    shared = set.intersection(*(places[seed] for seed in longest))
    on_line = first[first["seed"].isin(longest) & first["place"].isin(shared)]
    return on_line.sort_values(["seed", "place"], kind="stable")


def line_means(models: Rows) -> dict[float, Pair]:
    """Return by place the mean (clean, robust) accuracy over the seeds."""
    return {
        place: measures.mean_pair(some) for place, some in sorted(group(models, "place").items())
    }


def line_gaps(by_entry: Mapping[str, Rows], entry: str) -> dict[str, Gaps]:
    """Return how clean accuracy differs at the highest robust accuracy that both lines reach.

    There the clean accuracy of a line is the highest among its points that are robust enough.

    Returns:
        By other entry, for each seed of both, that robust accuracy and the difference, first
        minus second: on the images themselves, then on resampled ones.
    """
    others = [name for name in by_entry if name != entry] if entry in by_entry else []
    gaps: dict[str, Gaps] = {}
    for other in others:
        seeds = [group(by_entry[name], "seed") for name in (entry, other)]
        for seed in sorted({*seeds[0]} & {*seeds[1]}):
            pair = [measures.resampled(of_entry[seed]) for of_entry in seeds]
            level = np.minimum(*(line[..., 1].max(1) for line in pair))
            enough = [np.where(line[..., 1] >= level[:, None], line[..., 0], 0) for line in pair]
            first, second = (clean.max(1) for clean in enough)
            gaps.setdefault(other, {})[seed] = level, first - second
    return gaps


def blocks(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return the picture, the areas, the points and how A3GT compares at equal robustness."""
    every = {
        (kind, entry): models
        for kind in ("training", "gamma")
        for entry, models in lines(rows, kind).items()
    }
    if not every:
        return [prose("nothing", title=panel.title)]
    means = {key: line_means(models) for key, models in every.items()}
    along = {entry: models for (kind, entry), models in every.items() if kind == "training"}
    half, gaps = 0.0, line_gaps(along, PAPERS)
    if gaps:
        clean = max(pair[0] for pair in means["training", PAPERS].values())
        half = Accuracies((clean,), min(along[PAPERS]["n"])).half_width
    gammas = {entry: line for (kind, entry), line in means.items() if kind == "gamma"}
    return [
        _picture(every, means, panel, name),
        _areas(every, panel, name),
        _points(every, means, panel, name),
        prose("training", gaps=_observed(gaps), half=half, gammas=gammas),
    ]


def _observed(gaps: Mapping[str, Gaps]) -> dict[str, list[Pair]]:
    """Return the robust accuracies and differences on the images themselves."""
    return {e: [(level[0], gap[0]) for level, gap in some.values()] for e, some in gaps.items()}


_TITLES = {"training": "along training (rounds)", "gamma": "along gamma, at the end"}


def _picture(every: Lines, means: Means, panel: PanelInfo, name: str) -> Picture:
    planes: dict[str, dict[str, dict[str, Pair]]] = {}
    for (kind, entry), line in means.items():
        labelled = {f"{place:g}": pair for place, pair in line.items()}
        planes.setdefault(_TITLES[kind], {})[entry] = labelled
    entries = dict.fromkeys(entry for _, entry in every)
    styles = {entry: style_of(entry, place) for place, entry in enumerate(entries)}
    ends = {
        f"{entry}, {kind} {place:g}": line[place]
        for (kind, entry), line in means.items()
        for place in (min(line), max(line))
    }
    seeds = max(models["seed"].nunique() for models in every.values())
    return Picture(
        name,
        f"Clean against AutoAttack accuracy, {panel.title}",
        lambda palette: figures.planes(palette, planes, styles),
        prose("spoken", means=ends),
        prose("line_caption", kinds={kind for kind, _ in every}, seeds=seeds),
    )


def _areas(every: Lines, panel: PanelInfo, name: str) -> Table:
    lines, data = list[Line](), []
    for (kind, entry), models in every.items():
        seeds, count = group(models, "seed"), models["place"].nunique()
        areas = [
            measures.area(measures.pairs_of(of_seed), panel.classes) for of_seed in seeds.values()
        ]
        cells = {"points": Cell(str(count), count), "area": mean_cell(areas, AREA, span=True)}
        lines.append({"entry": entry, "along": kind, **cells})
        ends = (measures.average(areas), min(areas), max(areas))
        data.append((entry, kind, count, " ".join(map(str, seeds)), *ends))
    head = "entry along points seeds area lowest highest"
    title, note = f"Area below each line, {panel.title}", prose("area_note", classes=panel.classes)
    return table(f"{name}-area", title, lines, head, data, note)


def _points(every: Lines, means: Means, panel: PanelInfo, name: str) -> Table:
    lines, data = list[Line](), []
    for (kind, entry), models in every.items():
        line = means[kind, entry]
        best, last = max(line, key=lambda place: line[place][1]), max(line)
        heads = ("clean", "autoattack", "last: clean", "last: autoattack")
        cells = map(percent_cell, (*line[best], *line[last]))
        at = f"{'round' if kind == 'training' else 'gamma'} {best:g}"
        start: Line = {"entry": entry, "along": kind, "most robust at": at}
        lines.append(start | dict(zip(heads, cells, strict=True)))
        numbers = models[["place", "seed", "clean", "robust"]].itertuples(index=False)
        data += [(entry, kind, *row) for row in numbers]
    title = f"The most robust and the last point of each line, {panel.title}"
    head = "entry along at seed clean autoattack"
    return table(f"{name}-points", title, lines, head, data, prose("points_note"))
