"""Ensembles stage by stage: whom each attack met, whom it broke, and what it cost."""

__all__ = ["StageTable", "heading", "stage_tables"]

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from equipoise.measures.statistics import interval
from equipoise.report.bars import Bar, bars
from equipoise.report.content import Figure, Key, Picture
from equipoise.report.records_reader import Record, Stage
from equipoise.report.results import (
    CLEAN,
    WORST,
    Row,
    Threat,
    ensemble_title,
    row_of,
    stage_name,
)
from equipoise.report.runs_reader import Run
from equipoise.report.wording import closed, count, join, percent, threat_text


@dataclass(frozen=True)
class StageTable:
    """The stages of one ensemble on one run at one budget."""

    id: str
    run: Run
    row: Row
    record: Record
    interrupted: bool

    @property
    def title(self) -> str:
        """The name of the ensemble, as its authors write it."""
        return ensemble_title(self.record.attack)

    @property
    def threat(self) -> str:
        """The budget and the images, as they are printed."""
        assert self.row.threat is not None, "an ensemble attacks at a budget"
        return f"{threat_text(*self.row.threat)}, {self.row.told}"

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages, in the order in which they ran."""
        return self.record.stages

    @property
    def correct(self) -> int:
        """How many images are classified correctly before the first stage."""
        return self.stages[0].entered

    @property
    def remarks(self) -> tuple[str, ...]:
        """What must be known to read the numbers, a sentence each."""
        return tuple(dict.fromkeys(_remarks(self)))

    @property
    def settings(self) -> tuple[tuple[str, str], ...]:
        """Each stage with its settings."""
        return tuple((stage.attack, stage.settings) for stage in self.stages if stage.settings)

    def figure(self) -> Figure:
        """Return accuracy by attack, and the images that are left after each stage."""
        panels = [_accuracies(self)]
        keys = [Key("without attack", sign="clean"), Key("under attack", sign="attacked")]
        if self.record.entire:
            panels.append(_survivors(self))
            keys.append(Key("broken by this stage", sign="lost"))
        keys.append(Key("95 % interval", sign="whisker"))
        if any(bar.lowest for bar in _bars(self)):
            keys.append(Key("lowest of the single attacks", sign="lowest"))
        caption = "Whiskers are exact 95 % intervals for the number of images."
        return Figure(self.id, caption, tuple(keys), tuple(panels))


def stage_tables(run: Run, shown: Threat | None, identity: str) -> tuple[StageTable, ...]:
    """Return the stages of every ensemble that a run was judged by.

    Arguments:
        run: The run.
        shown: The budget that comes first; the others follow, small ones first.
        identity: What the ids of the figures on the page begin with.
    """
    found = sorted(_found(run), key=lambda f: (f[0].threat != shown, f[0].threat or (), -f[0].n))
    return tuple(
        StageTable(f"{identity}-{i}", run, row, record, interrupted)
        for i, (row, record, interrupted) in enumerate(found)
    )


def heading(tables: Sequence[StageTable]) -> str:
    """Return the heading of a section of such tables."""
    titles = {table.title for table in tables}
    return f"{titles.pop() if len(titles) == 1 else 'Ensembles'}, stage by stage"


def _found(run: Run) -> Iterator[tuple[Row, Record, bool]]:
    for evaluation in run.evaluations:
        row = replace(row_of(run, evaluation), records={r.attack: r for r in evaluation.records})
        for record in row.records.values():
            if record.stages and row.threat:
                whole = evaluation.finished and all(stage.finished for stage in record.stages)
                yield row, record, not whole


def _remarks(table: StageTable) -> Iterator[str]:
    stages = table.stages
    if table.interrupted:
        ended = [s.attack for s in stages if not s.finished]
        during = f" during {join(ended)}" if ended else ""
        yield (
            f"Interrupted{during}: the stages that are missing would leave as many images or "
            "fewer."
        )
    if not table.record.entire:
        yield (
            f"{stages[0].attack} was not tried on images that attacks before the ensemble had "
            "broken, and they count here as if they withstood: only the worst case is a measure."
        )
    if any(s.alone is not None and s.entered < table.correct for s in stages):
        yield (
            "Each stage was also run alone, on all images that are correct without attack; its "
            "passes and seconds are of that."
        )
    apart = [s.attack for s in stages if s.alone is None and s.finished]
    if apart and table.record.entire:
        yield (
            f"{join(apart)} attacked only what those before had left, so their accuracy alone is "
            "not known; `equipoise evaluate --individual` finds it."
        )
    for stage in stages:
        for note in stage.notes:
            yield f"{stage.attack}: {closed(note)}"


def _bars(table: StageTable) -> list[Bar]:
    """Return the bars of accuracy: clean, each attack alone, and all of them together."""
    alone = list(_alone(table))
    least = min((accuracy for _, accuracy, _ in alone), default=0.0)
    several = len(alone) > 1
    rows = [
        Bar(name, value, percent(value), interval=bounds, lowest=several and value == least)
        for name, value, bounds in alone
    ]
    clean = table.row.clean
    if clean:
        text = percent(clean.accuracy)
        rows.insert(0, Bar(CLEAN, clean.accuracy, text, True, interval=clean.interval))
    together = [r for r in _together(table) if r.entire]
    return rows + [
        Bar(r.attack, r.accuracy, percent(r.accuracy), interval=r.interval) for r in together
    ]


def _alone(table: StageTable) -> Iterator[tuple[str, float, tuple[float, float] | None]]:
    """Yield name, accuracy and interval of every single attack whose accuracy alone is known."""
    n = table.row.n
    names = [stage_name(table.row, table.record, stage) for stage in table.stages]
    for record in table.row.records.values():
        single = record.attack not in (CLEAN, WORST) and not record.stages
        if single and record.attack not in names:
            yield record.attack, record.accuracy, record.interval
    for name, stage in zip(names, table.stages, strict=True):
        if stage.alone is not None:
            yield name, stage.alone, interval(round(stage.alone * n), n)


def _together(table: StageTable) -> list[Record]:
    """Return the ensembles, and the worst case where it is of more than one of them."""
    records = table.row.records
    ensembles = [r for r in records.values() if r.stages]
    worst = records.get(WORST)
    if worst is None:
        return ensembles
    own = {stage_name(table.row, table.record, stage) for stage in table.stages}
    own.add(table.record.attack)
    return (
        [*ensembles, worst] if set(worst.attacks) - own or not table.record.entire else ensembles
    )


def _accuracies(table: StageTable) -> Picture:
    rows = _bars(table)
    told = "; ".join(f"{bar.name} {bar.text}" for bar in rows)
    lowest = [bar.name for bar in rows if bar.lowest]
    end = f" Lowest of the single attacks: {join(lowest)}." if lowest else ""
    title = "Accuracy under each attack alone"
    return bars(title, rows, 1, f"{table.id}-alone", f"{title}. {told}.{end}")


def _survivors(table: StageTable) -> Picture:
    n, stages = table.row.n, table.stages
    rows = [Bar("correct, no attack", table.correct, count(table.correct), clean=True)]
    for stage in stages:
        lost = f" (\u2212{count(stage.broken)})" if stage.broken else ""
        text = f"{count(stage.robust)}{lost}"
        rows.append(Bar(f"after {stage.attack}", stage.robust, text, lost=stage.broken))
    told = "; ".join(f"{s.attack} breaks {s.broken} and leaves {s.robust}" for s in stages)
    title = "Images left after each stage"
    spoken = f"{title}: {table.correct} of {n} are correct without attack; {told}."
    last = stages[-1]
    bounds = (last.interval[0] * n, last.interval[1] * n) if last.interval else None
    name = "withstood so far" if table.interrupted else "withstood all"
    rows.append(Bar(name, last.robust, count(last.robust), interval=bounds))
    return bars(title, rows, n, f"{table.id}-left", spoken)
