"""The results of evaluations as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.measures import over_attacks
from equipoise.measures.cmmr import SCORE_COLUMNS, VERSION, score_texts
from equipoise.measures.over_attacks import NEEDED, attack_texts
from equipoise.sample import Sample
from equipoise.store.records import RESULT_COLUMNS, STAGE_COLUMNS, ResultColumn, shown
from equipoise.terminal.table import output, rich_table
from equipoise.threat import Threat


def write_table(records: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Show records of an evaluation: for each eps a table of the attacks and one of the classes.

    Arguments:
        records: As :func:`equipoise.jobs.evaluate.evaluate_run` returns them.
        title: The text before the threat in the line above.
    """
    for eps in dict.fromkeys(record["eps"] for record in records):
        of_eps = [record for record in records if record["eps"] == eps]
        first = of_eps[0]
        images = f"{first['n']:,} images"
        if first.get("sample"):
            images = Sample.of_content(first["sample"]).words("test images")
        failed = first.get("failed")
        checks = f"; FAILED CHECKS: {', '.join(failed)}" if failed else ""
        if first.get("finished") is False:
            checks += "; NOT FINISHED: images that were not attacked yet count as robust"
        prefix = f"{title}: " if title else ""
        threat = Threat(first["norm"], eps)
        _write(f"{prefix}{threat}, {images}{checks}", RESULT_COLUMNS, of_eps)
        for record in of_eps:
            stages = record.get("stages") or []
            notes = dict.fromkeys(note for stage in stages for note in stage["notes"])
            if stages:
                _write(f"{record['attack']}, stage by stage", STAGE_COLUMNS, stages, *notes)
        names = list(first["per_class"])
        rows = (
            [r["attack"], *(f"{r['per_class'][name]['accuracy']:.0%}" for name in names)]
            for r in of_eps
        )
        output().print(rich_table("per class", ["attack", *names], rows, numbers=names))


def _write(
    title: str, columns: Sequence[ResultColumn], records: Sequence[Mapping[str, Any]], *notes: str
) -> None:
    """Show records as a table of the columns that have a title."""
    heads = [column.title for column in columns if column.title]
    rows = [list(shown(columns, record).values()) for record in records]
    output().print(rich_table(title, heads, rows, numbers=heads[1:], caption=" ".join(notes)))


def write_scores(records: Sequence[Mapping[str, Any]]) -> None:
    """Show the composite scores (CMMR) in records of evaluations, with their parts."""
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
    rows = [
        [str(Threat(r["norm"], r["eps"])), name, *texts]
        for r in sorted(scored, key=lambda r: (r["norm"], r["eps"]))
        for name, texts in attack_texts(r.get("cmmr2")).items()
    ]
    heads, title = ["threat", "attack", *SCORE_COLUMNS], f"CMMR ({over_attacks.VERSION})"
    if scored:
        caption = "" if all("cmmr2" in record for record in scored) else NEEDED
        output().print(rich_table(title, heads, rows, numbers=heads[2:], caption=caption))
