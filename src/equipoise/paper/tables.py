"""Tables from lines of cells and rows of numbers; as CSV and LaTeX."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from equipoise.paper.measures import Accuracies, Rows, accuracies, average, best_marks
from equipoise.paper.prose import signed
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
Numbers = Sequence[Any]


def table(
    name: str,
    title: str,
    lines: Sequence[Line],
    head: Sequence[str],
    data: Iterable[Numbers],
    *notes: str,
) -> Table:
    """Return a table.

    Arguments:
        name: The name of its files, without their ends.
        title: Its title.
        lines: As it is printed.
        head: The names of its numbers for programs.
        data: These numbers: accuracies as fractions; what is not known is None.
        notes: What the reader must know to read it.
    """
    rows = [[c if isinstance(c, Cell) else Cell(c) for c in line.values()] for line in lines]
    columns = [Column(name, isinstance(cell, Cell)) for name, cell in (lines or [{}])[0].items()]
    records = (tuple(head), *map(tuple, data))
    return Table(name, title, tuple(columns), tuple(map(tuple, rows)), notes, records)


def csv_table(table: Table) -> str:
    """Return the numbers of a table as CSV; what is not known is empty."""
    head, *data = table.records
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


def spread_cell(found: Accuracies | None, mark: str = "") -> Cell:
    """Return a mean in percent, below it the range over the seeds and the interval."""
    if found is None:
        return Cell()
    low, high = (percent_cell(end(found.values)).text for end in (min, max))
    small = [f"({low}..{high})"] if len(found.values) > 1 else []
    small.append(f"[{wording.interval(found.interval)}]")
    return Cell(percent_cell(found.mean).text, found.mean, "\n".join(small), mark)


def spread_cells(entries: Mapping[Any, Rows], attacks: Sequence[str]) -> dict[Any, Line]:
    """Return by entry its accuracy under each attack; the highest of an attack are marked."""
    marks = {attack: best_marks(entries, attack) for attack in attacks}
    return {
        entry: {a: spread_cell(accuracies(rows, a), marks[a].get(entry, "")) for a in attacks}
        for entry, rows in entries.items()
    }


def number_cell(values: Iterable[float | None], form: str = "{:,.0f}") -> Cell:
    """Return the mean of those numbers that are known."""
    known = [value for value in values if value is not None]
    return Cell(form.format(average(known)), average(known)) if known else Cell()


def listed_cell(values: Iterable[float], texts: Iterable[str] = ()) -> Cell:
    """Return the value of each seed, sorted by their mean."""
    known = list(values)
    return Cell(", ".join(list(texts) or map(str, known)), average(known))


def area_cell(values: Sequence[float]) -> Cell:
    """Return the mean of some areas, below it their range over the seeds."""
    if not values:
        return Cell()
    span = f"({min(values):.4f}..{max(values):.4f})" if len(values) > 1 else ""
    return Cell(f"{average(values):.4f}", average(values), span)


def points_cell(values: Sequence[float]) -> Cell:
    """Return the mean of some differences in percentage points, below it their range."""
    if not values:
        return Cell()
    span = f"({signed(min(values))}..{signed(max(values))})" if len(values) > 1 else ""
    return Cell(signed(average(values)), average(values), span)
