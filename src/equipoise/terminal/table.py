"""Tables: on a terminal, as text, as HTML and as Markdown. No torch."""

import html
import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from equipoise.measures.statistics import interval, outwards

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 140  # columns of the output if it is no terminal


def output() -> "Console":
    """Return a console on the standard output."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    return Console(highlight=False, markup=False, width=width)


def rich_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]] = (),
    *,
    numbers: Collection[str] = (),
    caption: str = "",
) -> "Table":
    """Return a table for a terminal.

    Arguments:
        title: The line above it.
        columns: The names of the columns.
        rows: The cells of each row; markup in them is shown literally.
        numbers: The columns that are aligned to the right.
        caption: The text below it.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        caption=Text(caption) if caption else None,
    )
    for i, name in enumerate(columns):
        table.add_column(
            Text(name), justify="right" if name in numbers else "left", no_wrap=i == 0
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown_rows(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    escaped: bool = False,
) -> str:
    """Return a table as Markdown, with the arguments of :func:`rich_table`.

    ``escaped``: the cells are Markdown already, and are not escaped.
    """
    rule = ["---:" if name in numbers else "---" for name in columns]
    cells = rows if escaped else (map(escape_markdown, row) for row in rows)
    lines = [map(escape_markdown, columns), rule, *cells]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def escape_markdown(text: str) -> str:
    """Return one line of Markdown that shows the text literally."""
    plain = html.escape(" ".join(text.replace("\u00a0", " ").split()), quote=False)
    return re.sub(r"([\\|*_\[\]`])", r"\\\1", plain)


@dataclass(frozen=True)
class TextTable:
    """A small table for an interpreter or a notebook.

    Arguments:
        title: The line above it.
        header: The names of the columns; empty: no header is shown.
        rows: The cells of each row.
        notes: Lines below it.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return it as text."""
        rows = [*([self.header] if self.header and self.rows else []), *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in cells), *self.notes])

    def show(self) -> None:
        """Print it on the standard output."""
        terminal = output()
        table = rich_table(self.title, self.header, self.rows, numbers=self.header[1:-1])
        terminal.print(table, *self.notes, sep="\n")

    def html(self) -> str:
        """Return it as HTML, with everything in it escaped."""
        escape = html.escape
        head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in self.rows
        )
        table = f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>" if self.rows else ""
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        return f"<div><strong>{escape(self.title)}</strong>{table}{notes}</div>"


def accuracy(count: int, n: int) -> tuple[str, str, str]:
    """Return an accuracy, its exact 95 % interval and its counts, as cells of a table.

    Arguments:
        count: The number of correct examples.
        n: The number of examples, at least 1.
    """
    low, high = outwards(interval(count, n))
    return f"{count / n:.2%}", f"{low:.1f}% .. {high:.1f}%", f"{count} of {n}"
