"""Tables as Markdown, CSV and LaTeX."""

__all__ = ["csv_table", "latex_table", "markdown_table"]

import csv
from collections.abc import Sequence
from io import StringIO

from equipoise.report.content import Cell, Table
from equipoise.terminal.table import escape_markdown, markdown_rows

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
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
    "≥": r"$\geq$",
    "×": r"$\times$",
}


def markdown_table(table: Table, *, brief: bool = False) -> str:
    """Return a table as Markdown: the best in bold, what is not told from it in italics.

    Arguments:
        table: The table.
        brief: Whether to leave out intervals where there is a range beside them.
    """
    rows = [[_markdown_item(item, brief) for item in row] for row in table.rows]
    numbers = [column.head for column in table.columns if column.number]
    heads = [column.head for column in table.columns]
    return markdown_rows(heads, rows, numbers=numbers, escaped=True)


def _markdown_item(item: Cell, brief: bool) -> str:
    around = {"best": "**", "close": "*"}.get(item.mark, "")
    text = f"{around}{escape_markdown(item.text)}{around}"
    small = item.small.split("\n")[:1] if brief else item.small.split("\n")
    return " ".join(filter(None, [text, *map(escape_markdown, small)]))


def csv_table(table: Table) -> str:
    """Return the numbers of a table as CSV: fractions, not percent; what is not known is empty."""
    target = StringIO()
    writer = csv.writer(target, lineterminator="\n")
    for record in table.records or _printed(table):
        writer.writerow(["" if value is None else value for value in record])
    return target.getvalue()


def _printed(table: Table) -> Sequence[Sequence[object]]:
    heads = [column.head for column in table.columns]
    rows = [[item.text if item.value is None else item.value for item in r] for r in table.rows]
    return [heads, *rows]


def latex_table(table: Table) -> str:
    """Return a table as LaTeX for the package booktabs."""
    layout = "".join("r" if column.number else "l" for column in table.columns)
    heads = " & ".join(_latex(column.head) for column in table.columns)
    rows = "".join(" & ".join(map(_latex_item, row)) + r" \\" + "\n" for row in table.rows)
    notes = "".join(f"% {note}\n" for note in table.notes)
    return (
        f"% {table.title}. Needs \\usepackage{{booktabs}}.\n{notes}"
        f"\\begin{{tabular}}{{{layout}}}\n\\toprule\n{heads} \\\\\n\\midrule\n"
        f"{rows}\\bottomrule\n\\end{{tabular}}\n"
    )


def _latex_item(item: Cell) -> str:
    text = _latex(item.text)
    if item.mark:
        text = rf"\{'textbf' if item.mark == 'best' else 'textit'}{{{text}}}"
    small = _latex(" ".join(item.small.split("\n")))
    return rf"{text} {{\scriptsize {small}}}" if small else text


def _latex(text: str) -> str:
    # A bracket at the start of a cell would be taken for an argument of the line break before it.
    escaped = "".join(_LATEX.get(letter, letter) for letter in text)
    return f"{{{escaped}}}" if escaped.startswith("[") else escaped
