"""Clean against robust accuracy: the points of all entries, their front and its area."""

__all__ = ["FAMILIES", "Area", "areas", "blocks"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator

from equipoise.measures.statistics import front, hypervolume
from equipoise.paper.findings import CLEAN, ENSEMBLE, Panel, Row
from equipoise.paper.measures import Accuracies, average, cell
from equipoise.paper.phrases import area_item, entry_name, names
from equipoise.report import pictures, wording
from equipoise.report.content import Block, Cell, Column, Picture, Table
from equipoise.report.palette import Palette, style_of
from equipoise.report.pictures import STEPS

# Which entries stand for an idea: patterns of their names.
FAMILIES = {
    "mixed AT": ("standard", "mix-at-*", "pgd-at-averaged"),
    "A3GT": ("a3gt",),
    "Generalist": ("generalist",),
    "all": ("*",),
}
Entries = Mapping[str, Sequence[Row]]
Points = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Area:
    """The area that some entries dominate.

    Arguments:
        members: The entries.
        leading: Those on the front of their means.
        values: The area of each seed that all of them have.
    """

    members: tuple[str, ...]
    leading: tuple[str, ...]
    values: tuple[float, ...]


def areas(entries: Entries, classes: int) -> dict[str, Area]:
    """Return the areas of the families, above chance for clean and above 0 for robust accuracy.

    Arguments:
        entries: The rows of each entry.
        classes: How many classes there are: chance is one of them.
    """
    made = {}
    for family, patterns in FAMILIES.items():
        members = {
            name: rows
            for name, rows in entries.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns) and _point(rows)
        }
        if not members:
            continue
        shared = set.intersection(*(_seeds(rows) for rows in members.values()))
        values = tuple(
            hypervolume([_at(rows, seed) for rows in members.values()], (1 / classes, 0.0))
            for seed in sorted(shared)
        )
        means = {name: _mean(rows) for name, rows in members.items()}
        leading = [list(means)[i] for i in front(list(means.values()))]
        made[family] = Area(tuple(members), tuple(leading), values)
    return made


def blocks(panel: Panel, entries: Entries, name: str, title: str) -> list[Block]:
    """Return the picture, the areas and what they say; nothing without two points."""
    known = {entry: rows for entry, rows in entries.items() if _point(rows)}
    if len(known) < 2:
        return []
    points = {entry: _mean(rows) for entry, rows in known.items()}
    several = any(len(rows) > 1 for rows in known.values())
    picture = Picture(
        f"{name}-tradeoff",
        f"Clean against AutoAttack accuracy, {title}",
        lambda palette: _draw(palette, known, points),
        _spoken(points),
        f"A point is {'the mean over the seeds of ' if several else ''}an entry, whiskers are "
        "95 % intervals of one seed's images. Dotted: the front of all, beyond which no entry "
        "lies"
        + (
            "; at the left, on a scale of their own, entries less than half as robust as the most "
            "robust one."
            if _low(points)
            else "."
        ),
    )
    found = areas(known, panel.classes)
    return [picture, _table(found, panel, f"{name}-area", title), _said(points, found)]


def _draw(palette: Palette, entries: Entries, points: Points) -> Canvas:
    """Draw the points; those that are far less robust than most stand in a strip at the left."""
    low = _low(points)
    high = [entry for entry in points if entry not in low]
    canvas = pictures.blank(palette, 660, 400)
    strip = 120 if low else 0
    places = {(58, 46, strip - 14, 342): low, (58 + strip, 46, 590 - strip, 342): high}
    drawn = []
    for place, some in places.items():
        if not some:
            continue
        axes = pictures.axes_at(canvas, palette, place, grid="both")
        _points(axes, palette, entries, some)
        pictures.plane(axes)
        drawn.append((axes, some))
    _share(drawn[0][0], drawn[-1][0])
    for axes, some in drawn:
        _front(axes, palette, points)
        _labels(axes, palette, points, some)
    drawn[-1][0].set_xlabel("accuracy under AutoAttack", color=palette.muted, fontsize=10)
    drawn[0][0].set_ylabel("clean accuracy", color=palette.muted, fontsize=10)
    return canvas


def _low(points: Points) -> list[str]:
    most = max(robust for _, robust in points.values())
    return [entry for entry, (_, robust) in points.items() if 2 * robust < most]


def _points(axes: Axes, palette: Palette, entries: Entries, some: Sequence[str]) -> None:
    order = list(entries)
    for entry in some:
        look = style_of(entry, order.index(entry))
        clean, robust = _cells(entries[entry])
        at = robust.mean, clean.mean
        colour = look.of(palette)
        pictures.whiskers(axes, colour, at, clean.interval, up=True)
        pictures.whiskers(axes, colour, at, robust.interval, up=False)
        size = 11 if entry == "a3gt" else 8.5
        pictures.point(axes, palette, [at[0]], [at[1]], look, size=size)


