"""Tables 2 and 3: accuracy by attack, and A3GT beside its rivals on the same images."""

__all__ = ["RIVALS", "blocks"]

from collections.abc import Mapping, Sequence

from equipoise.paper import paper, tradeoff
from equipoise.paper.findings import CLEAN, ENSEMBLE, Findings, Panel, Row
from equipoise.paper.measures import (
    Comparison,
    average,
    budgets,
    by_entry,
    cell,
    compare,
    standing,
)
from equipoise.paper.phrases import (
    attack_name,
    capital,
    difference,
    entry_name,
    margin,
    names,
    number_item,
    probability,
    seeds,
    spread_item,
)
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Column, Table, file_name

RIVALS = ("generalist", "pgd-at-averaged", "mix-at-25", "mix-at-50", "a3gt-paper")
HERO = "a3gt"
Entries = Mapping[str, Sequence[Row]]


def blocks(findings: Findings) -> list[Block]:
    """Return what Tables 2 and 3 are made of: for every panel and radius the same parts."""
    made: list[Block] = []
    for panel in findings.panels:
        rows = findings.of(panel)
        radii = budgets(rows) or list(panel.eps)[:1]
        for eps in radii:
            mine = [row for row in rows if row.eps == eps]
            suffix = f"eps-{wording.eps_text(eps)}" if len(radii) > 1 else ""
            name = file_name(findings.experiment, panel.name, suffix)
            title = panel.title if len(radii) == 1 else f"{panel.title}, eps {eps:.4g}"
            made += _at(findings.experiment, panel, mine, eps, name, title)
    return made


def _at(
    experiment: str, panel: Panel, rows: Sequence[Row], eps: float, name: str, title: str
) -> list[Block]:
    entries = by_entry(rows)
    found: list[Block] = [_table(panel, entries, name, title)]
    if text := _said(entries, _attacks(panel, rows)):
        found.append(text)
    found += paper.blocks(experiment, panel, rows, eps)
    found += _pairs(entries, f"{name}-pairs", title)
    found += tradeoff.blocks(panel, entries, name, title)
    return found


def _attacks(panel: Panel, rows: Sequence[Row]) -> list[str]:
    """Return the columns: clean, the attacks of the panel, and what else was run."""
    run = [name for row in rows for name in row.correct]
    return list(dict.fromkeys([CLEAN, *panel.attacks, *run]))


def _table(panel: Panel, entries: Entries, name: str, title: str) -> Table:
    order = list(dict.fromkeys([*panel.entries, *entries]))
    attacks = _attacks(panel, [row for rows in entries.values() for row in rows])
    marks = {attack: standing(entries, attack) for attack in attacks}
    heads = [*(Column(attack_name(a)) for a in attacks), Column("gradient evaluations")]
    heads += [Column("training, s"), Column("evaluation, s")]
    rows = []
    for entry in order:
        mine = entries.get(entry, ())
        accuracies = [spread_item(cell(mine, a), marks[a].get(entry, "")) for a in attacks]
        rows.append(
            (
                Cell(entry),
                Cell(seeds([row.seed for row in mine], panel.seeds)),
                *accuracies,
                number_item(row.gradient_evaluations for row in mine),
                number_item(row.training_seconds for row in mine),
                number_item(row.evaluation_seconds for row in mine),
            )
        )
    columns = (Column("entry", False), Column("seeds", False), *heads)
    records = _records(order, entries, attacks)
    heading = f"Accuracy by attack, {title}"
    return Table(name, heading, columns, tuple(rows), _notes(entries), records)


def _notes(entries: Entries) -> tuple[str, ...]:
    rows = [row for mine in entries.values() for row in mine]
    if not rows:
        return ("Nothing of this panel has been evaluated yet.",)
    several = max(len(mine) for mine in entries.values()) > 1
    sizes = sorted({row.n for row in rows})
    images = wording.join([wording.count(size) for size in sizes])
    mean = "the mean over the seeds, in round brackets their range, " if several else ""
    notes = [
        f"Accuracy in percent on {images} test images; {mean}in square brackets the exact 95 % "
        "interval of one seed's images"
        + (
            " around the mean. All seeds see the same images, so seeds do not narrow it."
            if several
            else "."
        )
    ]
    if any(row.verdicts for row in rows):
        notes.append(
            "Bold is the highest of a column; italic is what is not told from it: not behind the "
            "highest on every seed and on most of them by McNemar's exact test (p < 0.05, not "
            "corrected for the number of comparisons)."
        )
    return tuple(notes)


