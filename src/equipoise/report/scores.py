"""The section of a report on composite scores."""

from collections.abc import Sequence

from equipoise.measures import over_attacks
from equipoise.measures.cmmr import SCORE_COLUMNS, VERSION, WEIGHT, score_texts
from equipoise.measures.over_attacks import NEEDED, attack_texts
from equipoise.plugins import command
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Column, Section, Table
from equipoise.report.runs_reader import RunData
from equipoise.store.scores import contents, scores

_Row = list[str | Cell]

_CMMR = (
    f"CMMR ({VERSION}) = A + {WEIGHT:g} S D: the accuracy A under attack, the share S of images "
    "that are classified correctly and fooled, and how much distortion D that took, the mean of "
    "four parts. All are between 0 and 1. An image that is fooled at a small radius counts with "
    "its distortion there at every larger radius."
)
_OVER = (
    f"{over_attacks.VERSION} is the mean of the scores under PGD, MI-FGSM and AutoAttack, each "
    "alone; in brackets the lowest and the highest of the three."
)


def score_section(runs: Sequence[RunData]) -> Section:
    """Return the composite scores of all evaluations that have a score, a row a radius."""
    rows, over, blocks = list[_Row](), list[_Row](), list[Block]()
    lacking: list[str] = []
    for run in runs:
        by_name = scores(run.evaluations)
        for each in sorted(run.evaluations, key=lambda e: (e.threat, -e.n)):
            if each.name in by_name:
                content = contents(by_name[each.name])
                images = wording.images_text(each.n, each.sample)
                where = [Cell(run.name, small=images), Cell(wording.threat_text(*each.threat))]
                rows.append([*where, *score_texts(content["cmmr"]).values()])
                for name, texts in attack_texts(content.get("cmmr2")).items():
                    over.append([*where, name, *texts])
                lacking += [run.name] * ("cmmr2" not in content)
        if not by_name:
            again = f"`{command('evaluate', run.path, '--cmmr')}`"
            blocks.append(f"{run.name} has no score; measure its distortions with {again}.")
    if lacking:
        names = wording.join([*dict.fromkeys(lacking)])
        blocks.append(f"Some scores of {names} have no {over_attacks.VERSION}. {NEEDED}")
    tables: list[Block] = [_table("cmmr", VERSION, (), rows)] if rows else []
    if over:
        tables += [_OVER, _table("cmmr-2", over_attacks.VERSION, ("attack",), over)]
    return Section("Composite score", [_CMMR, *tables, *blocks], id="cmmr")


def _table(name: str, version: str, more: Sequence[str], rows: Sequence[_Row]) -> Table:
    texts = 2 + len(more)
    heads = ("run", "threat", *more, *SCORE_COLUMNS)
    columns = tuple(Column(head, i >= texts) for i, head in enumerate(heads))
    cells = (tuple(c if isinstance(c, Cell) else Cell(c) for c in row) for row in rows)
    return Table(name, f"CMMR ({version})", columns, tuple(cells))
