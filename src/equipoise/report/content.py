"""What a report is made of: sentences, tables and pictures, however they are then written."""

__all__ = ["Block", "Column", "Item", "Picture", "Table", "Text", "file_name"]

import re
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure as Canvas

from equipoise.report.palette import Palette
from equipoise.report.wording import MISSING


@dataclass(frozen=True)
class Text:
    """A paragraph: what a table or a picture shows, in words."""

    text: str


@dataclass(frozen=True)
class Column:
    """The head of a column, and whether it holds numbers."""

    head: str
    number: bool = True


@dataclass(frozen=True)
class Item:
    """What stands in a place of a table.

    Arguments:
        text: What is printed.
        value: The number that it stands for, to sort by.
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
        rows: Its rows, an item a column; the first names the row.
        notes: What is to be known of it.
        records: Its numbers for programs, the head first.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Item, ...], ...]
    notes: tuple[str, ...] = ()
    records: tuple[tuple[object, ...], ...] = ()


@dataclass(frozen=True)
class Picture:
    """A picture.

    Arguments:
        name: The name of its files, without their ends.
        title: Its title.
        draw: Draws it in some colours.
        spoken: What it shows, for those who cannot see it.
        caption: What is to be known of it.
    """

    name: str
    title: str
    draw: Callable[[Palette], Canvas]
    spoken: str
    caption: str = ""


Block = Text | Table | Picture


def file_name(*parts: str) -> str:
    """Return a name that is fit for a file: ``table3-mnist-8-255`` of what people write."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(filter(None, parts))).strip("-.") or "unnamed"
