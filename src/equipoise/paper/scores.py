"""Figures 3 and 4: the composite score CMMR and its parts, by radius."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

from equipoise.measures import cmmr
from equipoise.paper import figures, measures
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose
from equipoise.paper.results import CLEAN, WORST, PanelInfo
from equipoise.paper.tables import Line, table
from equipoise.report.content import Block, Cell, Picture, Table

PARTS = {
    "score": "CMMR (cmmr-1)",
    "accuracy": "accuracy under attack",
    "ass": "ASS (mean SSIM of the fooled)",
    "mse": "MSE of the fooled",
    "ald2": "ALD2 of the fooled",
    "psnr": "PSNR of the fooled, dB",
}
CURVE_RADII = (0.03, 0.04, 0.08, 0.12, 0.13, 0.16)
RADII = (0.04, 0.08, 0.12, 0.16)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Scores = dict[str, dict[float, dict[str, float]]]  # by entry, radius and part: means over seeds


def entry_scores(rows: Rows) -> Scores:
    """Return the scores of each entry at each radius: means over the seeds that have one."""
    scores: Scores = {}
    every = (*PARTS, "distortion")
    parts = {part: f"cmmr_{part}" for part in every if f"cmmr_{part}" in rows}
    if "score" not in parts:
        return scores
    scored = rows[(rows["weights"] == "model") & (rows["attack"] == WORST)]
    scored = scored[scored["cmmr_score"].notna()].sort_values("eps", kind="stable")
    for entry in dict.fromkeys(rows["entry"]):
        of_entry = scored[scored["entry"] == entry]
        for eps, models in measures.group(of_entry, "eps").items():
            values = {part: list(models[column].dropna()) for part, column in parts.items()}
            means = {part: measures.average(some) for part, some in values.items() if some}
            scores.setdefault(entry, {})[eps] = means
    return scores


def noise(rows: Rows, first: str, second: str) -> dict[float, float]:
    """Return by radius the difference of two scores that is within the noise of the images.

    It is half the 95 % interval of the difference of accuracies under attack on the same images: a
    score moves with its accuracy, by less.
    """
    widths = {}
    rows = rows[rows["weights"] == "model"]
    for eps, at_eps in sorted(measures.group(rows, "eps").items()):
        a, b = (at_eps[at_eps["entry"] == entry] for entry in (first, second))
        attack = next((name for name in measures.evaluated(a) if name != CLEAN), CLEAN)
        accuracies, pairs = measures.accuracies(a, attack), measures.paired(a, b, attack)
        if len(a):
            widths[eps] = accuracies.half_width if accuracies else 1.0
        if len(pairs):
            widths[eps] = measures.paired_half_width(pairs)
    return widths


def curves(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return Figure 3: the score against eps, its parts, a table and the ranking."""
    scores = entry_scores(rows)
    series: dict[str, dict[str, dict[float, float]]] = {part: {} for part in PARTS}
    for entry, by_eps in scores.items():
        for eps, parts in by_eps.items():
            for part in series.keys() & parts.keys():
                series[part].setdefault(entry, {})[eps] = parts[part]
    small = {PARTS[part]: lines for part, lines in series.items() if part != "score" and lines}
    widths = [noise(rows, "a3gt", entry) for entry in scores if entry != "a3gt"]
    band = {eps: measures.average([w[eps] for w in widths]) for eps in (widths or [{}])[0]}
    drawn = [
        Picture(
            name,
            f"CMMR (cmmr-1) against eps, {panel.title}",
            lambda palette: figures.against_eps(palette, series["score"], "a3gt", band),
            prose("spoken_lines", lines=series["score"]),
            prose("score_caption", seeds=len(panel.seeds)),
        ),
        Picture(
            f"{name}-parts",
            f"Parts of the score, {panel.title}",
            lambda palette: figures.parts(palette, small),
            f"The parts of CMMR against eps: {', '.join(small)}.",
            prose("parts_caption"),
        ),
    ]
    return _blocks(panel, scores, name, CURVE_RADII, [*drawn, *_weights(scores, panel, name)])


def weighted(parts: Mapping[str, float], weight: float) -> float:
    """Return the score with another weight of the distortion; with 0 it is the accuracy."""
    accuracy = parts["accuracy"]
    return accuracy + weight * (parts["score"] - accuracy) / cmmr.WEIGHT


def co_equal(parts: Mapping[str, float]) -> float:
    """Return the mean of five metrics, the accuracy and the four parts of the distortion.

    Where nothing is fooled, no distortion sufficed, and each part is 1.
    """
    return (parts["accuracy"] + 4 * parts.get("distortion", 1.0)) / 5


def reordered(
    at_eps: Mapping[str, Mapping[str, float]], score: Callable[[Mapping[str, float]], float]
) -> int:
    """Return how many pairs of entries a score orders the other way round than cmmr-1 does."""
    values = [(parts["score"], score(parts)) for parts in at_eps.values()]
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in combinations(values, 2))


