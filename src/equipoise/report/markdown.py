"""The result tables as Markdown, for documents and threads."""

__all__ = ["tables"]

from collections.abc import Sequence

from equipoise.report.results import Cell, Row, Section, sections
from equipoise.report.runs_reader import Run
from equipoise.report.wording import MISSING, count, large, percent


def tables(runs: Sequence[Run]) -> str:
    """Return a table for each threat, and one of how the runs were trained."""
    parts = [_training(runs), *(_results(section) for section in sections(runs))]
    return "\n".join(parts)


def _results(section: Section) -> str:
    columns = ["run", "n", *section.columns, "worst class"]
    rows = [
        [row.run.name, count(row.n), *(_cell(cell) for cell in cells), _worst(row)]
        for row, cells in section.rows
    ]
    return f"### {_escape(section.title)}\n\n{_table(columns, rows)}"


def _training(runs: Sequence[Run]) -> str:
    columns = ["run", "method", "seed", "rounds", "gradient evaluations", "t'", "hand-overs"]
    rows = []
    for run in runs:
        summary = run.summary
        start = summary.start.round if summary and summary.start else None
        handed = len(summary.handovers) if summary and summary.handovers else 0
        cost = summary.gradient_evaluations if summary else None
        kept = f" (kept {summary.kept_round})" if summary and summary.kept_round else ""
        rows.append(
            [
                run.name,
                run.method or MISSING,
                str(run.recipe.get("seed", MISSING)),
                f"{len(run.rounds)}{kept}",
                large(cost) if cost else MISSING,
                str(start) if start and handed else MISSING,
                str(handed) if handed else MISSING,
            ]
        )
    return f"### Training\n\n{_table(columns, rows)}"


def _cell(cell: Cell) -> str:
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _worst(row: Row) -> str:
    if row.worst_class is None:
        return MISSING
    name, accuracy = row.worst_class
    return f"{name} ({percent(accuracy)})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(map(_escape, line)) + " |\n" for line in lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("\u00a0", " ")