def _share(strip: Axes, axes: Axes) -> None:
    """Give both parts of a picture the same scale of clean accuracy, written at the left."""
    if strip is axes:
        return
    ends = [*strip.get_ylim(), *axes.get_ylim()]
    for each in (strip, axes):
        each.set_ylim(min(ends), max(ends))
    axes.tick_params(axis="y", labelleft=False)
    left, right = strip.get_xlim()
    middle, half = (left + right) / 2, max(right - left, 0.08)
    strip.set_xlim(middle - half, middle + half)
    strip.xaxis.set_major_locator(MaxNLocator(2, steps=STEPS))
    strip.xaxis.set_major_formatter(
        FuncFormatter(lambda v, _: f"{100 * v:.3g} %" if v > -1e-9 else "")
    )


def _labels(axes: Axes, palette: Palette, points: Points, some: Sequence[str]) -> None:
    places = [(points[entry][1], points[entry][0]) for entry in some]
    pictures.put_labels(axes, some, places, [palette.ink] * len(some))


def _front(axes: Axes, palette: Palette, points: Points) -> None:
    values = list(points.values())
    steps = sorted((values[i][1], values[i][0]) for i in front(values))
    x, y = [-1.0], [steps[0][1]]
    for (robust, clean), following in zip(steps, [*steps[1:], (steps[-1][0], -1.0)], strict=True):
        x += [robust, robust]
        y += [clean, following[1]]
    ends = axes.get_xlim(), axes.get_ylim()
    axes.plot(x, y, color=palette.muted, linewidth=1, dashes=(1.5, 1.5), zorder=1)
    axes.set_xlim(*ends[0])
    axes.set_ylim(*ends[1])


def _table(found: Mapping[str, Area], panel: Panel, name: str, title: str) -> Table:
    rows, records = [], [_HEAD]
    for family, area in found.items():
        mean = average(area.values) if area.values else None
        rows.append(
            (
                Cell(family),
                Cell(str(len(area.members)), len(area.members)),
                Cell(", ".join(area.leading)),
                area_item(area.values),
            )
        )
        ends = (min(area.values), max(area.values)) if area.values else (None, None)
        records.append((family, " ".join(area.members), " ".join(area.leading), mean, *ends))
    columns = (Column("family", False), Column("entries"), Column("on its front", False))
    several = any(len(area.values) > 1 for area in found.values())
    span = "A mean over the seeds that all entries of a family have, in brackets its range. "
    note = (
        "Area of (clean, AutoAttack) accuracy, both as fractions, above the reference point "
        f"({1 / panel.classes:.3g}, 0): chance on clean images, none under attack. "
        f"{span if several else ''}A family of several trainings can cover more than a single "
        "training by their number alone."
    )
    heading = f"Area below the front, {title}"
    return Table(name, heading, (*columns, Column("area")), tuple(rows), (note,), tuple(records))


_HEAD: tuple[object, ...] = ("family", "entries", "front", "area", "area_lowest", "area_highest")


def _said(points: Points, found: Mapping[str, Area]) -> str:
    every = list(points)
    leading = [every[i] for i in front(list(points.values()))]
    verb = "lies" if len(leading) == 1 else "lie"
    text = f"Of the means, {names(leading)} {verb} on the front."
    if "a3gt" in points and "a3gt" not in leading:
        clean, robust = points["a3gt"]
        above = [
            n
            for n, (c, r) in points.items()
            if (c, r) != (clean, robust) and c >= clean and r >= robust
        ]
        text += f" A3GT is below it: by the means, {names(above)} "
        text += f"{'is' if len(above) == 1 else 'are'} at least as good in both."
    told = [
        f"{entry_name(family)} {average(area.values):.3f}"
        for family, area in found.items()
        if area.values and family != "all"
    ]
    return f"{text} Areas: {wording.join(told)}." if len(told) > 1 else text


def _spoken(points: Points) -> str:
    told = [
        f"{name} {wording.percent(clean)} clean, {wording.percent(robust)} under AutoAttack"
        for name, (clean, robust) in points.items()
    ]
    return f"Clean against AutoAttack accuracy. {'; '.join(told)}."


def _both(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if CLEAN in row.correct and ENSEMBLE in row.correct]


def _point(rows: Sequence[Row]) -> bool:
    return bool(_both(rows))


def _seeds(rows: Sequence[Row]) -> set[int]:
    return {row.seed for row in _both(rows)}


def _cells(rows: Sequence[Row]) -> tuple[Accuracies, Accuracies]:
    clean, robust = (cell(_both(rows), attack) for attack in (CLEAN, ENSEMBLE))
    assert clean is not None, "only entries with both are asked for"
    assert robust is not None, "only entries with both are asked for"
    return clean, robust


def _mean(rows: Sequence[Row]) -> tuple[float, float]:
    clean, robust = _cells(rows)
    return clean.mean, robust.mean


def _at(rows: Sequence[Row], seed: int) -> tuple[float, float]:
    row = next(row for row in _both(rows) if row.seed == seed)
    return row.correct[CLEAN] / row.n, row.correct[ENSEMBLE] / row.n
