"""Content of a report, independent of its format: paragraphs, tables, pictures and figures."""

__all__ = ["Block", "Cell", "Column", "Figure", "Key", "Picture", "Table", "file_name"]

import re
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from equipoise.report.palette import Palette, Style
from equipoise.report.wording import MISSING


@dataclass(frozen=True)
class Column:
    """The head of a column, and whether it holds numbers."""

    head: str
    number: bool = True


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Arguments:
        text: What is printed.
        value: The number that is printed, to sort by.
        small: What is printed below it: a range, an interval.
        mark: ``best`` or ``close`` (to the best), or nothing.
    """

    text: str = MISSING
    value: float | None = None
    small: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Arguments:
        name: The name of its files, without their ends.
        title: Its title.
        columns: Its columns.
        rows: Its rows, a cell a column; the first names the row.
        notes: What is to be known of it.
        records: Its numbers for programs, the head first.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    records: tuple[tuple[object, ...], ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture.

    Arguments:
        name: The name of its files, without their ends, and its id on a page.
        title: Its title.
        draw: Draws it with the colours of a palette.
        spoken: What it shows in words, for readers who cannot see it.
        caption: What the reader must know to read it.
    """

    name: str
    title: str
    draw: Callable[[Palette], Canvas]
    spoken: str
    caption: str = ""


@dataclass(frozen=True)
class Key:
    """An entry of a legend: a line (with its style) or a sign (``start``, ``handover``, ...)."""

    label: str
    style: Style | None = None
    sign: str = "line"


@dataclass(frozen=True)
class Figure:
    """Pictures that belong together, below one legend."""

    id: str
    caption: str
    keys: tuple[Key, ...]
    panels: tuple[Picture, ...]


Block = str | Table | Picture  # text is a paragraph


def file_name(*parts: str) -> str:
    """Return a name that is fit for a file: ``table3-mnist-8-255`` of what people write."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(filter(None, parts))).strip("-.") or "unnamed"
