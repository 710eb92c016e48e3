"""The picture of a sweep: all trials as dots, and the front where nothing was chosen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from equipoise.measures.statistics import interval
from equipoise.report import pictures
from equipoise.report.content import Picture
from equipoise.report.palette import Palette, Style
from equipoise.report.wording import percent, threat_text
from equipoise.store.files import write

_ALL, _FRONT = Style("muted", (), "o", 1.0), Style(1, (), "D", 1.8)


def write_picture(content: Mapping[str, Any], folder: Path) -> Path:
    """Draw a sweep as ``front.svg`` and ``front.png`` in a folder, and return the SVG file.

    Arguments:
        content: The content of ``sweep.json``, with a complete trial.
        folder: The folder.
    """
    drawn = picture(content)
    write(folder / "front.svg", pictures.svg_file(drawn))
    write(folder / "front.png", pictures.png_file(drawn))
    return folder / "front.svg"


def picture(content: Mapping[str, Any]) -> Picture:
    """Return the picture of a sweep; the argument is that of :func:`write_picture`."""
    complete = [trial for trial in content["trials"] if trial["state"] == "complete"]
    front = [trial for trial in complete if trial["front"]]
    spoken = [
        f"trial {trial['number']}: {percent(_at(trial, 'reserve')[1])} clean, "
        f"{percent(_at(trial, 'reserve')[0])} robust"
        for trial in front
    ]
    threat = threat_text(content["norm"], content["eps"])
    caption = (
        f"Dots: all trials on the validation images, which the search used. Diamonds: the trials "
        f"of the front on the reserve, which chose nothing, with 95 % intervals for each; a line "
        f"leads from the dot of the same trial ({threat}; {content['attack']})."
    )
    return Picture(
        "front",
        f"Clean against robust accuracy of {len(complete)} trials of {content['method']}",
        lambda palette: _draw(palette, complete, front, content["attack"]),
        f"Clean against robust accuracy. {'; '.join(spoken)}.",
        caption,
    )


def _draw(
    palette: Palette,
    complete: Sequence[Mapping[str, Any]],
    front: Sequence[Mapping[str, Any]],
    attack: str,
) -> Canvas:
    canvas = pictures.blank(palette, 460, 350)
    axes = pictures.axes_at(canvas, palette, (52, 44, 396, 262), grid="both", size=11)
    x, y = zip(*(_at(trial, "validation") for trial in complete), strict=True)
    pictures.point(axes, palette, x, y, _ALL, size=4.5)
    busy = list(zip(x, y, strict=True))
    places, names = [], []
    for trial in front:
        at, before = _at(trial, "reserve"), _at(trial, "validation")
        busy += _cross(axes, _FRONT.of(palette), trial["reserve"], at)
        axes.plot(*zip(before, at, strict=True), color=palette.muted, linewidth=0.8, zorder=2)
        pictures.point(axes, palette, at[:1], at[1:], _FRONT, size=6.5)
        places.append(at)
        names.append(f"{trial['number']}")
    pictures.plane(axes)
    pictures.put_labels(axes, names, places, [palette.ink] * len(names), busy)
    axes.set_xlabel(f"robust accuracy ({attack})", color=palette.muted, fontsize=11)
    axes.set_ylabel("clean accuracy", color=palette.muted, fontsize=11)
    words = (
        "dots: all trials, on the images that the search used",
        "diamonds: the front, on reserved images; 95 % intervals",
    )
    for line, text in enumerate(words):
        at = 52 / 460, 1 - (14 + 13 * line) / 350
        canvas.text(*at, text, color=palette.muted, fontsize=9.5)
    return canvas


def _at(trial: Mapping[str, Any], images: str) -> tuple[float, float]:
    counts = trial[images]
    return counts["robust"] / counts["n"], counts["clean"] / counts["n"]


def _cross(
    axes: Axes, colour: str, counts: Mapping[str, int], at: tuple[float, float]
) -> list[tuple[float, float]]:
    bounds = [interval(counts[key], counts["n"]) for key in ("robust", "clean")]
    return pictures.cross(axes, colour, at, *bounds)
