"""Results: tables of runs on the same images, the best of a column, the headline."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from equipoise.report.content import Block, Cell, Column, Section, Table
from equipoise.report.runs_reader import RunData
from equipoise.report.wording import (
    MISSING,
    count,
    images_text,
    interval,
    join,
    percent,
    threat_text,
)
from equipoise.store.records import RESULT_COLUMNS, Record, ResultColumn
from equipoise.store.verdicts import Evaluation

CLEAN = "clean"
WORST = "worst-case"

Threat = tuple[str, float]


@dataclass(frozen=True)
class EvaluatedRun:
    """A run with one of its evaluations: everything measured on the same images at one radius."""

    run: RunData
    evaluation: Evaluation

    @cached_property
    def records(self) -> Mapping[str, Record]:
        """The records by attack; of an interrupted evaluation those that are complete."""
        return {record.attack: record for record in self.evaluation.complete}

    @property
    def threat(self) -> Threat | None:
        """Norm and radius, or None where nothing was perturbed."""
        return self.evaluation.threat if self.evaluation.threat[1] else None

    @property
    def images(self) -> tuple[int, str]:
        """The number and the checksum of the images."""
        sample = self.evaluation.sample
        return self.evaluation.n, sample.sha256 if sample else ""

    @property
    def images_text(self) -> str:
        """How many images, and which, in a few words."""
        return images_text(self.evaluation.n, self.evaluation.sample)

    @property
    def clean(self) -> Record | None:
        """Accuracy without a perturbation."""
        return self.records.get(CLEAN)

    @property
    def attacked(self) -> Record | None:
        """The worst case, or the strongest single attack where there is no worst case."""
        single = [r for name, r in self.records.items() if name not in (CLEAN, WORST)]
        return self.records.get(WORST) or min(single, key=lambda r: r.accuracy, default=None)


def rows_of(run: RunData) -> list[EvaluatedRun]:
    """Return the evaluations of a run; those without a perturbation only if there is no other."""
    rows = [EvaluatedRun(run, evaluation) for evaluation in run.evaluations]
    rows = [row for row in rows if row.records]
    return [row for row in rows if row.threat] or rows


def ensemble_title(name: str) -> str:
    """Return the name of an ensemble as its authors write it; other names as they are."""
    head, _, rest = name.partition("-")
    return f"AutoAttack{'-' * bool(rest)}{rest}" if head == "autoattack" else name


def stage_name(records: Mapping[str, Record], ensemble: Record, stage: Record) -> str:
    """Return the name under which a stage is listed among other attacks.

    It is the stage's own, unless another attack of the evaluation has that.
    """
    full = f"{ensemble.attack}/{stage.attack}"
    other = records.get(stage.attack)
    taken = other and (other.settings, other.accuracy) != (stage.settings, stage.alone)
    return full if full in records or taken else stage.attack


# Tables


def result_sections(runs: Sequence[RunData]) -> list[Section]:
    """Return one table per radius and sample of images, small radii and many images first."""
    tables: dict[tuple[Threat, tuple[int, str]], list[EvaluatedRun]] = {}
    for row in (row for run in runs for row in rows_of(run)):
        tables.setdefault((row.threat or ("", 0.0), row.images), []).append(row)
    several = Counter(threat for threat, _ in tables)
    sections: list[Section] = []
    before: list[str] = []
    for key in sorted(tables, key=lambda key: (key[0], -key[1][0], key[1][1])):
        rows = tables[key]
        title, notes = _title(rows[0], several[key[0]] > 1), _worst_of(rows)
        attacks = [
            record_table("attacks", row.run.name, RESULT_COLUMNS, [*row.records.values()])
            for row in rows
        ]
        each = [Section(table.title, [table]) for table in attacks]
        folded = Section("Each attack of each run", each, folded=True)
        blocks: list[Block] = [_table(title, rows), *(notes if notes != before else []), folded]
        before = notes
        sections.append(Section(title, blocks))
    return sections


def _title(row: EvaluatedRun, several: bool) -> str:
    sample = row.evaluation.sample
    images = sample.words("images") if sample else row.images_text if several else ""
    radius = threat_text(*row.threat) if row.threat else "No perturbation"
    return f"{radius}, {images}" if images else radius


def _table(title: str, rows: Sequence[EvaluatedRun]) -> Table:
    """Return the table of some runs; the worst case comes first, to be seen on any screen."""
    names = list(dict.fromkeys(name for row in rows for name in row.records))
    attacks = [name for name in (WORST, CLEAN) if name in names]
    attacks += [name for name in names if name not in attacks]
    columns = [_column([row.records.get(name) for row in rows]) for name in attacks]
    unequal = any(record.unequal for row in rows for record in row.records.values())
    heads = ["run", *attacks, "n", *(["balanced"] if unequal else []), "worst class"]
    shown = tuple(Column(head, number=head not in ("run", "worst class")) for head in heads)
    cells = (_row(*each, unequal) for each in zip(rows, zip(*columns, strict=True), strict=True))
    return Table("results", f"Accuracy, {title}", shown, tuple(cells))


def _row(row: EvaluatedRun, accuracies: Sequence[Cell], unequal: bool) -> tuple[Cell, ...]:
    run, n, split = row.run, row.evaluation.n, row.evaluation.split
    record = row.attacked or row.clean
    name, accuracy = (record and record.worst_class) or (MISSING, None)
    balanced = record.balanced if record else None
    return (
        Cell(run.name, small=run.method if run.method != run.name else ""),
        *accuracies,
        Cell(count(n), n, "" if split == "test" else split),
        *([Cell(percent(balanced), balanced)] if unequal else []),
        Cell(name, accuracy, "" if accuracy is None else percent(accuracy)),
    )


def _accuracy(record: Record, mark: str = "") -> Cell:
    """Return an accuracy with its 95 % interval as a cell."""
    return Cell(percent(record.accuracy), record.accuracy, interval(record.interval), mark)


def record_table(
    name: str, title: str, columns: Sequence[ResultColumn], records: Sequence[Record]
) -> Table:
    """Return records, or the stages of one, as a table: the columns with a head, and settings."""
    shown = [c for c in columns if c.title and c.name != "interval"]  # it is below the accuracy
    words = ("attack", "worst_class")
    heads = (*(Column(c.title, c.name not in words) for c in shown), Column("settings", False))
    rows = ((*(_record_cell(c, r) for c in shown), Cell(r.settings)) for r in records)
    return Table(name, title, heads, tuple(rows))


def _record_cell(column: ResultColumn, record: Record) -> Cell:
    value = column.of(record)
    if column.name == "accuracy":
        return _accuracy(record)
    if column.name == "seconds":
        return Cell(f"{value:,.1f}", value)
    if isinstance(value, float | None):
        return Cell(percent(value), value)
    if isinstance(value, int):
        return Cell(count(value), value)
    return Cell(value if isinstance(value, str) else column.text(record.content()))


def _column(records: Sequence[Record | None]) -> list[Cell]:
    """Return the cells of an attack, the highest marked."""
    present = [r for r in records if r]
    top = max(present, key=lambda r: r.accuracy)
    rest = [r for r in present if r.accuracy < top.accuracy]
    tied = len(present) - len(rest) > 1
    mark = "close" if tied or any(top.interval[0] <= r.interval[1] for r in rest) else "best"
    return [
        _accuracy(r, mark if rest and r.accuracy == top.accuracy else "") if r else Cell()
        for r in records
    ]


def _worst_of(rows: Sequence[EvaluatedRun]) -> list[str]:
    """Return over which attacks the worst case is, in a sentence."""
    worst = (row.records.get(WORST) for row in rows)
    sets = list(dict.fromkeys(r.attacks for r in worst if r and r.attacks))
    if len(sets) > 1:
        listed = "; or ".join(join(attacks) for attacks in sets)
        return [f"The worst case is not over the same attacks in every row: {listed}."]
    return [
        f"The worst case counts an image as correct only if it is so under all of {join(attacks)}."
        for attacks in sets
    ]


def fold_others(name: str, sections: Sequence[Section]) -> list[Section]:
    """Return the first section of a run and, folded into one, the others."""
    others = len(sections) - 1
    if others < 1:
        return list(sections)
    more = "another evaluation" if others == 1 else f"{others} more evaluations"
    return [sections[0], Section(f"{name}: {more}", sections[1:], folded=True)]


# The headline


def headline_rows(runs: Sequence[RunData]) -> dict[str, EvaluatedRun]:
    """Return the evaluation of each run for the headline: at the radius of its training.

    If there is none, it is the evaluation at the largest radius with the most images, in the norm
    of the training if possible.
    """
    rows = {run.name: rows_of(run) for run in runs}
    return {name: max(of_run, key=_rank) for name, of_run in rows.items() if of_run}


def _rank(row: EvaluatedRun) -> tuple[object, ...]:
    trained, threat = row.run.threat, row.threat or ("", 0.0)
    return (
        row.attacked is not None,
        threat == trained,
        trained is not None and threat[0] == trained[0],
        threat[1],
        WORST in row.records,
        row.evaluation.n,
    )


def headline(rows: Sequence[EvaluatedRun]) -> list[str]:
    """Return a sentence a run: accuracy under attack and clean accuracy, with their intervals."""
    return [f"{_sentence(row)}." for row in sorted(rows, key=lambda row: row.run.undefended)]


def best(rows: Sequence[EvaluatedRun]) -> list[str]:
    """Return which of many runs have the highest accuracy under attack and on clean images.

    Only runs that were evaluated like the first run are compared.
    """
    alike, sentences = judged_alike(rows), []
    for where, key in (("under attack", "attacked"), ("on clean images", "clean")):
        kept = [row for row in alike if getattr(row, key)]
        if kept:
            top = max(kept, key=lambda row: getattr(row, key).accuracy)
            sentences.append(f"Best {where} of {len(alike)} runs: {_sentence(top)}.")
    if len(alike) < len(rows):
        others = len(rows) - len(alike)
        sentences.append(f"{others} more were evaluated in another way: see the tables.")
    return sentences


def judged_alike(rows: Sequence[EvaluatedRun]) -> list[EvaluatedRun]:
    """Return the rows with the threat, the images and the attacks of the first row."""

    def terms(row: EvaluatedRun) -> tuple[object, ...]:
        judge = row.attacked
        attacks = (judge.attack, set(judge.attacks)) if judge else ()
        return row.threat, row.evaluation.split, row.images, attacks, row.clean is None

    return [row for row in rows if terms(row) == terms(rows[0])]


def doubt(row: EvaluatedRun) -> str:
    """Return a warning if checks of an evaluation failed."""
    if not row.evaluation.failed:
        return ""
    checks = "check" if len(row.evaluation.failed) == 1 else "checks"
    return f", but the numbers cannot be trusted (failed {checks}: {join(row.evaluation.failed)})"


def _sentence(row: EvaluatedRun) -> str:
    name = row.run.name + (" (undefended)" if row.run.undefended else "")
    clean = f"clean accuracy {_written(row.clean)}" if row.clean else ""
    if row.attacked is None or row.threat is None:
        return f"{name}: {clean}, {row.images_text}; it has not been attacked{doubt(row)}"
    kind = "worst-case accuracy" if row.attacked.attack == WORST else "accuracy under attack"
    both = " and ".join(filter(None, (f"{kind} {_written(row.attacked)}", clean)))
    where = f"{threat_text(*row.threat)}, {row.images_text}"
    audit = row.evaluation.verdicts.audit
    audited = f"; {audit.claim}" if audit and row.attacked.attack == WORST else ""
    return f"{name}: {both}, under {_attacks(row)} ({where}){audited}{doubt(row)}"


def _written(record: Record) -> str:
    balanced = f"; balanced {percent(record.balanced)}" if record.unequal else ""
    return f"{percent(record.accuracy)} ({interval(record.interval)}{balanced})"


def _attacks(row: EvaluatedRun) -> str:
    """Return the attacks of the headline, in words."""
    record = row.attacked
    assert record is not None, "the run was attacked"
    if record.attack != WORST:
        return ensemble_title(record.attack)
    parts = [row.records[name] for name in record.attacks if name in row.records]
    whole = [part for part in parts if part.stages]
    stages = {stage_name(row.records, part, stage) for part in whole for stage in part.stages}
    ensembles = [ensemble_title(part.attack) for part in whole]
    single = {*record.attacks} - {part.attack for part in whole} - stages
    if not ensembles:
        return f"{len(single)} attacks" if len(single) > 1 else "one attack"
    if len(ensembles) + len(single) < 3:
        return join([*ensembles, *sorted(single)])
    return f"{len(stages | single)} attacks, {join(ensembles)} among them"


# Accuracy against the radius


def sweep(runs: Sequence[RunData], norm: str) -> tuple[str, dict[str, dict[float, Record]]]:
    """Return the name of a measure, and for every run judged in a norm its records by radius.

    The measure is the worst case where each run has one at every radius it was judged at, or
    else the strongest attack that all of them share. Radius 0 is clean accuracy. All records are
    of the same images, those with most evaluations.
    """
    attacked = [row for run in runs for row in rows_of(run) if row.attacked]
    judged = [row for row in attacked if row.threat and row.threat[0] == norm]
    uses = Counter(row.images for row in judged)
    images = max(uses, key=lambda images: (uses[images], images), default=None)
    every = [row for row in judged if row.images == images]
    measure = _measure(every)
    rows: dict[str, dict[float, EvaluatedRun]] = {}
    for row in every:
        rows.setdefault(row.run.name, {})[row.evaluation.threat[1]] = row
    records: dict[str, dict[float, Record]] = {}
    for name, by_eps in rows.items():
        largest = max(by_eps.values(), key=lambda row: row.evaluation.n)
        records[name] = {0.0: largest.clean} if largest.clean else {}
        for eps, row in sorted(by_eps.items()):
            record = row.records[measure] if measure else row.attacked
            records[name] |= {eps: record} if record else {}
    return measure, records


def _measure(rows: Sequence[EvaluatedRun]) -> str:
    shared = set.intersection(*(set(row.records) for row in rows)) - {CLEAN} if rows else set()
    if WORST in shared or not shared:
        return WORST if shared else ""
    return min(sorted(shared), key=lambda name: sum(row.records[name].accuracy for row in rows))
