"""Figures 3 and 4: the composite score CMMR and its parts, by radius."""

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.paper import figures, measures
from equipoise.paper.measures import Rows
from equipoise.paper.prose import prose
from equipoise.paper.results import CLEAN, WORST, PanelInfo
from equipoise.paper.tables import table
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
Scores = dict[str, dict[float, dict[str, float]]]  # by entry, radius and part: means over seeds


def entry_scores(rows: Rows) -> Scores:
    """Return the scores of each entry at each radius: means over the seeds that have one."""
    if "cmmr_score" not in rows:
        return {}
    measured = rows[
        (rows["weights"] == "model") & (rows["attack"] == WORST) & rows["cmmr_score"].notna()
    ]
    return {
        entry: {eps: _means(some) for eps, some in sorted(measures.group(mine, "eps").items())}
        for entry, mine in measures.group(measured, "entry").items()
    }


def _means(rows: Rows) -> dict[str, float]:
    known = {part: list(rows[f"cmmr_{part}"].dropna()) for part in PARTS if f"cmmr_{part}" in rows}
    return {part: measures.average(values) for part, values in known.items() if values}


def noise(rows: Rows, first: str, second: str) -> dict[float, float]:
    """Return by radius the difference of two scores that is within the noise of the images.

    It is half the 95 % interval of the difference of accuracies under attack on the same images: a
    score moves with its accuracy, by less.
    """
    widths = {}
    rows = rows[rows["weights"] == "model"]
    for eps, at_eps in sorted(measures.group(rows, "eps").items()):
        one, other = (at_eps[at_eps["entry"] == entry] for entry in (first, second))
        if len(one):
            attack = next((name for name in measures.evaluated(one) if name != CLEAN), CLEAN)
            width = measures.paired_half_width(measures.paired(one, other, attack))
            known = measures.accuracies(one, attack)
            if width is None:
                width = measures.half_width(known.mean, known.n) if known else 1.0
            widths[eps] = width
    return widths


def curves(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return Figure 3: the score against eps, its parts, a table and the ranking."""
    scores = entry_scores(rows)
    series = {
        part: {
            entry: {eps: parts[part] for eps, parts in by_eps.items() if part in parts}
            for entry, by_eps in scores.items()
            if any(part in parts for parts in by_eps.values())
        }
        for part in PARTS
    }
    small = {PARTS[part]: lines for part, lines in series.items() if part != "score" and lines}
    band = _band(rows, scores)
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
    return _blocks(panel, scores, name, CURVE_RADII, drawn)


def _band(rows: Rows, scores: Scores) -> dict[float, float]:
    """Return by radius the noise of a difference to A3GT, a mean over the methods."""
    each = [noise(rows, "a3gt", other) for other in scores if other != "a3gt"]
    return {
        eps: measures.average([widths[eps] for widths in each])
        for eps in (each[0] if each else ())
    }


def radars(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return Figure 4: radar charts at four radii, the same as a table and the ranking."""
    scores = entry_scores(rows)
    charts = {
        f"eps {eps:g}": {
            entry: (parts["score"], parts.get("accuracy", 0.0))
            for entry, parts in at(scores, eps).items()
        }
        for eps in near(scores, RADII)
        if len(at(scores, eps)) > 2
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
    panel: PanelInfo, scores: Scores, name: str, wanted: Sequence[float], drawn: Sequence[Picture]
) -> list[Block]:
    if not scores:
        return [prose("nothing", title=panel.title)]
    return [*drawn, _table(scores, panel, wanted, f"{name}-scores"), _ranking(scores, wanted)]


def _table(scores: Scores, panel: PanelInfo, wanted: Sequence[float], name: str) -> Table:
    shown = near(scores, wanted)
    order = list(dict.fromkeys([*panel.entries, *scores]))
    lines = [
        {"entry": entry} | {f"eps {eps:g}": _cell(scores, entry, eps) for eps in shown}
        for entry in order
    ]
    data = [
        (entry, eps, *(parts.get(part) for part in PARTS))
        for entry in order
        for eps, parts in scores.get(entry, {}).items()
    ]
    missing = [eps for eps in wanted if not near(scores, [eps])]
    head = ("entry", "eps", *PARTS)
    notes = (prose("scores_note", lost=missing),)
    return table(name, f"CMMR (cmmr-1), {panel.title}", lines, head, data, *notes)


def _cell(scores: Scores, entry: str, eps: float) -> Cell:
    parts, others = scores.get(entry, {}).get(eps), at(scores, eps)
    if parts is None:
        return Cell()
    best = len(others) > 1 and parts["score"] == max(o["score"] for o in others.values())
    small = f"acc. {parts['accuracy']:.3f}" if "accuracy" in parts else ""
    return Cell(f"{parts['score']:.3f}", parts["score"], small, "best" if best else "")


def near(scores: Scores, wanted: Sequence[float]) -> list[float]:
    """Return the radii that were measured, of those wanted; they may differ in the last digits."""
    every = sorted({eps for by_eps in scores.values() for eps in by_eps})
    return [eps for wish in wanted for eps in [e for e in every if abs(e - wish) < 1e-6][:1]]


def at(scores: Scores, eps: float) -> dict[str, dict[str, float]]:
    """Return the scores at a radius by entry."""
    return {entry: by_eps[eps] for entry, by_eps in scores.items() if eps in by_eps}


def ranked(scores: Mapping[str, Mapping[str, float]], part: str = "score") -> list[str]:
    """Return the entries with the highest score first."""
    return sorted(scores, key=lambda entry: (-scores[entry].get(part, 0.0), entry))


def _ranking(scores: Scores, wanted: Sequence[float]) -> str:
    leaders: dict[str, list[float]] = {}
    places: dict[float, Any] = {}
    agree = []
    for eps in near(scores, wanted):
        order = ranked(at(scores, eps))
        leaders.setdefault(order[0], []).append(eps)
        if "a3gt" in order:
            places[eps] = order.index("a3gt") + 1, len(order)
        if order == ranked(at(scores, eps), "accuracy"):
            agree.append(eps)
    return prose("ranking", leaders=leaders, places=places, agree=agree)
