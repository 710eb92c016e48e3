"""What a reader must know before trusting the numbers: found in the runs, said calmly."""

__all__ = ["Caution", "cautions", "other_code"]

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from equipoise.plugins import changed, command
from equipoise.report.checks import check_cautions
from equipoise.report.results import Row, Threat, sections
from equipoise.report.runs_reader import Run
from equipoise.report.wording import closed, count, join

FEW = 1000

_Finding = tuple[str, str, str]  # run (or ""), headline, text


@dataclass(frozen=True)
class Caution:
    """One reservation: the runs it concerns (none: all of them), a headline, and the reason."""

    runs: tuple[str, ...]
    title: str
    text: str


def cautions(runs: Sequence[Run], headline: Mapping[str, Row]) -> tuple[Caution, ...]:
    """Return the reservations about runs and their results; equal ones are said once.

    Arguments:
        runs: What is reported on.
        headline: The row of results that speaks for each run.
    """
    found: dict[tuple[str, str], list[str]] = {}
    checks = [c for run in runs for c in check_cautions(run, _shown(headline.get(run.name)))]
    checks.sort(key=lambda c: "failed" not in c[1])
    rest = [c for r in runs for c in (*_training(r), *_evaluation(r, headline.get(r.name)))]
    for name, title, text in (*checks, *rest):
        found.setdefault((title, text), []).append(name)
    for _, title, text in _together(runs, headline):
        found.setdefault((title, text), [])
    return tuple(
        Caution(() if len(runs) == 1 else tuple(dict.fromkeys(names)), title, text)
        for (title, text), names in found.items()
    )


def _shown(row: Row | None) -> Threat | None:
    return row.threat if row else None


def _training(run: Run) -> Iterator[_Finding]:
    if run.trained and not run.finished:
        reached = f"{len(run.rounds)} of {run.planned} rounds are logged"
        what = reached if run.rounds else "no round is logged yet"
        yield run.name, "Training has not finished", f"{what}; the curves end there."
    said = run.summary.warnings if run.summary else ()
    for warning in said:
        yield (run.name, *_split(warning))
    never = run.finished and len(run.learners) > 1 and run.start.round is None
    if never and not any("never synchronised" in w.lower() for w in said):
        reason = f" ({run.start.reason})" if run.start.reason else ""
        yield (
            run.name,
            "Never synchronised",
            f"the learners were never handed the global weights{reason}; they trained apart.",
        )
    for note in run.notes:
        yield run.name, "Incomplete file", note
    for text in other_code(run):
        yield run.name, "Other code", closed(text)


def other_code(run: Run) -> list[str]:
    """Return what is to be said of code of the owner's that was another one later."""
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
    return title[:1].upper() + title[1:], closed(text)


def _evaluation(run: Run, row: Row | None) -> Iterator[_Finding]:
    if row is None:
        if run.others and not run.records:
            text = (
                f"only the weights {join(run.others)} were evaluated, and a report tells of the "
            )
            text += f"kept model: `{command('evaluate', run.path)}` evaluates that."
            yield run.name, "The kept model was not evaluated", text
        return
    if row.n < FEW:
        text = f"with {row.told} the intervals are wide; evaluate {count(FEW)} images or more."
        yield run.name, "Few images", text
    for warning in dict.fromkeys(w for r in run.records for w in r.warnings):
        yield (run.name, *_split(warning))
    if len({r.model_sha256 for r in run.records if r.model_sha256}) > 1:
        text = "its records come from different weights; evaluate it again with every attack."
        yield run.name, "More than one model", text
    if any(r.weights == "last" for r in row.records.values()):
        text = "the weights of the last round were evaluated; `equipoise evaluate` takes the kept."
        yield run.name, "Not the kept model", text
    after = [r.attack for r in row.records.values() if not r.entire]
    if after:
        text = f"{join(after)} did not meet the images that other attacks had broken before and "
        text += "counts them as withstood; read the worst case."
        yield run.name, "Ensemble after other attacks", text


def _together(runs: Sequence[Run], headline: Mapping[str, Row]) -> Iterator[_Finding]:
    if not headline:
        return
    if not any(run.undefended for run in runs):
        word = "train `standard`" if any(run.trained for run in runs) else "evaluate one"
        text = f"{word} on the same data: it shows what the defence costs and gains."
        yield "", "No undefended model beside it", text
    if max(map(len, _repetitions(runs).values()), default=2) < 2:
        text = "each recipe was trained once; part of a difference can be the luck of a seed."
        yield "", "One seed", text
    if len({row.images for row in headline.values()}) > 1:
        told = "; ".join(f"{name}: {row.told}" for name, row in headline.items())
        text = f"the runs were judged on different images ({told}): only numbers of one table can "
        text += "be compared."
        yield "", "Different samples", text
    if _images_differ(runs):
        text = "the checksums of the evaluated images differ; the runs cannot be compared closely."
        yield "", "Different images", text
    if any(len(section.worst_of) > 1 for section in sections(runs)):
        text = "the worst case is not over the same attacks in every row; see below its table."
        yield "", "Different attacks", text


def _images_differ(runs: Sequence[Run]) -> bool:
    # Other images are expected where the split or their number is another.
    seen: dict[tuple[str, int], set[str]] = {}
    for record in (record for run in runs for record in run.records):
        if record.data_sha256:
            seen.setdefault((record.split, record.n), set()).add(record.data_sha256)
    return any(len(sums) > 1 for sums in seen.values())


def _repetitions(runs: Sequence[Run]) -> dict[str, set[str | None]]:
    seeds: dict[str, set[str | None]] = {}
    for run in (run for run in runs if run.trained):
        recipe = {k: v for k, v in run.recipe.items() if k not in ("seed", "snapshots")}
        key = json.dumps(recipe, sort_keys=True, default=str) if recipe else run.name
        seeds.setdefault(key, set()).add(run.seed)
    return seeds
