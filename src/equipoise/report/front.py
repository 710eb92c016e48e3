"""The front of a run: its picture, and a panel with a slider over the measured models.

Without a script the panel is the picture and a table; the script adds the slider, which shows the
accuracies of one model at a time, a ring around its point, and its predictions for a few images.
"""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from safetensors import SafetensorError, safe_open

from equipoise.fronts.record import FrontRecord, Point
from equipoise.measures.by_class import pairs
from equipoise.parsing import reason
from equipoise.report import pictures
from equipoise.report.content import Block, Card, Cell, Column, Picture, Section, Shot, Table
from equipoise.report.formats import environment
from equipoise.report.gallery import image_uri
from equipoise.report.palette import Palette, Style, style_of
from equipoise.report.runs_reader import RunData
from equipoise.report.triangles import section, triangles
from equipoise.report.wording import interval, join, percent, threat_text
from equipoise.store.files import write

HALO = "halo"  # the names of the rings that a page shows around a point: halo-0, halo-1, ...
_FRONT = Style(1, (), "o", 1.8)


def picture(record: FrontRecord, *, halos: bool = False, name: str = "front") -> Picture:
    """Return the picture of a front, with ``halos`` a ring around each point: ``halo-0``, ..."""
    if record.also is not None:
        return triangles(record, name)
    threat = threat_text(record.norm, record.eps)
    caption = (
        f"Every point of the line is one model, measured on {record.images} "
        f"({threat}; {record.attack}); whiskers are 95 % intervals for these images."
    )
    far = [other for other in record.others if other not in _near(record)]
    if far:
        others = [f"{_short(other.name)} ({_pair(other)})" for other in far]
        caption += f" Far less robust and not drawn: {join(others)}."
    return Picture(
        name,
        f"Clean against robust accuracy between {record.ends[0]} and {record.ends[1]}",
        lambda palette: _draw(palette, record, halos),
        _spoken(record),
        caption,
    )


def write_picture(record: FrontRecord, folder: Path) -> tuple[Path, Path]:
    """Draw a front as ``front.svg`` and ``front.png`` in a folder, and return the files."""
    drawn = picture(record)
    svg, png = folder / "front.svg", folder / "front.png"
    write(svg, pictures.svg_file(drawn))
    write(png, pictures.png_file(drawn))
    return svg, png


def _draw(palette: Palette, record: FrontRecord, halos: bool) -> Canvas:
    canvas = pictures.blank(palette, 420, 310)
    axes = pictures.axes_at(canvas, palette, (52, 44, 356, 252), grid="both", size=11)
    x = [point.robust_accuracy for point in record.points]
    y = [point.clean_accuracy for point in record.points]
    pictures.line(axes, palette, x, y, _FRONT)
    busy = pictures.along(zip(x, y, strict=True))
    for point in record.points:
        busy += _cross(axes, _FRONT.of(palette), point)
    places, names = _named(record)
    for point in record.points:
        if point.mark:
            _ring(axes, palette.ink, point, size=12, width=1.4)
    for i, other in enumerate(_near(record)):
        style = style_of(other.method, i)
        busy += _cross(axes, style.of(palette), other)
        at_other = [other.robust_accuracy], [other.clean_accuracy]
        pictures.point(axes, palette, *at_other, style, size=8.5)
    if halos:
        for i, point in enumerate(record.points):
            _ring(axes, palette.ink, point, size=17, width=2.4, name=f"{HALO}-{i}")
    pictures.plane(axes)
    pictures.put_labels(axes, names, places, [palette.ink] * len(names), busy)
    axes.set_xlabel(f"robust accuracy ({record.attack})", color=palette.muted, fontsize=11)
    axes.set_ylabel("clean accuracy", color=palette.muted, fontsize=11)
    return canvas


def _named(record: FrontRecord) -> tuple[list[tuple[float, float]], list[str]]:
    """Return the points that have a name: the ends, the marks, other runs."""
    by_gamma = {point.gamma: point for point in record.points}
    ends = zip((0.0, 1.0), record.ends, strict=True)
    named = [(by_gamma[gamma], _short(end)) for gamma, end in ends if gamma in by_gamma]
    named += [(point, f"gamma {point.gamma:g}") for point in record.points if point.mark]
    named += [(other, _short(other.name)) for other in _near(record)]
    return [(p.robust_accuracy, p.clean_accuracy) for p, _ in named], [name for _, name in named]


def _near(record: FrontRecord) -> list[Point]:
    """Return the other runs that are drawn: not those that are far less robust than the front."""
    least = min((point.robust_accuracy for point in record.points), default=0.0)
    return [other for other in record.others if 2 * other.robust_accuracy >= least]


def _pair(point: Point) -> str:
    clean, robust = map(percent, (point.clean_accuracy, point.robust_accuracy))
    return f"{clean} clean, {robust} robust"


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2] or name


def _cross(axes: Axes, colour: str, point: Point) -> list[tuple[float, float]]:
    at = point.robust_accuracy, point.clean_accuracy
    return pictures.cross(axes, colour, at, point.robust_interval, point.clean_interval)


