"""What was measured, side by side: rows of equal footing, the best of a column, a verdict."""

__all__ = [
    "CLEAN",
    "WORST",
    "Cell",
    "Row",
    "Section",
    "Threat",
    "best",
    "doubt",
    "ensemble_title",
    "headline_rows",
    "row_of",
    "rows_of",
    "sections",
    "stage_name",
    "strongest",
    "sweep",
    "verdicts",
]

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from equipoise.report.evaluations_reader import Evaluation
from equipoise.report.records_reader import Record, Stage
from equipoise.report.runs_reader import Run
from equipoise.report.wording import images_text, interval, join, percent, threat_text
from equipoise.sample import Sample

CLEAN = "clean"
WORST = "worst-case"

Threat = tuple[str, float]
Mark = str  # "": not the best; "best": ahead of all others; "close": ahead within the interval


@dataclass(frozen=True)
class Row:
    """Everything measured for one run on the same images at one budget."""

    run: Run
    threat: Threat | None
    split: str
    n: int
    sample: Sample | None
    records: Mapping[str, Record]
    failed: tuple[str, ...] = ()  # checks; with one of them the numbers cannot be trusted

    @property
    def images(self) -> tuple[int, str]:
        """What is the same for rows of the same images: their number and checksum."""
        return self.n, self.sample.sha256 if self.sample else ""

    @property
    def told(self) -> str:
        """How many images, and which, in a few words."""
        return images_text(self.n, self.sample)

    @property
    def clean(self) -> Record | None:
        """Accuracy without a perturbation."""
        return self.records.get(CLEAN)

    @property
    def attacked(self) -> Record | None:
        """The worst case, or the strongest single attack where there is no worst case."""
        return self.records.get(WORST) or strongest(self.records.values())

    @property
    def worst_class(self) -> tuple[str, float] | None:
        """Name and accuracy of the class that fares worst, under attack if there was one."""
        record = self.attacked or self.clean
        return record.worst_class if record else None


@dataclass(frozen=True)
class Cell:
    """One number of a table with its interval and its standing in the column."""

    record: Record | None
    mark: Mark = ""

    @property
    def text(self) -> str:
        """The accuracy in percent."""
        return percent(self.record.accuracy if self.record else None)

    @property
    def interval(self) -> str:
        """The 95 % interval in percent, without the sign."""
        return interval(self.record.interval if self.record else None)


