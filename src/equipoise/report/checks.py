"""Checks of evaluations, and cautions that limit how far the numbers can be trusted."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from equipoise.plugins import changed, command
from equipoise.report.content import Block, Section
from equipoise.report.results import WORST, EvaluatedRun, Threat, fold_others, rows_of
from equipoise.report.runs_reader import RunData
from equipoise.report.wording import (
    capital,
    closed,
    count,
    duration,
    images_text,
    join,
    large,
    threat_text,
)
from equipoise.store.finding import STATUSES, Finding
from equipoise.store.verdicts import Evaluation

FEW = 1000  # images

_ALARMS = {"failed": "Check failed", "warning": "Check warns"}

_Caution = tuple[str, str, str]  # run (or ""), headline, text
Caution = tuple[tuple[str, ...], str, str]  # runs (none: all of them), headline, text


# Checks


def check_sections(run: RunData, shown: Threat | None) -> list[Section]:
    """Return the checks and the cost of every evaluation of a run, the shown threat first."""
    return fold_others(run.name, [_checks(run, evaluation) for evaluation in ranked(run, shown)])


def ranked(run: RunData, shown: Threat | None) -> list[Evaluation]:
    """Return the evaluations of a run: the shown threat first, many images before few."""
    return sorted(run.evaluations, key=lambda e: (e.threat != shown, e.threat, -e.n, e.name))


def _checks(run: RunData, evaluation: Evaluation) -> Section:
    blocks = [*findings_shown(evaluation.findings), _cost(run, evaluation)]
    tag = "" if evaluation.finished else "not finished"
    return Section(run.name, blocks, small=_title(evaluation), tag=tag)


def findings_shown(given: Sequence[Finding]) -> list[Block]:
    """Return findings for a page: the alarms first, and the others folded."""
    findings = sorted(given, key=lambda finding: STATUSES.index(finding.status))
    alarms = {
        f"{capital(f.status)}: {f.check}{f' ({f.code})' if f.code else ''}": sentences(f)
        for f in findings
        if f.alarm
    }
    rest = [f for f in findings if not f.alarm]
    passed = sum(f.status == "ok" for f in rest)
    skipped = f", {len(rest) - passed} skipped" if len(rest) > passed else ""
    summary = f"{passed} check{'s' * (passed != 1)} passed{skipped}"
    listed = {f.check: ("skipped: " * (f.status == "skipped")) + f.message for f in rest}
    return [
        *([alarms] if alarms else []),
        *([] if findings else ["No check was made, so the numbers are unchecked."]),
        *([Section(summary, [listed], folded=True)] if rest else []),
    ]


def _title(evaluation: Evaluation) -> str:
    return f"{threat_text(*evaluation.threat)}, {images_text(evaluation.n, evaluation.sample)}"


def sentences(finding: Finding) -> str:
    """Return the result of a check and its remedy, in sentences."""
    return f"{closed(finding.message)} {closed(capital(finding.remedy))}".strip()


def _cost(run: RunData, evaluation: Evaluation) -> dict[str, str]:
    used, memory = evaluation.versions.get("command"), evaluation.memory / 2**20
    facts = {
        "Distances": _distances(evaluation),
        **_work(evaluation),
        "Peak memory": _size(memory) if memory >= 1 else "",
        "Device": str(evaluation.versions.get("device") or ""),
        "Command": f"`{used}`" if used else "",
        "Check it again": f"`{command('verify', run.path)}`",
    }
    return {name: text for name, text in facts.items() if text}


def _size(mebibytes: float) -> str:
    many = mebibytes >= 10 * 1024
    return f"{mebibytes / 1024:.1f}\u00a0GiB" if many else f"{mebibytes:.0f}\u00a0MiB"


def _work(evaluation: Evaluation) -> dict[str, str]:
    """Return the cost of all attacks together."""
    whole = next((r for r in evaluation.records if r.attack == WORST), None)
    if whole is None:
        return {}
    passes = "1 forward pass" if whole.passes == 1 else f"{whole.passes} forward passes"
    images = f"{large(whole.forwards)} images forward, {large(whole.backwards)} backward"
    precision = f"searched in {whole.precision}; every verdict is by {passes} in float32"
    return {
        "Passes": images if whole.forwards else "",
        "Time": f"{duration(whole.seconds)} in the attacks" if whole.seconds else "",
        "Precision": precision,
        "Seed": str(whole.seed),
    }


def _distances(evaluation: Evaluation) -> str:
    far = evaluation.fooled
    if not len(far):
        return ""
    images = "fooled image" if len(far) == 1 else "fooled images"
    return (
        f"of {count(len(far))} {images}: median {np.median(far):.4g}, largest {far.max():.4g} "
        f"({threat_text(*evaluation.threat)})"
    )


# Cautions


def cautions(runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun]) -> list[Caution]:
    """Return the reservations about runs and their results; equal ones are listed once."""
    shown = {name: row.threat for name, row in rows.items()}
    checks = [c for run in runs for c in _check_cautions(run, shown.get(run.name))]
    checks.sort(key=lambda c: "failed" not in c[1])
    own = [c for r in runs for c in (*_training(r), *_evaluation(r, rows.get(r.name)))]
    names_of: dict[tuple[str, str], dict[str, None]] = {}
    for name, title, text in (*checks, *own, *_together(runs, rows)):
        names_of.setdefault((title, text), {})[name] = None
    return [
        (() if len(runs) == 1 else tuple(filter(None, names)), title, text)
        for (title, text), names in names_of.items()
    ]


def _check_cautions(run: RunData, shown: Threat | None) -> Iterator[_Caution]:
    """Yield failed checks, warnings and interruptions; the same of several radii once."""
    order = ranked(run, shown)
    alarms: dict[tuple[str, str], list[tuple[Evaluation, Finding]]] = {}
    for status in _ALARMS:
        for each in order:
            for finding in each.findings:
                if finding.status == status:
                    alarms.setdefault((status, finding.check), []).append((each, finding))
    for (status, check), ((evaluation, finding), *others) in alarms.items():
        where = f"at {_title(evaluation)}: " if len(order) > 1 else ""
        text = f"{where}{sentences(finding)}"
        if others:
            more = "another evaluation" if len(others) == 1 else f"{len(others)} other evaluations"
            text += f" The same holds for {more}: see Checks and cost."
        yield run.name, f"{_ALARMS[status]}: {check}", text
    for evaluation in order:
        if not evaluation.finished:
            last = ("--weights", "last") if evaluation.weights == "last" else ()
            text = (
                f"the evaluation at {_title(evaluation)} was interrupted or still runs, so its "
                f"numbers are preliminary; `{command('evaluate', run.path, '--resume', *last)}` "
                "continues it."
            )
            yield run.name, "Evaluation not finished", text


def _training(run: RunData) -> Iterator[_Caution]:
    if run.picked.get("met") is False:
        needed = run.picked.get("needed")
        more = f"; about {needed:,} held-out images would do" if isinstance(needed, int) else ""
        text = f"this is the nearest model: {run.picked.get('in_words')}{more}."
        yield run.name, "Clean floor not promised", text
    if run.trained and not run.finished:
        logged = f"{len(run.rounds)} of {run.planned} rounds are logged"
        what = logged if run.rounds else "no round is logged yet"
        yield run.name, "Training has not finished", f"{what}; the curves end there."
    for warning in run.warnings:
        yield (run.name, *_split(warning))
    never = run.finished and len(run.learners) > 1 and run.start[0] is None
    if never and not any("never synchronised" in w.lower() for w in run.warnings):
        reason = f" ({run.start[1]})" if run.start[1] else ""
        text = f"the learners never received the global weights{reason}; they trained apart."
        yield run.name, "Never synchronised", text
    for note in run.notes:
        yield run.name, "Incomplete file", note
    for text in other_code(run):
        yield run.name, "Other code", closed(text)


def other_code(run: RunData) -> list[str]:
    """Return which files of the user's code changed after the training."""
    imported = run.provenance.get("import") or run.own.get("import")
    pairs = [(imported, run.provenance.get("resumed_with"))]
    for evaluation in run.evaluations:
        pairs.append((imported, evaluation.versions.get("import")))
        pairs.append((run.own.get("source"), evaluation.versions.get("source")))
    return [text for text in dict.fromkeys(changed(*pair) for pair in pairs) if text]


