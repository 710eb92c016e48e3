"""Figures 3 and 4: the composite score CMMR and its parts, by radius."""

__all__ = ["PARTS", "RADII", "curves", "entry_scores", "noise", "radars", "score_table"]

from collections.abc import Mapping, Sequence

from equipoise.paper import radar, sweeps
from equipoise.paper.findings import CLEAN, Findings, Panel, Row
from equipoise.paper.measures import average, by_entry, cell, half_width, paired_half_width
from equipoise.paper.phrases import capital, entry_name, plural, words
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Column, Picture, Table, file_name

# What a score is made of: its name, its title, and how its numbers are printed.
PARTS = {
    "score": ("CMMR (cmmr-1)", "{:.3f}"),
    "accuracy": ("accuracy under attack", "{:.3f}"),
    "ass": ("ASS (mean SSIM of the fooled)", "{:.3f}"),
    "mse": ("MSE of the fooled", "{:.4f}"),
    "ald2": ("ALD2 of the fooled", "{:.3f}"),
    "psnr": ("PSNR of the fooled, dB", "{:.1f}"),
}
CURVE_RADII = (0.03, 0.04, 0.08, 0.12, 0.13, 0.16)
RADII = (0.04, 0.08, 0.12, 0.16)
Scores = dict[str, dict[float, dict[str, float]]]  # by entry, radius and part: means over seeds


def entry_scores(findings: Findings, panel: Panel) -> Scores:
    """Return what is known of each entry at each radius: means over the seeds that have it."""
    made: Scores = {}
    for entry, rows in by_entry(findings.of(panel)).items():
        by_eps: dict[float, list[Row]] = {}
        for row in rows:
            if "score" in row.cmmr:
                by_eps.setdefault(row.eps, []).append(row)
        if by_eps:
            made[entry] = {eps: _means(by_eps[eps]) for eps in sorted(by_eps)}
    return made


def noise(findings: Findings, panel: Panel, first: str, second: str) -> dict[float, float]:
    """Return by radius which difference of two entries is within the noise of the images.

    That of the accuracies under attack, image by image: a score moves with its accuracy, by less.
    """
    entries = by_entry(findings.of(panel))
    found = {}
    for eps in sorted({row.eps for row in entries.get(first, ())}):
        mine, its = ([r for r in entries.get(e, ()) if r.eps == eps] for e in (first, second))
        attack = next((name for row in mine for name in row.correct if name != CLEAN), CLEAN)
        width = paired_half_width(mine, its, attack)
        if width is None:
            known = cell(mine, attack)
            width = half_width(known.mean, known.n) if known else 1.0
        found[eps] = width
    return found


def _means(rows: Sequence[Row]) -> dict[str, float]:
    keys = [key for key in PARTS if any(key in row.cmmr for row in rows)]
    return {key: average([r.cmmr[key] for r in rows if key in r.cmmr]) for key in keys}


def curves(findings: Findings) -> list[Block]:
    """Return Figure 3: the score against eps, its parts, a table, and what they say."""
    made: list[Block] = []
    for panel in findings.panels:
        scores = entry_scores(findings, panel)
        name = file_name(findings.experiment, panel.name if len(findings.panels) > 1 else "")
        if not scores:
            made.append(_NOTHING.format(panel.title))
            continue
        made.append(_curve(scores, panel, name, _band(findings, panel, scores)))
        made.append(_parts(scores, panel, f"{name}-parts"))
        made.append(score_table(scores, panel, CURVE_RADII, f"{name}-scores"))
        made.append(_said(scores, CURVE_RADII))
    return made


def radars(findings: Findings) -> list[Block]:
    """Return Figure 4: radar charts at four radii, the same as a table, and what they say."""
    made: list[Block] = []
    for panel in findings.panels:
        scores = entry_scores(findings, panel)
        name = file_name(findings.experiment, panel.name if len(findings.panels) > 1 else "")
        shown = [eps for eps in _near(scores, RADII) if len(_at(scores, eps)) > 2]
        if not scores:
            made.append(_NOTHING.format(panel.title))
            continue
        if shown:
            made.append(_radar(scores, panel, shown, name))
        else:
            made.append(f"{panel.title}: a radar needs three methods at one radius.")
        made.append(score_table(scores, panel, RADII, f"{name}-scores"))
        made.append(_said(scores, RADII))
    return made


_NOTHING = "{}: no score has been measured yet."


def _curve(scores: Scores, panel: Panel, name: str, band: Mapping[float, float]) -> Picture:
    series = sweeps.series(scores, "score")
    return Picture(
        name,
        f"CMMR (cmmr-1) against eps, {panel.title}",
        lambda palette: sweeps.draw(palette, series, "a3gt", band),
        sweeps.spoken("CMMR", series, "{:.3f}"),
        "The score is the accuracy under attack and, for a fooled image, at most half a point for "
        "the distortion it took; at eps 0 it is the clean accuracy. "
        + _seeded(panel)
        + " Grey: the 95 % interval of a difference in accuracy to A3GT on the same images, a "
        "mean over the methods; within it a difference is no ranking.",
    )


def _band(findings: Findings, panel: Panel, scores: Scores) -> dict[float, float]:
    others = [entry for entry in scores if entry != "a3gt"]
    each = [noise(findings, panel, "a3gt", other) for other in others]
    return {eps: average([found[eps] for found in each]) for eps in (each[0] if each else ())}