def _weights(scores: Scores, panel: PanelInfo, name: str) -> list[Block]:
    """Return how far the order depends on the weight of the distortion, which is a choice."""
    measured = {
        eps: {entry: parts for entry, parts in at(scores, eps).items() if "accuracy" in parts}
        for eps in near(scores, RADII)
    }
    measured = {eps: at_eps for eps, at_eps in measured.items() if len(at_eps) > 1}
    lines = {
        f"eps {eps:g}": {e: {w: weighted(p, w) for w in WEIGHTS} for e, p in at_eps.items()}
        for eps, at_eps in measured.items()
    }
    if not lines:
        return []
    changed = {
        eps: (
            reordered(at_eps, lambda parts: weighted(parts, 0)),
            reordered(at_eps, lambda parts: weighted(parts, 1)),
            reordered(at_eps, co_equal),
            len(at_eps) * (len(at_eps) - 1) // 2,
        )
        for eps, at_eps in measured.items()
    }
    picture = Picture(
        f"{name}-weights",
        f"The score by the weight of the distortion, {panel.title}",
        lambda palette: figures.parts(palette, lines, "weight w"),
        prose("weights", changed=changed),
        prose("weights_caption"),
    )
    return [picture, prose("weights", changed=changed)]


def radars(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return Figure 4: radar charts at four radii, the same as a table and the ranking."""
    scores = entry_scores(rows)
    charts = {
        f"eps {eps:g}": {e: (p["score"], p.get("accuracy", 0.0)) for e, p in at_eps.items()}
        for eps in near(scores, RADII)
        if len(at_eps := at(scores, eps)) > 2
    }
    picture = Picture(
        name,
        f"CMMR (cmmr-1) at {len(charts)} radii, {panel.title}",
        lambda palette: figures.radar(palette, charts),
        prose("spoken_radar", charts=charts),
        prose("radar_caption"),
    )
    return _blocks(panel, scores, name, RADII, [picture] if charts else [])


def _blocks(
    panel: PanelInfo, scores: Scores, name: str, radii: Sequence[float], drawn: Sequence[Block]
) -> list[Block]:
    if not scores:
        return [prose("nothing", title=panel.title)]
    return [*drawn, _table(scores, panel, radii, f"{name}-scores"), _ranking(scores, radii)]


def _table(scores: Scores, panel: PanelInfo, radii: Sequence[float], name: str) -> Table:
    entries = list(dict.fromkeys([*panel.entries, *scores]))
    lines: list[Line] = [{"entry": entry} for entry in entries]
    for eps in near(scores, radii):
        at_eps = at(scores, eps)
        highest = max(parts["score"] for parts in at_eps.values())
        for entry, line in zip(entries, lines, strict=True):
            parts, score = at_eps.get(entry, {}), at_eps.get(entry, {}).get("score")
            small = f"acc. {parts['accuracy']:.3f}" if "accuracy" in parts else ""
            mark = "best" if score == highest and len(at_eps) > 1 else ""
            cell = Cell() if score is None else Cell(f"{score:.3f}", score, small, mark)
            line[f"eps {eps:g}"] = cell
    data = [
        (entry, eps, *map(parts.get, PARTS))
        for entry in entries
        for eps, parts in scores.get(entry, {}).items()
    ]
    head = f"entry eps {' '.join(PARTS)}"
    note = prose("scores_note", lost=[eps for eps in radii if not near(scores, [eps])])
    return table(name, f"CMMR (cmmr-1), {panel.title}", lines, head, data, note)


def near(scores: Scores, radii: Sequence[float]) -> list[float]:
    """Return those of some radii that were measured; they may differ in the last digits."""
    every = sorted({eps for by_eps in scores.values() for eps in by_eps})
    return [eps for wish in radii for eps in [e for e in every if abs(e - wish) < 1e-6][:1]]


def at(scores: Scores, eps: float) -> dict[str, dict[str, float]]:
    """Return the scores at a radius by entry."""
    return {entry: by_eps[eps] for entry, by_eps in scores.items() if eps in by_eps}


def _ranking(scores: Scores, radii: Sequence[float]) -> str:
    leaders: dict[str, list[float]] = {}
    places: dict[float, Any] = {}
    agree = []
    for eps in near(scores, radii):
        at_eps = at(scores, eps)
        order, by_accuracy = (
            sorted(at_eps, key=lambda entry: (-at_eps[entry].get(part, 0.0), entry))
            for part in ("score", "accuracy")
        )
        leaders.setdefault(order[0], []).append(eps)
        if "a3gt" in order:
            places[eps] = order.index("a3gt") + 1, len(order)
        if order == by_accuracy:
            agree.append(eps)
    return prose("ranking", leaders=leaders, places=places, agree=agree)