def _split(warning: str) -> tuple[str, str]:
    title, colon, text = warning.partition(": ")
    if not colon or len(title) > 40:
        title, text = "warning", warning
    return capital(title), closed(text)


def _evaluation(run: RunData, row: EvaluatedRun | None) -> Iterator[_Caution]:
    if row is None:
        if run.others and not run.records:
            text = (
                f"only the weights {join(run.others)} were evaluated, and a report is about the "
                f"kept model: `{command('evaluate', run.path)}` evaluates it."
            )
            yield run.name, "The kept model was not evaluated", text
        return
    if row.evaluation.n < FEW:
        text = f"with {row.images_text} the intervals are wide; evaluate {count(FEW)} images or "
        yield run.name, "Few images", f"{text}more."
    for warning in dict.fromkeys(w for r in run.records for w in r.warnings):
        yield (run.name, *_split(warning))
    if len({e.model_sha256 for e in run.evaluations}) > 1:
        text = "its evaluations are of different weights; evaluate it again with every attack."
        yield run.name, "More than one model", text
    if row.evaluation.weights == "last":
        text = "the weights of the last round were evaluated; `equipoise evaluate` takes the kept."
        yield run.name, "Not the kept model", text
    after = [r.attack for r in row.records.values() if not r.entire]
    if after:
        text = (
            f"{join(after)} was not run on the images that fooled the model under earlier "
            "attacks, and counts them as correct; read the worst case."
        )
        yield run.name, "Ensemble after other attacks", text


