"""The picture of a front as files: SVG for the page of a paper, PNG for everything else."""

__all__ = ["write"]

from pathlib import Path

from equipoise.fronts.record import Record
from equipoise.report.front_picture import picture
from equipoise.report.pictures import png_file, svg_file
from equipoise.report.writing import write as write_file


def write(record: Record, folder: Path) -> tuple[Path, Path]:
    """Draw a front, clean against robust accuracy, as ``front.svg`` and ``front.png``.

    Arguments:
        record: The front.
        folder: Where the files go.

    Returns:
        The files.
    """
    drawn = picture(record)
    svg, png = folder / "front.svg", folder / "front.png"
    write_file(svg, svg_file(drawn))
    write_file(png, png_file(drawn))
    return svg, png