@dataclass(frozen=True)
class Section:
    """The table of one budget on the same images: its columns are attacks, its rows runs.

    Arguments:
        threat: The budget.
        images: Which images they are, in words; empty where that goes without saying.
        columns: The attacks.
        rows: The runs.
    """

    threat: Threat | None
    images: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Row, tuple[Cell, ...]], ...]

    @property
    def title(self) -> str:
        """The budget and the images, as they are printed."""
        budget = threat_text(*self.threat) if self.threat else "No perturbation"
        return f"{budget}, {self.images}" if self.images else budget

    @property
    def marks(self) -> frozenset[Mark]:
        """The marks that occur, to be explained below the table."""
        return frozenset(cell.mark for _, cells in self.rows for cell in cells) - {""}

    @property
    def settings(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each attack with the settings it was run with; more than one where runs differ."""
        return tuple(
            (name, settings)
            for name in self.columns
            if name not in (CLEAN, WORST) and (settings := _settings(self.rows, name))
        )

    @property
    def worst_of(self) -> tuple[tuple[str, ...], ...]:
        """The sets of attacks behind the column of the worst case."""
        found = (row.records.get(WORST) for row, _ in self.rows)
        return tuple(dict.fromkeys(r.attacks for r in found if r and r.attacks))


def ensemble_title(name: str) -> str:
    """Return the name of an ensemble as its authors write it; other names as they are."""
    head, _, rest = name.partition("-")
    return f"AutoAttack{'-' * bool(rest)}{rest}" if head == "autoattack" else name


def stage_name(row: Row, ensemble: Record, stage: Stage) -> str:
    """Return the name under which a stage stands among other attacks.

    It is the stage's own, unless another attack of the row has that.
    """
    full = f"{ensemble.attack}/{stage.attack}"
    other = row.records.get(stage.attack)
    taken = other and (other.settings, other.accuracy) != (stage.settings, stage.alone)
    return full if full in row.records or taken else stage.attack


def strongest(records: Iterable[Record]) -> Record | None:
    """Return the record of the single attack that left the fewest images correct."""
    attacks = [r for r in records if r.attack not in (CLEAN, WORST)]
    return min(attacks, key=lambda r: r.accuracy, default=None)


def rows_of(run: Run) -> tuple[Row, ...]:
    """Return what was measured for a run, one row an evaluation."""
    rows = [row for evaluation in run.evaluations if (row := row_of(run, evaluation)).records]
    perturbed = any(row.threat for row in rows)
    return tuple(row for row in rows if row.threat or not perturbed)


def row_of(run: Run, evaluation: Evaluation) -> Row:
    """Return what one evaluation measured, as far as it is at its end."""
    records = {record.attack: record for record in evaluation.told}
    first = evaluation.records[0]  # of the clean images
    failed = tuple(f.check for f in evaluation.findings if f.status == "failed")
    where = first.threat, first.split, evaluation.n, evaluation.sample
    return Row(run, *where, records, failed)


def sections(runs: Sequence[Run]) -> tuple[Section, ...]:
    """Return one table per budget and sample of images, small budgets and many images first."""
    tables: dict[tuple[Threat, tuple[int, str]], list[Row]] = {}
    for row in (row for run in runs for row in rows_of(run)):
        tables.setdefault((row.threat or ("", 0.0), row.images), []).append(row)
    several = Counter(threat for threat, _ in tables)
    order = sorted(tables, key=lambda key: (key[0], -key[1][0], key[1][1]))
    return tuple(_section(tables[key], several[key[0]] > 1) for key in order)


def _section(rows: Sequence[Row], several: bool) -> Section:
    threat, sample = rows[0].threat, rows[0].sample
    images = rows[0].told if several else ""
    if sample is not None:
        images = sample.words("images")
    names = dict.fromkeys(name for row in rows for name in row.records)
    attacks = [name for name in names if name not in (CLEAN, WORST)]
    columns = tuple(n for n in (CLEAN, *attacks, WORST) if n in names)
    marks = {name: _marks([row.records.get(name) for row in rows]) for name in columns}
    return Section(
        threat,
        images,
        columns,
        tuple(
            (row, tuple(Cell(row.records.get(name), marks[name][i]) for name in columns))
            for i, row in enumerate(rows)
        ),
    )


def _marks(records: Sequence[Record | None]) -> list[Mark]:
    present = [r for r in records if r]
    if len(present) < 2:
        return [""] * len(records)
    top = max(r.accuracy for r in present)
    rest = [r for r in present if r.accuracy < top]
    ties = len(present) - len(rest) > 1
    marks: list[Mark] = []
    for record in records:
        if record is None or record.accuracy < top or not rest:
            marks.append("")
        else:
            marks.append("close" if ties or any(_overlap(record, r) for r in rest) else "best")
    return marks


def _overlap(best: Record, other: Record) -> bool:
    if best.interval is None or other.interval is None:
        return True
    return best.interval[0] <= other.interval[1]


def _settings(rows: Sequence[tuple[Row, tuple[Cell, ...]]], name: str) -> tuple[str, ...]:
    found = (row.records.get(name) for row, _ in rows)
    return tuple(dict.fromkeys(r.settings for r in found if r and r.settings))


def headline_rows(runs: Sequence[Run]) -> dict[str, Row]:
    """Return one row per run to speak of first: the budget it was trained for, or the largest.

    A run that was not attacked at the budget of its training speaks with its largest one, in the
    norm of its training if there is any, on as many images as it has: never with a kinder one.
    """
    rows = {run.name: rows_of(run) for run in runs}
    return {name: max(found, key=_rank) for name, found in rows.items() if found}


def _rank(row: Row) -> tuple[object, ...]:
    trained, threat = row.run.threat, row.threat or ("", 0.0)
    return (
        row.attacked is not None,
        threat == trained,
        trained is not None and threat[0] == trained[0],
        threat[1],
        WORST in row.records,
        row.n,
    )


def verdicts(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return what the runs achieve, a sentence each.

    Two runs that were judged alike, one of them undefended, share a sentence.
    """
    defended = [row for row in rows if not row.run.undefended]
    plain = [row for row in rows if row.run.undefended]
    if len(defended) == len(plain) == 1 and _alike(defended[0], plain[0]):
        beside = f"; the undefended {plain[0].run.name} keeps {_kept(plain[0])}."
        return (_sentence(defended[0]) + beside,)
    return tuple(f"{_sentence(row)}." for row in (*defended, *plain))


def best(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return which of many runs keep most under attack and most on clean images.

    Only runs that were judged like the first one are compared, and that is said of the others.
    """
    alike = [row for row in rows if _alike(row, rows[0])] if rows else []
    attacked = [row for row in alike if row.attacked]
    found = []
    if attacked:
        found.append(("under attack", max(attacked, key=lambda row: _share(row.attacked))))
    if any(row.clean for row in alike):
        found.append(("on clean images", max(alike, key=lambda row: _share(row.clean))))
    told = [
        f"Best {where} of {len(alike)} runs: {_sentence(row).replace('The un', 'the un', 1)}."
        for where, row in found
    ]
    if len(alike) < len(rows):
        told.append(f"{len(rows) - len(alike)} more were judged otherwise: see the tables.")
    return tuple(told)


def _share(record: Record | None) -> float:
    return record.accuracy if record else -1.0


def _alike(one: Row, two: Row) -> bool:
    def terms(row: Row) -> tuple[object, ...]:
        judge = row.attacked
        attacks = (judge.attack, set(judge.attacks)) if judge else ()
        return row.threat, row.split, row.images, attacks, row.clean is None

    return terms(one) == terms(two)


def _kept(row: Row) -> str:
    parts = [percent(r.accuracy) for r in (row.clean, row.attacked) if r]
    return " and ".join(parts) + doubt(row)


def doubt(row: Row) -> str:
    """Return what the failed checks of an evaluation make of its numbers; nothing without any."""
    if not row.failed:
        return ""
    checks = "check" if len(row.failed) == 1 else "checks"
    return f", but the numbers cannot be trusted (failed {checks}: {join(row.failed)})"


def _sentence(row: Row) -> str:
    who = f"The undefended {row.run.name}" if row.run.undefended else row.run.name
    clean = f"{percent(row.clean.accuracy)} clean" if row.clean else ""
    images = row.told
    if row.attacked is None or row.threat is None:
        return f"{who} keeps {clean} ({images}); it has not been attacked{doubt(row)}"
    under = f"{percent(row.attacked.accuracy)} under {_judge(row)}"
    norm, _, eps = threat_text(*row.threat).partition(", ")
    kept = " and ".join(filter(None, (clean, under)))
    return f"{who} keeps {kept} at {eps} ({norm}, {images}){doubt(row)}"


def _judge(row: Row) -> str:
    record = row.attacked
    assert record is not None, "the row was attacked"
    if record.attack != WORST:
        return ensemble_title(record.attack)
    parts = [row.records[name] for name in record.attacks if name in row.records]
    whole = [part for part in parts if part.stages]
    stages = {stage_name(row, part, stage) for part in whole for stage in part.stages}
    ensembles = [ensemble_title(part.attack) for part in whole]
    single = {*record.attacks} - {part.attack for part in whole} - stages
    if not ensembles:
        return f"the worst of {len(single)} attacks" if len(single) > 1 else "the worst case"
    if len(ensembles) + len(single) < 3:
        return " and ".join((*ensembles, *sorted(single)))
    return f"the worst of {len(stages | single)} attacks, {join(ensembles)} among them"


def sweep(runs: Sequence[Run], norm: str) -> tuple[str, dict[str, dict[float, Record]]]:
    """Return accuracy by budget for every run that was judged in a norm, and under what.

    The measure is the worst case where each run has one at every budget it was judged at, or
    else the strongest attack that all of them share. Budget 0 is clean accuracy. All are of the
    same images, those on which most was measured; what is of others is left out.

    Returns:
        Name of the measure, and for each run its records by budget.
    """
    rows: dict[str, dict[float, Row]] = {}
    judged = (row for run in runs for row in rows_of(run))
    known = Counter(r.images for r in judged if r.threat and r.threat[0] == norm and r.attacked)
    images = max(known, key=lambda images: (known[images], images), default=None)
    for run in runs:
        for row in rows_of(run):
            if row.threat and row.threat[0] == norm and row.attacked and row.images == images:
                rows.setdefault(run.name, {})[row.threat[1]] = row
    every = [row for by_eps in rows.values() for row in by_eps.values()]
    measure = _measure(every)
    found = {
        name: {
            eps: record
            for eps, row in sorted(by_eps.items())
            if (record := row.records[measure] if measure else row.attacked)
        }
        for name, by_eps in rows.items()
    }
    for name, by_eps in rows.items():
        largest = max(by_eps.values(), key=lambda r: r.n)
        if largest.clean:
            found[name] = {0.0: largest.clean, **found[name]}
    return measure, found


def _measure(rows: Sequence[Row]) -> str:
    shared = set.intersection(*(set(row.records) for row in rows)) - {CLEAN} if rows else set()
    if WORST in shared or not shared:
        return WORST if shared else ""
    return min(sorted(shared), key=lambda name: sum(row.records[name].accuracy for row in rows))
