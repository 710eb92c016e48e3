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

TITLES = {"cmmr": "CMMR (cmmr-1)", "cmmr2": "CMMR (cmmr-2)"}
PARTS = {
    "score": TITLES["cmmr"],
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


def entry_scores(rows: Rows, kind: str = "cmmr") -> Scores:
    """Return the scores of each entry at each radius: means over the seeds that have one."""
    scores: Scores = {}
    every = (*PARTS, "distortion", "lowest", "highest")
    parts = {part: f"{kind}_{part}" for part in every if f"{kind}_{part}" in rows}
    if "score" not in parts:
        return scores
    scored = _scored(rows, kind).sort_values("eps", kind="stable")
    for entry in dict.fromkeys(rows["entry"]):
        of_entry = scored[scored["entry"] == entry]
        for eps, models in measures.group(of_entry, "eps").items():
            values = {part: list(models[column].dropna()) for part, column in parts.items()}
            means = {part: measures.average(some) for part, some in values.items() if some}
            scores.setdefault(entry, {})[eps] = means
    return scores


def _scored(rows: Rows, kind: str) -> Rows:
    rows = rows[(rows["weights"] == "model") & (rows["attack"] == WORST)]
    return rows[rows[f"{kind}_score"].notna()]


def noise(rows: Rows, first: str, second: str, kind: str = "cmmr") -> dict[float, float]:
    """Return by radius the difference of two scores that is within the noise of the images.

    It is half the 95 % interval of the difference of credits on the same images. Where these are
    not stored it is that of accuracies under attack: a score moves with its accuracy, by less.
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
        width = measures.score_half_width(a, b, f"{kind}_credits")
        widths |= {} if width is None else {eps: width}
    return widths


def curves(panel: PanelInfo, rows: Rows, name: str) -> list[Block]:
    """Return Figure 3: the scores against eps, parts, tables and rankings."""
    scores = entry_scores(rows)
    series: dict[str, dict[str, dict[float, float]]] = {part: {} for part in PARTS}
    for entry, by_eps in scores.items():
        for eps, parts in by_eps.items():
            for part in series.keys() & parts.keys():
                series[part].setdefault(entry, {})[eps] = parts[part]
    small = {PARTS[part]: lines for part, lines in series.items() if part != "score" and lines}
    drawn: list[Block] = [
        _against_eps(panel, rows, name, "cmmr"),
        Picture(
            f"{name}-parts",
            f"Parts of the score, {panel.title}",
            lambda palette: figures.parts(palette, small),
            f"The parts of CMMR against eps: {', '.join(small)}.",
            prose("parts_caption"),
        ),
    ]
    drawn += _weights(scores, panel, name)
    blocks = _blocks(panel, rows, name, CURVE_RADII, drawn, "cmmr")
    if not entry_scores(rows, "cmmr2"):
        return blocks
    second = [_against_eps(panel, rows, f"{name}-cmmr-2", "cmmr2")]
    return blocks + _blocks(panel, rows, f"{name}-cmmr-2", CURVE_RADII, second, "cmmr2")


def _against_eps(panel: PanelInfo, rows: Rows, name: str, kind: str) -> Picture:
    """Return a picture of a score against eps, with the noise of the images."""
    scores = entry_scores(rows, kind)
    lines = {e: {eps: p["score"] for eps, p in by.items()} for e, by in scores.items()}
    widths = [noise(rows, "a3gt", entry, kind) for entry in scores if entry != "a3gt"]
    band = {eps: measures.average([w[eps] for w in widths]) for eps in (widths or [{}])[0]}
    stored = f"{kind}_credits" in rows and not _scored(rows, kind)[f"{kind}_credits"].isna().any()
    return Picture(
        name,
        f"{TITLES[kind]} against eps, {panel.title}",
        lambda palette: figures.against_eps(palette, lines, "a3gt", band),
        prose("spoken_lines", lines=lines),
        prose("score_caption", kind=kind, seeds=len(panel.seeds), credits=stored),
    )


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
    blocks = _radar(panel, rows, name, "cmmr")
    if entry_scores(rows, "cmmr2"):
        blocks += _radar(panel, rows, f"{name}-cmmr-2", "cmmr2")
    return blocks


def _radar(panel: PanelInfo, rows: Rows, name: str, kind: str) -> list[Block]:
    scores = entry_scores(rows, kind)
    charts = {
        f"eps {eps:g}": {e: (p["score"], p.get("accuracy", 0.0)) for e, p in at_eps.items()}
        for eps in near(scores, RADII)
        if len(at_eps := at(scores, eps)) > 2
    }
    picture = Picture(
        name,
        f"{TITLES[kind]} at {len(charts)} radii, {panel.title}",
        lambda palette: figures.radar(palette, charts),
        prose("spoken_radar", charts=charts),
        prose("radar_caption", kind=kind),
    )
    return _blocks(panel, rows, name, RADII, [picture] if charts else [], kind)


def _blocks(
    panel: PanelInfo,
    rows: Rows,
    name: str,
    radii: Sequence[float],
    drawn: Sequence[Block],
    kind: str,
) -> list[Block]:
    scores = entry_scores(rows, kind)
    if not scores:
        return [prose("nothing", title=panel.title)]
    table = _table(scores, rows, panel, radii, f"{name}-scores", kind)
    return [*drawn, table, _ranking(scores, radii)]


def _table(
    scores: Scores, rows: Rows, panel: PanelInfo, radii: Sequence[float], name: str, kind: str
) -> Table:
    entries = list(dict.fromkeys([*panel.entries, *scores]))
    lines: list[Line] = [{"entry": entry} for entry in entries]
    for eps in near(scores, radii):
        at_eps = at(scores, eps)
        highest = max(parts["score"] for parts in at_eps.values())
        for entry, line in zip(entries, lines, strict=True):
            parts, score = at_eps.get(entry, {}), at_eps.get(entry, {}).get("score")
            small = f"acc. {parts['accuracy']:.3f}" if "accuracy" in parts else ""
            if "lowest" in parts:
                small = f"{parts['lowest']:.3f} to {parts['highest']:.3f}"
            mark = "best" if score == highest and len(at_eps) > 1 else ""
            cell = Cell() if score is None else Cell(f"{score:.3f}", score, small, mark)
            line[f"eps {eps:g}"] = cell
    data: list[tuple[Any, ...]] = [
        (entry, eps, *map(parts.get, PARTS))
        for entry in entries
        for eps, parts in scores.get(entry, {}).items()
    ]
    head = f"entry eps {' '.join(PARTS)}"
    if kind == "cmmr2":
        head, data = f"entry seed eps attack {' '.join(PARTS)}", _by_attack(rows)
    lost = [eps for eps in radii if not near(scores, [eps])]
    note = prose("scores_note", kind=kind, lost=lost)
    return table(name, f"{TITLES[kind]}, {panel.title}", lines, head, data, note)


def _by_attack(rows: Rows) -> list[tuple[Any, ...]]:
    """Return the numbers of cmmr-2 for programs: a row an entry, seed, radius and attack."""
    data = list[tuple[Any, ...]]()
    for row in _scored(rows, "cmmr2").to_dict("records"):
        mean = row["cmmr2_score"], row["cmmr2_accuracy"]
        where = row["entry"], row["seed"], row["eps"]
        data.append((*where, "mean", *mean, *[None] * (len(PARTS) - len(mean))))
        for attack, parts in row["cmmr2_attacks"].items():
            data.append((*where, attack, *map(parts.get, PARTS)))
    return data


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
