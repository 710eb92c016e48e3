"""The result tables as Markdown, for documents and threads."""

__all__ = ["tables"]

from collections.abc import Mapping, Sequence

from equipoise.report.cautions import other_code
from equipoise.report.checks import CheckList, check_lists, said
from equipoise.report.results import Cell, Row, Section, doubt, headline_rows, sections
from equipoise.report.runs_reader import Run
from equipoise.report.stages import StageTable, stage_tables
from equipoise.report.wording import MISSING, count, interval, large, percent
from equipoise.terminal.table import escape_markdown, markdown_rows


def tables(runs: Sequence[Run]) -> str:
    """Return tables of training, results and stages, and what the checks object to."""
    rows = headline_rows(runs)
    shown = {run.name: rows[run.name].threat if run.name in rows else None for run in runs}
    parts = [
        _doubts(rows),
        _training([run for run in runs if run.trained]),
        _warnings(runs),
        _own([run for run in runs if not run.trained]),
        *(_results(section) for section in sections(runs)),
        *(_stages(t) for run in runs for t in stage_tables(run, shown[run.name], "")),
        _checks([(run, c) for run in runs for c in check_lists(run, shown[run.name])]),
    ]
    return "\n".join(filter(None, parts))


def _doubts(rows: Mapping[str, Row]) -> str:
    return "".join(
        f"- **{escape_markdown(name)}**{escape_markdown(doubt(row))}\n"
        for name, row in rows.items()
        if row.failed
    )


def _results(section: Section) -> str:
    columns = ["run", "n", *section.columns, "worst class"]
    rows = [
        [row.run.name, count(row.n), *(_cell(cell) for cell in cells), _worst(row)]
        for row, cells in section.rows
    ]
    return f"### {escape_markdown(section.title)}\n\n{markdown_rows(columns, rows)}"


def _training(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
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
    return f"### Training\n\n{markdown_rows(columns, rows)}"


def _warnings(runs: Sequence[Run]) -> str:
    said = [(run.name, w) for run in runs if run.summary for w in run.summary.warnings]
    said += [(run.name, text) for run in runs for text in other_code(run)]
    return "".join(
        f"- **{escape_markdown(name)}**: {escape_markdown(warning)}\n" for name, warning in said
    )


def _own(runs: Sequence[Run]) -> str:
    if not runs:
        return ""
    keys = ("model", "weights", "weights_sha256", "data")
    rows = [
        [run.name, *(str(run.own.get(key) or MISSING) for key in keys), *_code(run)]
        for run in runs
    ]
    columns = ["run", "model", "weights", "SHA-256 of the weights", "data"]
    columns += ["code", "SHA-256 of the code"]
    return f"### Models of your own\n\n{markdown_rows(columns, rows)}"


def _code(run: Run) -> list[str]:
    """Return the file of a model's code, and its SHA-256."""
    source = run.own.get("source")
    known = source if isinstance(source, Mapping) else {}
    return [str(known.get(key) or MISSING) for key in ("file", "sha256")]


def _stages(table: StageTable) -> str:
    columns = ["stage", "attacked", "broken", "robust so far", "alone"]
    columns += ["images forward", "images backward", "seconds"]
    rows = [
        [
            stage.attack if stage.finished else f"{stage.attack} (interrupted)",
            count(stage.entered),
            count(stage.broken),
            _accuracy(percent(stage.accuracy), interval(stage.interval)),
            percent(stage.alone),
            count(stage.forwards),
            count(stage.backwards),
            f"{stage.seconds:.1f}",
        ]
        for stage in table.stages
    ]
    title = f"{table.title}, stage by stage: {table.run.name}, {table.threat}"
    remarks = "".join(f"\n{escape_markdown(remark)}\n" for remark in table.remarks)
    return f"### {escape_markdown(title)}\n\n{markdown_rows(columns, rows)}{remarks}"


def _checks(found: Sequence[tuple[Run, CheckList]]) -> str:
    if not found:
        return ""
    lines = []
    for run, checked in found:
        end = "" if checked.evaluation.finished else " The evaluation is not finished."
        summary = f"{checked.summary}." if checked.evaluation.findings else "No check was made."
        lines.append(f"- {escape_markdown(f'{run.name}, {checked.title}: {summary}{end}')}\n")
        lines += [
            f"  - **{f.status}, {escape_markdown(f.check)}**: {escape_markdown(said(f))}\n"
            for f in checked.alarms
        ]
    return "### Checks\n\n" + "".join(lines)


def _cell(cell: Cell) -> str:
    return _accuracy(cell.text, cell.interval)


def _accuracy(text: str, bounds: str) -> str:
    return f"{text} ({bounds})" if bounds else text


def _worst(row: Row) -> str:
    if row.worst_class is None:
        return MISSING
    name, accuracy = row.worst_class
    return f"{name} ({percent(accuracy)})"