def _parts(scores: Scores, panel: Panel, name: str) -> Picture:
    parts = {
        title: sweeps.series(scores, key) for key, (title, _) in PARTS.items() if key != "score"
    }
    known = {title: series for title, series in parts.items() if series}
    return Picture(
        name,
        f"What the score is made of, {panel.title}",
        lambda palette: sweeps.draw_small(palette, known),
        "The parts of CMMR against eps: " + wording.join(list(known)) + ".",
        "ASS, MSE, ALD2 and PSNR are means over the images that were fooled; a model that "
        "withstands more is measured on other images. Where nothing is fooled there is no point.",
    )


def _radar(scores: Scores, panel: Panel, shown: Sequence[float], name: str) -> Picture:
    charts = {
        f"eps {eps:g}": {
            entry: (parts["score"], parts.get("accuracy", 0.0))
            for entry, parts in _at(scores, eps).items()
        }
        for eps in shown
    }
    told = [
        f"{title}: "
        + ", ".join(f"{e} {score:.3f} (accuracy {acc:.3f})" for e, (score, acc) in chart.items())
        for title, chart in charts.items()
    ]
    return Picture(
        name,
        f"CMMR (cmmr-1) at {plural(len(charts), 'radius', 'radii')}, {panel.title}",
        lambda palette: radar.draw(palette, charts),
        f"CMMR as radar charts, an axis a method. {'; '.join(told)}.",
        "An axis is a method, from 0 in the middle to the ring's number; full line: score, "
        "broken line: accuracy under attack. The area of such a polygon depends on the order of "
        "the axes and means nothing; the table below has the numbers.",
    )


def score_table(scores: Scores, panel: Panel, radii: Sequence[float], name: str) -> Table:
    """Return the scores at some radii, below each the accuracy under attack.

    Arguments:
        scores: The scores.
        panel: Their panel.
        radii: The radii that are wanted; those that were measured are shown.
        name: The name of the table's files.
    """
    shown = _near(scores, radii)
    order = list(dict.fromkeys([*panel.entries, *scores]))
    rows = []
    for entry in order:
        mine = scores.get(entry, {})
        rows.append((Cell(entry), *(_item(mine.get(eps), scores, eps) for eps in shown)))
    every = sorted({eps for by_eps in scores.values() for eps in by_eps})
    head: tuple[object, ...] = ("entry", "eps", *PARTS)
    records = [head] + [
        (entry, eps, *(scores[entry][eps].get(key) for key in PARTS))
        for entry in order
        for eps in every
        if eps in scores.get(entry, {})
    ]
    lost = [eps for eps in radii if eps not in shown and not _measured(scores, eps)]
    notes = ["The score, below it the accuracy under attack; bold is the highest of a column."]
    if lost:
        notes.append(f"Not measured: eps {wording.join([f'{eps:g}' for eps in lost])}.")
    columns = (Column("entry", False), *(Column(f"eps {eps:g}") for eps in shown))
    title = f"CMMR (cmmr-1), {panel.title}"
    return Table(name, title, columns, tuple(rows), tuple(notes), tuple(records))


def _item(parts: Mapping[str, float] | None, scores: Scores, eps: float) -> Cell:
    if parts is None:
        return Cell()
    top = max(found["score"] for found in _at(scores, eps).values())
    small = f"acc. {parts['accuracy']:.3f}" if "accuracy" in parts else ""
    mark = "best" if parts["score"] == top and len(_at(scores, eps)) > 1 else ""
    return Cell(f"{parts['score']:.3f}", parts["score"], small, mark)


def _measured(scores: Scores, eps: float) -> list[float]:
    """Return the radius as it was measured, which may differ in the last digits."""
    known = {found for by_eps in scores.values() for found in by_eps}
    return [found for found in sorted(known) if abs(found - eps) < 1e-6]


def _near(scores: Scores, radii: Sequence[float]) -> list[float]:
    return [found for eps in radii for found in _measured(scores, eps)[:1]]


def _at(scores: Scores, eps: float) -> dict[str, dict[str, float]]:
    return {entry: by_eps[eps] for entry, by_eps in scores.items() if eps in by_eps}


def _said(scores: Scores, radii: Sequence[float]) -> str:
    shown = _near(scores, radii)
    leaders: dict[str, list[float]] = {}
    places = []
    for eps in shown:
        ranked = sorted(_at(scores, eps).items(), key=lambda pair: -pair[1]["score"])
        leaders.setdefault(ranked[0][0], []).append(eps)
        order = [entry for entry, _ in ranked]
        if "a3gt" in order:
            places.append(f"{order.index('a3gt') + 1} of {len(order)} at {eps:g}")
    if not leaders:
        return "None of the radii of the table has been measured."
    told = [
        f"{entry_name(entry)} at eps {wording.join([f'{eps:g}' for eps in found])}"
        for entry, found in leaders.items()
    ]
    text = f"The highest score is that of {'; '.join(told)}."
    if places:
        text += f" A3GT comes in place {wording.join(places)}."
    agree = [eps for eps in shown if _same_order(_at(scores, eps))]
    radii_are = plural(len(shown), "radius", "radii")
    text += f" At {words(len(agree))} of {radii_are} the score ranks as accuracy alone does."
    return capital(text)


def _same_order(found: Mapping[str, Mapping[str, float]]) -> bool:
    def order(key: str) -> list[str]:
        return sorted(found, key=lambda entry: (-found[entry].get(key, 0.0), entry))

    return order("score") == order("accuracy")


def _seeded(panel: Panel) -> str:
    count = len(panel.seeds)
    return f"A point is {'a mean over the seeds' if count > 1 else 'of one seed'}."