def _ring(
    axes: Axes, colour: str, point: Point, size: float, width: float, name: str = ""
) -> None:
    look: Any = {"linestyle": "none", "marker": "o", "markerfacecolor": "none", "clip_on": False}
    look |= {"markeredgecolor": colour, "markersize": size, "markeredgewidth": width, "zorder": 6}
    (ring,) = axes.plot([point.robust_accuracy], [point.clean_accuracy], **look)
    if name:
        ring.set_gid(name)


def _spoken(record: FrontRecord) -> str:
    points = [f"gamma {point.gamma:g}: {_pair(point)}" for point in record.points]
    others = [f"{_short(other.name)}: {_pair(other)}" for other in record.others]
    return f"Clean against robust accuracy. {'; '.join([*points, *others])}."


# The panel


def panel(run: RunData, identity: str) -> Section | None:
    """Return the panel of a run's front; None where none was measured.

    Raises:
        UserError: If ``front.json`` is damaged.
    """
    record = FrontRecord.read(run.path)
    if record is None or not record.points:
        return None
    if record.also is not None:
        return section(run.name, record, identity)
    note = ""
    images: list[list[Card]] = [[] for _ in record.points]
    try:
        images = _cards(run.path, record)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        note = f"The images of the front could not be read ({reason(error)}); measure it again."
    states = [_state(i, *pair) for i, pair in enumerate(zip(record.points, images, strict=True))]
    marked = (i for i, point in enumerate(record.points) if point.mark)
    shown = next(marked, len(record.points) // 2)  # at first
    html = environment().get_template("front.html.j2").render(
        id=identity,
        record=record,
        picture=picture(record, halos=True, name=identity),
        states=states,
        first=shown,
        cards=tuple(images[shown]),
        note=note,
    )  # fmt: skip
    models = Section(
        f"All {len(record.points)} measured models", [_table(run.name, record)], folded=True
    )
    small = f"front between {record.ends[0]} and {record.ends[1]}"
    lead = (
        f"{record.words} Each model whose weights lie on the line between two ends is a trade-off "
        "that can be chosen after the training: `equipoise pick`. Measured on held-out training "
        "images; no test images were used."
    )
    blocks: list[Block] = [Markup(html), lead, models]  # noqa: S704 - the template escapes what it is given
    return Section(run.name, blocks, small=small)


def _table(name: str, record: FrontRecord) -> Table:
    unequal = any(point.by_class for point in record.points)
    more = ("balanced, clean / robust", "worst class, clean / robust") if unequal else ()
    rows = (
        (
            Cell(f"{point.gamma:g}", point.gamma),
            _accuracy(point.robust_accuracy, point.robust_interval),
            _accuracy(point.clean_accuracy, point.clean_interval),
            *(map(Cell, pairs(point.by_class)) if more else ()),
        )
        for point in record.points
    )
    columns = map(Column, ("gamma", "robust", "clean", *more))
    return Table("front", f"Measured models of {name}", tuple(columns), tuple(rows))


def _accuracy(value: float, bounds: tuple[float, float]) -> Cell:
    return Cell(percent(value), value, interval(bounds))


def _state(place: int, point: Point, cards: list[Card]) -> dict[str, Any]:
    """Return what the page shows of a point, as plain values."""
    clean, robust = percent(point.clean_accuracy), percent(point.robust_accuracy)
    return {
        "gamma": f"{point.gamma:g}",
        "clean": clean,
        "cleanInterval": interval(point.clean_interval),
        "robust": robust,
        "robustInterval": interval(point.robust_interval),
        "spoken": f"gamma {point.gamma:g}: clean {clean}, robust {robust}",
        "halo": f"{HALO}-{place}",
        "images": [
            [{"uri": s.uri, "read": s.read, "wrong": s.wrong} for s in card.shots]
            for card in cards
        ],
    }


def _cards(folder: Path, record: FrontRecord) -> list[list[Card]]:
    """Return by point the images of the gallery with what its model predicts for each."""
    with safe_open(str(folder / record.gallery), framework="np") as file:
        rows = [int(row) for row in file.get_tensor("rows")]
        x, y = file.get_tensor("x"), [int(label) for label in file.get_tensor("y")]
    size = (x.shape[3], x.shape[2])
    clean = [image_uri(image) for image in x]

    def name(label: int) -> str:
        named = 0 <= label < len(record.classes)
        return record.classes[label] if named else f"class {label}"

    def shot(uri: str, row: int, label: int, predicted: int, kind: str) -> Shot:
        wrong = predicted != label
        return Shot(uri, f"held-out image {row}, {kind}", kind, name(predicted), wrong)

    galleries = []
    for point in record.points:
        cards = []
        with safe_open(str(folder / point.file), framework="np") as file:
            x_adv = file.get_slice("x_adv")
            before = file.get_tensor("clean_prediction")
            after = file.get_tensor("adversarial_prediction")
            for row, label, uri in zip(rows, y, clean, strict=True):
                attacked = image_uri(np.asarray(x_adv[row : row + 1])[0])
                shots = (
                    shot(uri, row, label, int(before[row]), "clean"),
                    shot(attacked, row, label, int(after[row]), "adversarial"),
                )
                cards.append(Card(row, name(label), shots, size))
        galleries.append(cards)
    return galleries
