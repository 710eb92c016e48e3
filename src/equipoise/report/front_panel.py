"""The panel of a front: its picture, a slider over the measured models, and images that follow it.

Without a script the panel is the picture and a table; the script adds the slider, which shows the
accuracies of one model at a time, a ring around its point, and its predictions for a few images.
"""

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from safetensors import SafetensorError, safe_open

from equipoise.fronts.record import FrontRecord, Point
from equipoise.parsing import reason
from equipoise.report.content import Block, Card, Cell, Column, Section, Shot, Table
from equipoise.report.front_picture import HALO, picture
from equipoise.report.gallery import image_uri
from equipoise.report.html import environment
from equipoise.report.runs_reader import RunData
from equipoise.report.wording import interval, percent


def panel(run: RunData, identity: str) -> Section | None:
    """Return the panel of a run's front; None where none was measured.

    Raises:
        UserError: If ``front.json`` is damaged.
    """
    record = FrontRecord.read(run.path)
    if record is None or not record.points:
        return None
    note = ""
    images: list[list[Card]] = [[] for _ in record.points]
    try:
        images = _cards(run.path, record)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        note = f"The images of the front could not be read ({reason(error)}); measure it again."
    states = [_state(i, *pair) for i, pair in enumerate(zip(record.points, images, strict=True))]
    shown = _first(record)
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


def _first(record: FrontRecord) -> int:
    """Return the place of the point that is shown at first: a marked one, or the middle one."""
    marked = (i for i, point in enumerate(record.points) if point.mark)
    return next(marked, len(record.points) // 2)


def _table(name: str, record: FrontRecord) -> Table:
    rows = (
        (
            Cell(f"{point.gamma:g}", point.gamma),
            _accuracy(point.robust_accuracy, point.robust_interval),
            _accuracy(point.clean_accuracy, point.clean_interval),
        )
        for point in record.points
    )
    columns = (Column("gamma"), Column("robust"), Column("clean"))
    return Table("front", f"Measured models of {name}", columns, tuple(rows))


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