def _together(runs: Sequence[RunData], rows: Mapping[str, EvaluatedRun]) -> Iterator[_Caution]:
    if not rows:
        return
    versus = (run.picked.get("constraint") or {} for run in runs)
    if not any(run.undefended for run in runs) and not any(c.get("standard") for c in versus):
        word = "train `standard`" if any(run.trained for run in runs) else "evaluate one"
        text = f"{word} on the same data: it shows what the defence costs and gains."
        yield "", "No undefended model to compare with", text
    trained = [(_settings(run), run.seed) for run in runs if run.trained]
    if trained and not _differ(trained):
        text = "each recipe was trained once; part of a difference can be due to the seed."
        yield "", "One seed", text
    if len({row.images for row in rows.values()}) > 1:
        listed = "; ".join(f"{name}: {row.images_text}" for name, row in rows.items())
        text = f"the runs were evaluated on different images ({listed}): compare only numbers of "
        yield "", "Different samples", f"{text}one table."
    # Other images are expected where the split or their number differs.
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    if _differ(((e.split, e.n), e.about["data_sha256"]) for e in evaluations):
        text = "the checksums of the evaluated images differ; the runs cannot be compared closely."
        yield "", "Different images", text
    every = [row for run in runs for row in rows_of(run)]
    worst = [(row.records[WORST], row) for row in every if WORST in row.records]
    if _differ(((row.threat, row.images), r.attacks) for r, row in worst if r.attacks):
        text = "the worst case is not over the same attacks in every row; see below its table."
        yield "", "Different attacks", text


def _differ(pairs: Iterable[tuple[object, object]]) -> bool:
    """Return whether there are different values of the same key."""
    values: dict[object, set[object]] = {}
    for key, value in pairs:
        values.setdefault(key, set()).add(value)
    return any(len(some) > 1 for some in values.values())


def _settings(run: RunData) -> str:
    """Return the recipe of a run without the seed, or its name where there is no recipe."""
    recipe = {k: v for k, v in run.recipe.items() if k not in ("seed", "snapshots")}
    return json.dumps(recipe, sort_keys=True, default=str) if recipe else run.name
