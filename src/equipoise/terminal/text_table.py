"""Results in a few lines: for an interpreter as text, for a notebook as HTML."""

__all__ = ["TextTable", "accuracy"]

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from equipoise.measures.statistics import interval


@dataclass(frozen=True)
class TextTable:
    """A small table with a title above and notes below.

    Arguments:
        title: One line.
        header: The names of the columns; empty: none is shown.
        rows: The cells, as many in each row.
        notes: Lines below it.
    """

    title: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Return it as lines of text."""
        rows = [*([self.header] if self.header and self.rows else []), *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        cells = (
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in rows
        )
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in cells), *self.notes])

    def html(self) -> str:
        """Return it as HTML, with everything in it escaped."""
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
        count: How many examples count.
        n: Of how many, at least 1.
    """
    low, high = interval(count, n)
    return f"{count / n:.2%}", f"{low:.1%} .. {high:.1%}", f"{count} of {n}"