def _records(
    order: Sequence[str], entries: Entries, attacks: Sequence[str]
) -> tuple[tuple[object, ...], ...]:
    head: list[object] = ["entry", "seeds", "n"]
    for attack in attacks:
        head += [f"{attack}{end}" for end in ("", "_lowest", "_highest", "_low95", "_high95")]
    head += ["gradient_evaluations", "training_seconds", "evaluation_seconds"]
    lines: list[tuple[object, ...]] = [tuple(head)]
    for entry in order:
        mine = entries.get(entry, ())
        line: list[object] = [entry, " ".join(str(row.seed) for row in mine)]
        line.append(min((row.n for row in mine), default=None))
        for attack in attacks:
            found = cell(mine, attack)
            line += (
                [found.mean, found.lowest, found.highest, *found.interval] if found else [None] * 5
            )
        for key in ("gradient_evaluations", "training_seconds", "evaluation_seconds"):
            line.append(number_item(getattr(row, key) for row in mine).value)
        lines.append(tuple(line))
    return tuple(lines)


def _said(entries: Entries, attacks: Sequence[str]) -> str:
    """Return in words who is best on clean images and under the strongest attack."""
    sentences = []
    last = ENSEMBLE if ENSEMBLE in attacks else attacks[-1]
    for attack in dict.fromkeys((CLEAN, last)):
        marks = standing(entries, attack)
        best = [name for name, mark in marks.items() if mark == "best"]
        if not best:
            continue
        top = cell(entries[best[0]], attack)
        assert top is not None, "what is best has been measured"
        close = [name for name, mark in marks.items() if mark == "close"]
        where = "On clean images" if attack == CLEAN else f"Under {attack_name(attack)}"
        verb = "has" if len(best) == 1 else "have"
        text = f"{where} {names(best)} {verb} the highest accuracy, {wording.percent(top.mean)}"
        if close:
            text += f"; not told from it {'is' if len(close) == 1 else 'are'} {names(close)}"
        hero = cell(entries.get(HERO, ()), attack)
        if hero and HERO not in best:
            text += f". A3GT has {wording.percent(hero.mean)}"
        sentences.append(f"{text}.")
    return " ".join(sentences)


def _pairs(entries: Entries, name: str, title: str) -> list[Block]:
    hero = entries.get(HERO, ())
    rows, sentences = [], []
    records: list[tuple[object, ...]] = [
        ("against", "attack", "seed", "difference", "only_a3gt", "only_other", "p")
    ]
    for rival in (name for name in RIVALS if name in entries):
        told = {}
        for attack in (CLEAN, ENSEMBLE):
            found = compare(hero, entries[rival], attack)
            if not found.pairs:
                continue
            told[attack] = found
            rows.append(_pair_row(rival, attack, found))
            records += [
                (rival, attack, p.seed, p.difference, p.only_first, p.only_second, p.p)
                for p in found.pairs
            ]
        if told:
            sentences.append(_pair_sentence(rival, told))
    if not rows:
        return []
    heads = ("against", "under", "difference, points", "only A3GT right", "only the other right")
    columns = tuple(Column(h, i > 1) for i, h in enumerate((*heads, "p")))
    notes = (
        (
            "Difference: A3GT less the other, on the same images and seed; a mean over the seeds "
            "both have, in brackets its range. Counts of images and McNemar's exact two-sided p, "
            "seed by seed. "
            "“On every seed” is so said where p < 0.05 on most of them, too."
        ),
    )
    table = Table(
        name, f"A3GT image by image, {title}", columns, tuple(rows), notes, tuple(records)
    )
    return [table, " ".join(sentences)]


def _pair_row(rival: str, attack: str, found: Comparison) -> tuple[Cell, ...]:
    gaps = [pair.difference for pair in found.pairs]
    spread = f"({margin(min(gaps))}..{margin(max(gaps))})" if len(gaps) > 1 else ""
    return (
        Cell(rival),
        Cell(attack_name(attack)),
        Cell(margin(found.mean), found.mean, spread),
        _listed(
            [str(pair.only_first) for pair in found.pairs], [p.only_first for p in found.pairs]
        ),
        _listed(
            [str(pair.only_second) for pair in found.pairs], [p.only_second for p in found.pairs]
        ),
        _listed([probability(pair.p) for pair in found.pairs], [p.p for p in found.pairs]),
    )


def _listed(texts: Sequence[str], values: Sequence[float]) -> Cell:
    return Cell(", ".join(texts), average(values))


def _pair_sentence(rival: str, told: Mapping[str, Comparison]) -> str:
    parts = [
        difference(
            found,
            "clean accuracy" if attack == CLEAN else f"accuracy under {attack_name(attack)}",
        )
        for attack, found in told.items()
    ]
    return f"{capital(f'against {entry_name(rival)}')} A3GT has {' and '.join(parts)}."
