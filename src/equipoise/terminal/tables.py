"""The results of evaluations as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from equipoise.measures.cmmr import SCORE_COLUMNS, VERSION, score_texts
from equipoise.sample import Sample
from equipoise.store.records import RESULT_COLUMNS, STAGE_COLUMNS, ResultColumn, shown
from equipoise.terminal.table import output, rich_table
from equipoise.threat import Threat

if TYPE_CHECKING:
    from rich.table import Table


def write_table(records: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Show records of an evaluation: a table an eps, and one of the classes.

    Arguments:
        records: As :func:`equipoise.jobs.evaluate.evaluate_run` returns them.
        title: What stands above.
    """
    terminal = output()
    for eps in dict.fromkeys(record["eps"] for record in records):
        of_eps = [record for record in records if record["eps"] == eps]
        terminal.print(_accuracies(of_eps, title))
        for record in of_eps:
            if record.get("stages"):
                terminal.print(_stages(record))
        terminal.print(_classes(of_eps))


def _accuracies(records: Sequence[Mapping[str, Any]], title: str) -> "Table":
    first = records[0]
    threat = Threat(first["norm"], first["eps"])
    images = f"{first['n']:,} images"
    if first.get("sample"):
        images = Sample.of_content(first["sample"]).words("test images")
    failed = first.get("failed")
    checks = f"; FAILED CHECKS: {', '.join(failed)}" if failed else ""
    title = f"{title + ': ' if title else ''}{threat}, {images}{checks}"
    return _table(title, RESULT_COLUMNS, records)


def _stages(record: Mapping[str, Any]) -> "Table":
    """Return the stages of an ensemble: what each broke, alone where that is known, its price."""
    notes = dict.fromkeys(note for stage in record["stages"] for note in stage["notes"])
    title = f"{record['attack']}, stage by stage"
    return _table(title, STAGE_COLUMNS, record["stages"], caption=" ".join(notes))


def _table(
    title: str,
    columns: Sequence[ResultColumn],
    records: Sequence[Mapping[str, Any]],
    caption: str = "",
) -> "Table":
    """Return records as a table that has the columns with a head."""
    heads = [column.title for column in columns if column.title]
    rows = [list(shown(columns, record).values()) for record in records]
    return rich_table(title, heads, rows, numbers=heads[1:], caption=caption)


def _classes(records: Sequence[Mapping[str, Any]]) -> "Table":
    names = list(records[0]["per_class"])
    rows = (
        [record["attack"], *(f"{record['per_class'][name]['accuracy']:.0%}" for name in names)]
        for record in records
    )
    return rich_table("per class", ["attack", *names], rows, numbers=names)


def write_scores(records: Sequence[Mapping[str, Any]]) -> None:
    """Show the composite scores of records of evaluations, with their parts.

    Arguments:
        records: As for :func:`write_table`.
    """
    scored = [record for record in records if "cmmr" in record]
    heads = ["threat", *SCORE_COLUMNS]
    rows = [
        [str(Threat(r["norm"], r["eps"])), *score_texts(r["cmmr"]).values()]
        for r in sorted(scored, key=lambda r: (r["norm"], r["eps"]))
    ]
    caption = "" if rows else "no score: the evaluation is not finished, or not of images"
    output().print(
        rich_table(f"CMMR ({VERSION})", heads, rows, numbers=heads[1:], caption=caption)
    )
