"""Content of a report, independent of its format: paragraphs, tables, pictures and figures."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """A cell of a table: its text, the number to sort by, and a smaller text below.

    ``mark`` is ``best``, ``close`` (to the best), ``differs`` (from other columns), or empty.
    """

    text: str = MISSING
    value: float | None = None
    small: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table.

    Arguments:
        name: The name of its files, without the endings.
        title: Its title.
        columns: Its columns.
        rows: Its rows, a cell a column; the first cell is the name of the row.
        notes: How to read it.
        records: Its numbers for programs, the names of the columns and the rows.
        foot: A last row of totals, which is never sorted.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    records: tuple[Sequence[str], Sequence[Any]] = ((), ())
    foot: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture.

    Arguments:
        name: The name of its files, without the endings, and its id on a page.
        title: Its title.
        draw: Draws it with the colours of a palette.
        spoken: Its content in words, for readers who cannot see it.
        caption: How to read it.
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


@dataclass(frozen=True)
class Shot:
    """An image as a data URI, its text for readers who cannot see it, and its label.

    ``read`` is the predicted class, if it is shown, and ``wrong`` whether it is a wrong one.
    """

    uri: str
    alt: str
    label: str
    read: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Card:
    """The images of one example: its place in the evaluation, its true class, a note.

    ``size`` is the width and height of the images in pixels.
    """

    index: int
    truth: str
    shots: tuple[Shot, ...]
    size: tuple[int, int]
    note: str = ""

    @property
    def pixelated(self) -> bool:
        """Whether the images are so small that they are enlarged."""
        return max(self.size) <= LARGE


@dataclass(frozen=True)
class Section:
    """A part of a page, with parts of its own among its blocks.

    Arguments:
        title: Its title.
        blocks: Its content: a string is a paragraph, a mapping a list of facts, a tuple of cards
            a gallery; a string that is marked safe is HTML.
        id: Its id on the page, where links lead to it.
        small: A smaller text after the title.
        tag: A word that marks it, such as ``interrupted``.
        folded: Whether it opens with a click.
    """

    title: str
    blocks: Sequence["Block"]
    id: str = ""
    small: str = ""
    tag: str = ""
    folded: bool = False


Facts = Mapping[str, str]
Block = str | Facts | Table | Picture | Figure | Section | tuple[Card, ...]
LARGE = 96  # pixels; larger images are not enlarged


def file_name(*parts: str) -> str:
    """Return the parts as a name for a file, like ``table3-mnist-8-255``."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(filter(None, parts))).strip("-.") or "unnamed"
