"""Tables from lines of cells and records of numbers; as CSV and LaTeX."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from equipoise.paper.measures import Accuracies, Rows, accuracies, average, best_marks
from equipoise.report import wording
from equipoise.report.content import Cell, Column, Table

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "–": "--",
        "−": r"$-$",
        "\u00a0": "~",
        "′": r"$'$",
        "∞": r"$\infty$",
    }
)
Line = dict[str, str | Cell]  # by column: text, or a cell with a number
AREA = "{:.4f}".format


def table(
    name: str,
    title: str,
    lines: Sequence[Line],
    head: str | Sequence[str],
    data: Sequence[Any],
    *notes: str,
) -> Table:
    """Return a table.

    Arguments:
        name: The name of its files, without the endings.
        title: Its title.
        lines: Its rows as they are printed.
        head: The names of its numbers for programs; a text has spaces between them.
        data: These numbers, a row each: accuracies as fractions; None where one is missing.
        notes: How to read it.
    """
    rows = [[c if isinstance(c, Cell) else Cell(c) for c in line.values()] for line in lines]
    columns = [Column(head, isinstance(cell, Cell)) for head, cell in (lines or [{}])[0].items()]
    names = head.split() if isinstance(head, str) else list(head)
    return Table(name, title, tuple(columns), tuple(map(tuple, rows)), notes, (names, data))


def csv_table(table: Table) -> str:
    """Return the numbers of a table as CSV; a missing number is empty."""
    head, data = table.records
    # As objects whole numbers stay whole where some are missing.
    frame = pd.DataFrame(data, columns=list(head), dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")


def latex_table(table: Table) -> str:
    """Return a table as LaTeX for the package booktabs."""
    layout = "".join("r" if column.number else "l" for column in table.columns)
    heads = [_latex(column.head) for column in table.columns]
    cells = [[_latex_cell(cell) for cell in row] for row in table.rows]
    comments = [f"{table.title}. Needs \\usepackage{{booktabs}}.", *table.notes]
    lines = "".join(f"% {comment}\n" for comment in comments)
    return lines + pd.DataFrame(cells, columns=heads).to_latex(index=False, column_format=layout)


def _latex_cell(cell: Cell) -> str:
    text = _latex(cell.text)
    if cell.mark:
        text = rf"\{'textbf' if cell.mark == 'best' else 'textit'}{{{text}}}"
    small = _latex(" ".join(cell.small.split("\n")))
    return rf"{text} {{\scriptsize {small}}}" if small else text


def _latex(text: str) -> str:
    # A bracket at the start of a cell would be taken for an argument of the line break before it.
    escaped = text.translate(_LATEX)
    return f"{{{escaped}}}" if escaped.startswith("[") else escaped


def percent_cell(fraction: float | None) -> Cell:
    """Return a fraction in percent without the sign."""
    return Cell(wording.percent(fraction).replace("\u00a0%", ""), fraction)


def spread_cell(entry: Accuracies | None, mark: str = "") -> Cell:
    """Return a mean in percent, below it the range over the seeds and the interval."""
    if entry is None:
        return Cell()
    low, high = (percent_cell(end(entry.values)).text for end in (min, max))
    small = [f"({low}..{high})"] if len(entry.values) > 1 else []
    small.append(f"[{wording.interval(entry.interval)}]")
    return Cell(percent_cell(entry.mean).text, entry.mean, "\n".join(small), mark)


def spread_cells(
    entries: Mapping[Any, Rows], attacks: Sequence[str]
) -> dict[Any, dict[str, Cell]]:
    """Return by entry its accuracy under each attack; the highest of an attack are marked."""
    marks = {attack: best_marks(entries, attack) for attack in attacks}
    return {
        entry: {a: spread_cell(accuracies(rows, a), marks[a].get(entry, "")) for a in attacks}
        for entry, rows in entries.items()
    }


def mean_cell(
    values: Iterable[float | None],
    form: Callable[[float], str] = "{:,.0f}".format,
    *,
    span: bool = False,
) -> Cell:
    """Return the mean of the numbers that are not None; with ``span`` their range below it."""
    present = [value for value in values if value is not None]
    if not present:
        return Cell()
    small = f"({form(min(present))}..{form(max(present))})" if span and len(present) > 1 else ""
    return Cell(form(average(present)), average(present), small)


def listed_cell(values: Iterable[float], form: Callable[[float], str] = str) -> Cell:
    """Return the value of each seed, sorted by their mean."""
    return Cell(", ".join(map(form, values)), average(list(values)))
