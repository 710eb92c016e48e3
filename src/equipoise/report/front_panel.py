"""The panel of a front: its picture, a slider over what was measured, and images that follow it.

Without a script the panel is the picture and a table; the script adds the slider, which shows the
accuracies of one model at a time, a ring around its point, and what becomes of a few images.
"""

__all__ = ["Panel", "Shown", "panel"]

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from safetensors import SafetensorError, safe_open

from equipoise.fronts.points import Point
from equipoise.fronts.record import Record
from equipoise.parsing import reason
from equipoise.report import wording
from equipoise.report.front_picture import HALO, picture
from equipoise.report.gallery import LARGE, image_uri
from equipoise.report.pictures import inline
from equipoise.report.runs_reader import Run


@dataclass(frozen=True)
class Shown:
    """One image of the gallery: as it is, and what each model of the front makes of it."""

    index: int
    truth: str
    clean: str


@dataclass(frozen=True)
class Panel:
    """A front as a page shows it.

    Arguments:
        id: The id of the panel on its page.
        run: The run it is of.
        record: The front.
        svg: Its picture.
        caption: What is to be known of the picture.
        images: The images that follow the slider.
        states: For each point what the page shows when the slider is there.
        size: Width and height of an image.
        pixelated: Whether images are small.
        note: Why there are no images, if there are none.
    """

    id: str
    run: Run
    record: Record
    svg: Markup
    caption: str
    images: tuple[Shown, ...]
    states: tuple[dict[str, Any], ...]
    size: tuple[int, int]
    pixelated: bool
    note: str

    @property
    def first(self) -> int:
        """The place of the point that is shown at first: a marked one, or that in the middle."""
        marked = [mark.gamma for mark in self.record.marks]
        gammas = [point.gamma for point in self.record.points]
        return next((gammas.index(g) for g in marked if g in gammas), len(gammas) // 2)


def panel(run: Run, identity: str) -> Panel | None:
    """Return the panel of a run's front; None where none was measured.

    Arguments:
        run: The run.
        identity: The id of the panel on its page.

    Raises:
        UserError: If ``front.json`` is damaged.
    """
    record = Record.read(run.path)
    if record is None or not record.points:
        return None
    drawn = picture(record, halos=True, name=identity)
    images: tuple[Shown, ...] = ()
    after: list[list[dict[str, Any]]] = [[] for _ in record.points]
    size, note = (1, 1), ""
    try:
        images, after, size = _images(run.path, record)
    except (OSError, SafetensorError, KeyError, ValueError, IndexError) as error:
        note = f"The images of the front could not be read ({reason(error)}); measure it again."
    states = (
        _state(place, *pair) for place, pair in enumerate(zip(record.points, after, strict=True))
    )
    return Panel(
        id=identity,
        run=run,
        record=record,
        svg=inline(drawn),
        caption=drawn.caption,
        images=images,
        states=tuple(states),
        size=size,
        pixelated=max(size) <= LARGE,
        note=note,
    )


def _state(place: int, point: Point, images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the page shows of a point, as plain values."""
    clean, robust = (
        (wording.percent(value), wording.interval(bounds))
        for value, bounds in (
            (point.clean_accuracy, point.clean_interval),
            (point.robust_accuracy, point.robust_interval),
        )
    )
    return {
        "gamma": f"{point.gamma:g}",
        "clean": clean[0],
        "cleanInterval": clean[1],
        "robust": robust[0],
        "robustInterval": robust[1],
        "spoken": f"gamma {point.gamma:g}: clean {clean[0]}, robust {robust[0]}",
        "halo": f"{HALO}-{place}",
        "images": images,
    }


def _images(
    folder: Path, record: Record
) -> tuple[tuple[Shown, ...], list[list[dict[str, Any]]], tuple[int, int]]:
    """Return the images of the gallery, and by point what becomes of each."""
    with safe_open(str(folder / record.gallery), framework="np") as file:
        rows = [int(row) for row in file.get_tensor("rows")]
        x, y = file.get_tensor("x"), [int(label) for label in file.get_tensor("y")]

    def name(label: int) -> str:
        known = 0 <= label < len(record.classes)
        return record.classes[label] if known else f"class {label}"

    shown = tuple(
        Shown(row, name(label), image_uri(image))
        for row, label, image in zip(rows, y, x, strict=True)
    )
    after = []
    for point in record.points:
        with safe_open(str(folder / point.file), framework="np") as file:
            x_adv = file.get_slice("x_adv")
            read = {key: file.get_tensor(key) for key in ("prediction", "adversarial_prediction")}
            after.append(
                [
                    {
                        "attacked": image_uri(np.asarray(x_adv[row : row + 1])[0]),
                        "before": name(int(read["prediction"][row])),
                        "beforeWrong": int(read["prediction"][row]) != label,
                        "after": name(int(read["adversarial_prediction"][row])),
                        "afterWrong": int(read["adversarial_prediction"][row]) != label,
                    }
                    for row, label in zip(rows, y, strict=True)
                ]
            )
    _, _, height, width = x.shape
    return shown, after, (width, height)
