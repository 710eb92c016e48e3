"""Ensembles stage by stage: how many images each attack met and fooled, and what it cost."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from equipoise.measures.statistics import interval
from equipoise.report.bars import Bar, bars
from equipoise.report.content import Block, Figure, Key, Picture, Section
from equipoise.report.results import (
    CLEAN,
    WORST,
    EvaluatedRun,
    Threat,
    ensemble_title,
    fold_others,
    record_table,
    stage_name,
)
from equipoise.report.runs_reader import RunData
from equipoise.report.wording import closed, count, join, percent, threat_text
from equipoise.store.records import STAGE_COLUMNS, Record

Records = dict[str, Record]
CLEAN_KEY = Key("without attack", sign="clean")
ATTACKED_KEY = Key("under attack", sign="attacked")
INTERVAL_KEY = Key("95 % interval", sign="whisker")


def stage_sections(run: RunData, shown: Threat | None, identity: str) -> list[Section]:
    """Return the stages of every ensemble that a run was evaluated with.

    The threat ``shown`` comes first; the others follow, small radii first, and are folded.
    """
    ensembles = [
        (row, {r.attack: r for r in row.evaluation.records}, record)
        for row in (EvaluatedRun(run, evaluation) for evaluation in run.evaluations)
        for record in row.evaluation.records
        if record.stages and row.threat
    ]
    ensembles.sort(key=lambda e: (e[0].threat != shown, e[0].threat or (), -e[0].evaluation.n))
    sections = [_section(*each, f"{identity}-{i}") for i, each in enumerate(ensembles)]
    return fold_others(run.name, sections)


def _section(row: EvaluatedRun, records: Records, ensemble: Record, identity: str) -> Section:
    interrupted = not (row.evaluation.finished and all(s.finished for s in ensemble.stages))
    title = ensemble_title(ensemble.attack)
    heading = f"Stages of {title}, {row.run.name}"
    table = record_table("stages", heading, STAGE_COLUMNS, ensemble.stages)
    broken = sum(stage.broken for stage in ensemble.stages)
    entered = ensemble.stages[0].entered
    total = replace(ensemble, attack=title, entered=entered, broken=broken)
    blocks: list[Block] = [
        _figure(row, records, ensemble, interrupted, identity),
        replace(table, foot=record_table("", "", STAGE_COLUMNS, [total]).rows[0]),
        *dict.fromkeys(_remarks(row, ensemble, interrupted)),
    ]
    where = f"{title}, {threat_text(*row.evaluation.threat)}, {row.images_text}"
    return Section(row.run.name, blocks, small=where, tag="interrupted" if interrupted else "")


def _remarks(row: EvaluatedRun, ensemble: Record, interrupted: bool) -> Iterator[str]:
    stages = ensemble.stages
    if interrupted:
        ended = [s.attack for s in stages if not s.finished]
        during = f" during {join(ended)}" if ended else ""
        yield f"Interrupted{during}: the missing stages can only lower the accuracy."
    if not ensemble.entire:
        yield (
            f"{stages[0].attack} was not run on the images that fooled the model under earlier "
            "attacks, and they count here as correct: only the worst case is a measure."
        )
    if any(s.alone is not None and s.entered < stages[0].entered for s in stages):
        yield (
            "Each stage was also run alone, on all images that are correct without attack; its "
            "passes and its time are of that."
        )
    audit = row.evaluation.verdicts.audit
    if audit is not None and audit.ensemble == ensemble.attack:
        yield f"Audit (nonce {audit.nonce}): {audit.sentence}."
    apart = [s.attack for s in stages if s.alone is None and s.finished and audit is None]
    if apart and ensemble.entire:
        yield (
            f"{join(apart)} attacked only the images that were still robust after the earlier "
            "stages, so the accuracy under each of them alone is unknown; "
            "`equipoise evaluate --individual` measures it."
        )
    for stage in stages:
        for note in stage.notes:
            yield f"{stage.attack}: {closed(note)}"


# Pictures


def accuracy_bars(row: EvaluatedRun, identity: str) -> Figure:
    """Return the accuracy of a run under each attack of an evaluation as bars."""
    ordered = sorted(row.records.values(), key=lambda r: (r.attack != CLEAN, r.attack == WORST))
    rows = list(map(_bar, ordered))
    picture = _accuracy_picture("Accuracy under each attack", rows, identity)
    return Figure(identity, _WHISKERS, (CLEAN_KEY, ATTACKED_KEY, INTERVAL_KEY), (picture,))


_WHISKERS = "Whiskers are exact 95 % intervals for the number of images."


def _bar(record: Record) -> Bar:
    text, clean = percent(record.accuracy), record.attack == CLEAN
    return Bar(record.attack, record.accuracy, text, clean, interval=record.interval)


def _figure(
    row: EvaluatedRun, records: Records, ensemble: Record, interrupted: bool, identity: str
) -> Figure:
    """Return accuracy by attack, and the images that are left after each stage."""
    rows = _stage_bars(row.evaluation.n, records, ensemble)
    panels = [_accuracy_picture("Accuracy under each attack alone", rows, f"{identity}-alone")]
    keys = [CLEAN_KEY, ATTACKED_KEY]
    if ensemble.entire:
        panels.append(_remaining(row.evaluation.n, ensemble.stages, interrupted, identity))
        keys.append(Key("fooled by this stage", sign="lost"))
    keys.append(INTERVAL_KEY)
    if any(bar.lowest for bar in rows):
        keys.append(Key("lowest of the single attacks", sign="lowest"))
    return Figure(identity, _WHISKERS, tuple(keys), tuple(panels))


def _stage_bars(n: int, records: Records, ensemble: Record) -> list[Bar]:
    """Return the bars of accuracy: clean, each attack alone, and all of them together."""
    names = [stage_name(records, ensemble, stage) for stage in ensemble.stages]
    single = (r for r in records.values() if r.attack not in (CLEAN, WORST, *names))
    alone = [(r.attack, r.accuracy, r.interval) for r in single if not r.stages]
    for name, stage in zip(names, ensemble.stages, strict=True):
        if stage.alone is not None:
            alone.append((name, stage.alone, interval(round(stage.alone * n), n)))
    least = min((accuracy for _, accuracy, _ in alone), default=0.0)
    several = len(alone) > 1
    rows = [
        Bar(name, value, percent(value), interval=bounds, lowest=several and value == least)
        for name, value, bounds in alone
    ]
    if CLEAN in records:
        rows.insert(0, _bar(records[CLEAN]))
    return rows + [_bar(record) for record in _together(records, ensemble) if record.entire]


def _together(records: Records, ensemble: Record) -> list[Record]:
    """Return the ensembles, and the worst case where it is of more than one of them."""
    ensembles = [r for r in records.values() if r.stages]
    own = {stage_name(records, ensemble, stage) for stage in ensemble.stages} | {ensemble.attack}
    worst = records.get(WORST)
    more = worst is not None and (set(worst.attacks) - own or not ensemble.entire)
    return [*ensembles, worst] if worst is not None and more else ensembles


def _accuracy_picture(title: str, rows: Sequence[Bar], identity: str) -> Picture:
    listed = "; ".join(f"{bar.name} {bar.text}" for bar in rows)
    lowest = [bar.name for bar in rows if bar.lowest]
    end = f" Lowest of the single attacks: {join(lowest)}." if lowest else ""
    return bars(title, rows, 1, identity, f"{title}. {listed}.{end}")


def _remaining(n: int, stages: Sequence[Record], interrupted: bool, identity: str) -> Picture:
    first, last = stages[0].robust + stages[0].broken, stages[-1]
    rows = [Bar("correct, no attack", first, count(first), clean=True)]
    for stage in stages:
        lost = f" (\u2212{count(stage.broken)})" if stage.broken else ""
        text = f"{count(stage.robust)}{lost}"
        rows.append(Bar(f"after {stage.attack}", stage.robust, text, lost=stage.broken))
    bounds = (last.interval[0] * n, last.interval[1] * n)
    name = "robust so far" if interrupted else "robust"
    rows.append(Bar(name, last.robust, count(last.robust), interval=bounds))
    listed = "; ".join(f"{s.attack} breaks {s.broken} and leaves {s.robust}" for s in stages)
    title = "Images left after each stage"
    spoken = f"{title}: {first} of {n} are correct without attack; {listed}."
    return bars(title, rows, n, f"{identity}-left", spoken)
