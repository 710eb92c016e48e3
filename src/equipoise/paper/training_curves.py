"""Figure 2: clean against AutoAttack accuracy along training, and along the final gamma."""

__all__ = ["Line", "blocks", "equal_robustness", "joined", "lines"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equipoise.measures.statistics import hypervolume
from equipoise.paper.findings import CLEAN, ENSEMBLE, Findings, Panel, Row
from equipoise.paper.measures import average, by_entry, half_width
from equipoise.paper.phrases import area_item, capital, entry_name, figure, margin
from equipoise.report import pictures, wording
from equipoise.report.content import Block, Cell, Column, Picture, Table, file_name
from equipoise.report.palette import Palette, style_of

Kind = str  # "training" or "gamma"


@dataclass(frozen=True)
class Line:
    """An entry along something.

    Arguments:
        entry: The entry.
        along: Where its points stand: rounds, or values of gamma.
        seeds: By seed, the points (clean, robust), one for each of those.
        n: The images of a point.
    """

    entry: str
    along: tuple[float, ...]
    seeds: Mapping[int, tuple[tuple[float, float], ...]]
    n: int

    @property
    def means(self) -> list[tuple[float, float]]:
        """Return the points, each a mean over the seeds."""
        each = zip(*self.seeds.values(), strict=True)
        return [(average([p[0] for p in ps]), average([p[1] for p in ps])) for ps in each]

    def areas(self, classes: int) -> list[float]:
        """Return the area that the points of each seed dominate, above chance."""
        return [hypervolume(points, (1 / classes, 0.0)) for points in self.seeds.values()]


def lines(findings: Findings, panel: Panel, kind: Kind) -> list[Line]:
    """Return the lines of a panel, of the seeds that have most of their points.

    Arguments:
        findings: The findings.
        panel: The panel.
        kind: Along ``training``: snapshots, and the last round's model; along ``gamma``.
    """
    made = []
    for entry, rows in by_entry(findings.of(panel, weights=None)).items():
        placed: dict[int, dict[float, Row]] = {}
        for row in rows:
            where = _where(row, kind)
            if where is not None and CLEAN in row.correct and ENSEMBLE in row.correct:
                placed.setdefault(row.seed, {}).setdefault(where, row)
        if placed and len((found := joined(entry, placed)).along) > 1:
            made.append(found)
    return made


def joined(name: str, placed: Mapping[int, Mapping[float, Row]]) -> Line:
    """Return the line of some rows, of the seeds that have most of its points.

    Arguments:
        name: What it is called.
        placed: By seed, the row at each place.
    """
    most = max(map(len, placed.values()))
    placed = {seed: points for seed, points in placed.items() if len(points) == most}
    shared = sorted(set.intersection(*(set(points) for points in placed.values())))
    seeds = {seed: tuple(_point(rows[where]) for where in shared) for seed, rows in placed.items()}
    n = min(row.n for rows in placed.values() for row in rows.values())
    return Line(name, tuple(shared), seeds, n)


def _where(row: Row, kind: Kind) -> float | None:
    if kind == "gamma":
        return row.gamma
    if row.round is not None:
        return float(row.round)
    last = row.weights == "model" and row.settings.get("keep") == "last"
    return float(row.rounds) if last and row.rounds else None


def _point(row: Row) -> tuple[float, float]:
    return row.correct[CLEAN] / row.n, row.correct[ENSEMBLE] / row.n


def equal_robustness(first: Line, second: Line) -> list[tuple[float, float]]:
    """Return how clean accuracy differs at the highest robust accuracy that both lines reach.

    There the clean accuracy of a line is the highest among its points that are robust enough.

    Returns:
        For each seed that both have that robust accuracy and the difference, first less second.
    """
    found = []
    for seed in sorted(set(first.seeds) & set(second.seeds)):
        a, b = first.seeds[seed], second.seeds[seed]
        level = min(max(robust for _, robust in line) for line in (a, b))
        best = [max(clean for clean, robust in line if robust >= level) for line in (a, b)]
        found.append((level, best[0] - best[1]))
    return found


def blocks(findings: Findings) -> list[Block]:
    """Return the picture, the areas and what they say, panel by panel."""
    made: list[Block] = []
    for panel in findings.panels:
        several = len(findings.panels) > 1
        name = file_name(findings.experiment, panel.name if several else "")
        found = {kind: lines(findings, panel, kind) for kind in ("training", "gamma")}
        if not any(found.values()):
            made.append(f"{panel.title}: no line has two points yet.")
            continue
        made.append(_picture(found, panel, name))
        made.append(_areas(found, panel, f"{name}-area"))
        made.append(_points(found, panel, f"{name}-points"))
        if text := _said(found):
            made.append(text)
    return made


def _picture(found: Mapping[Kind, list[Line]], panel: Panel, name: str) -> Picture:
    shown = {kind: some for kind, some in found.items() if some}
    told = [f"{line.entry} {_ends(line, kind)}" for kind, some in shown.items() for line in some]
    caption = "A point is the global model after a round, beside it the round"
    if "gamma" in shown:
        caption += (
            "; at the right, the learners of the end mixed anew, beside a point gamma, the robust "
            "learner's weight"
        )
    many = any(len(line.seeds) > 1 for some in shown.values() for line in some)
    caption += ". Points are means over the seeds." if many else ". One seed a line."
    return Picture(
        name,
        f"Clean against AutoAttack accuracy, {panel.title}",
        lambda palette: _draw(palette, shown),
        f"Clean against AutoAttack accuracy. {'; '.join(told)}.",
        caption,
    )


def _ends(line: Line, kind: Kind) -> str:
    (c0, r0), (c1, r1) = line.means[0], line.means[-1]
    unit = "round" if kind == "training" else "gamma"
    return (
        f"from {unit} {line.along[0]:g} ({wording.percent(c0)} clean, {wording.percent(r0)} "
        f"robust) to {line.along[-1]:g} ({wording.percent(c1)} clean, {wording.percent(r1)} "
        "robust)"
    )


_TITLES = {"training": "along training (rounds)", "gamma": "along gamma, at the end"}


def _draw(palette: Palette, shown: Mapping[Kind, list[Line]]) -> Canvas:
    width = 440.0
    canvas = pictures.blank(palette, width * len(shown) + 140, 350)
    looks = {}
    for i, (kind, some) in enumerate(shown.items()):
        place = (width * i + 56, 46, width - 76, 276)
        axes = pictures.axes_at(canvas, palette, place, grid="both")
        for order, line in enumerate(some):
            looks[line.entry] = style_of(line.entry, order)
            robust, clean = [r for _, r in line.means], [c for c, _ in line.means]
            pictures.line(axes, palette, robust, clean, looks[line.entry])
        pictures.plane(axes)
        _numbers(axes, palette, some)
        axes.set_title(_TITLES[kind], color=palette.ink, fontsize=10, loc="left")
        axes.set_xlabel("accuracy under AutoAttack", color=palette.muted, fontsize=10)
        axes.set_ylabel("clean accuracy", color=palette.muted, fontsize=10)
    pictures.legend(canvas, palette, looks, (width * len(shown) - 4, 322))
    return canvas


def _numbers(axes: Axes, palette: Palette, some: Sequence[Line]) -> None:
    """Write the round or gamma beside points; of many, beside first, middle and last."""
    names, points, colours, busy = [], [], [], []
    for order, line in enumerate(some):
        last = len(line.along) - 1
        colour = style_of(line.entry, order).of(palette)
        busy += pictures.along((r, c) for c, r in line.means)
        for i in range(last + 1) if last < 6 else sorted({0, last // 2, last}):
            clean, robust = line.means[i]
            names.append(f"{line.along[i]:g}")
            points.append((robust, clean))
            colours.append(colour)
    pictures.put_labels(axes, names, points, colours, busy)


def _areas(found: Mapping[Kind, list[Line]], panel: Panel, name: str) -> Table:
    rows = []
    records: list[tuple[object, ...]] = [
        ("entry", "along", "points", "seeds", "area", "lowest", "highest")
    ]
    for kind, some in found.items():
        for line in some:
            values = line.areas(panel.classes)
            mean = average(values)
            rows.append(
                (
                    Cell(line.entry),
                    Cell(kind),
                    Cell(str(len(line.along)), len(line.along)),
                    area_item(values),
                )
            )
            seeds = " ".join(map(str, line.seeds))
            ends = (mean, min(values), max(values))
            records.append((line.entry, kind, len(line.along), seeds, *ends))
    columns = (Column("entry", False), Column("along", False), Column("points"), Column("area"))
    note = (
        f"Area that the points of a line dominate, above ({1 / panel.classes:.3g}, 0) in (clean, "
        "AutoAttack) accuracy, both as fractions. A line with more points can cover more."
    )
    title = f"Area below each line, {panel.title}"
    return Table(name, title, columns, tuple(rows), (note,), tuple(records))


def _points(found: Mapping[Kind, list[Line]], panel: Panel, name: str) -> Table:
    records: list[tuple[object, ...]] = [("entry", "along", "at", "seed", "clean", "autoattack")]
    rows = []
    for kind, some in found.items():
        for line in some:
            means = line.means
            best = max(range(len(means)), key=lambda i: means[i][1])
            at = f"{'round' if kind == 'training' else 'gamma'} {line.along[best]:g}"
            rows.append(
                (
                    Cell(line.entry),
                    Cell(kind),
                    Cell(at),
                    *(Cell(figure(v), v) for v in means[best]),
                    *(Cell(figure(v), v) for v in means[-1]),
                )
            )
            for seed, points in line.seeds.items():
                records += [
                    (line.entry, kind, where, seed, *point)
                    for where, point in zip(line.along, points, strict=True)
                ]
    heads = ("entry", "along", "most robust at", "clean", "AutoAttack", "last: clean")
    columns = tuple(Column(h, i > 2) for i, h in enumerate((*heads, "last: AutoAttack")))
    title = f"The most robust and the last point of each line, {panel.title}"
    note = "In percent. Every point of every seed is in the CSV file."
    return Table(name, title, columns, tuple(rows), (note,), tuple(records))


def _said(found: Mapping[Kind, list[Line]]) -> str:
    sentences = []
    training = {line.entry: line for line in found["training"]}
    hero = training.get("a3gt")
    for entry, line in training.items():
        if hero is None or entry == "a3gt":
            continue
        pairs = equal_robustness(hero, line)
        if pairs:
            sentences.append(_sentence(entry, pairs))
    text = ""
    if sentences and hero:
        text = (
            "At the highest AutoAttack accuracy that both reach along training, A3GT's clean "
            f"accuracy less the other's is {wording.join(sentences)}; the 95 % interval of one "
            f"such accuracy reaches {100 * _half(hero):.1f} points to either side."
        )
    for line in found["gamma"]:
        clean = [c for c, _ in line.means]
        robust = [r for _, r in line.means]
        low, high = line.along[0], line.along[-1]
        text += (
            f" With gamma from {low:g} to {high:g}, {entry_name(line.entry)} goes from "
            f"{wording.percent(clean[0])} clean and {wording.percent(robust[0])} under AutoAttack "
            f"to {wording.percent(clean[-1])} and {wording.percent(robust[-1])}."
        )
    return capital(text.strip())


def _sentence(entry: str, pairs: Sequence[tuple[float, float]]) -> str:
    level = average([level for level, _ in pairs])
    gaps = [gap for _, gap in pairs]
    spread = f" ({margin(min(gaps))}..{margin(max(gaps))})" if len(gaps) > 1 else ""
    return f"{margin(average(gaps))}{spread} to {entry_name(entry)} at {wording.percent(level)}"


def _half(line: Line) -> float:
    return half_width(max(clean for clean, _ in line.means), line.n)
