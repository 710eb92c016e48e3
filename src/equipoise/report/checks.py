"""The checks of an evaluation and what it cost: what went wrong first, all of it at hand."""

__all__ = ["CheckList", "check_cautions", "check_lists", "ranked", "said"]

from collections.abc import Iterator
from dataclasses import dataclass

from equipoise.plugins import command
from equipoise.report.evaluations_reader import Evaluation, Finding
from equipoise.report.results import Threat
from equipoise.report.runs_reader import Run
from equipoise.report.wording import closed, count, duration, images_text, large, threat_text

_ALARMS = {"failed": "Check failed", "warning": "Check warns"}


@dataclass(frozen=True)
class CheckList:
    """What the checks of one evaluation found, and what the evaluation cost."""

    evaluation: Evaluation
    facts: tuple[tuple[str, str], ...]

    @property
    def title(self) -> str:
        """The budget and the number of images."""
        return _title(self.evaluation)

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """What failed, then what warns."""
        return _alarms(self.evaluation)

    @property
    def rest(self) -> tuple[Finding, ...]:
        """What passed, then what was skipped."""
        return tuple(f for f in self.evaluation.findings if f.status not in _ALARMS)

    @property
    def summary(self) -> str:
        """How many passed and were skipped."""
        passed = sum(f.status == "ok" for f in self.rest)
        skipped = len(self.rest) - passed
        checks = "1 check" if passed == 1 else f"{passed} checks"
        return f"{checks} passed" + (f", {skipped} skipped" if skipped else "")


def check_lists(run: Run, shown: Threat | None) -> tuple[CheckList, ...]:
    """Return the checks of every evaluation of a run, those at the shown budget first."""
    return tuple(CheckList(e, _facts(run, e)) for e in ranked(run, shown))


def ranked(run: Run, shown: Threat | None) -> list[Evaluation]:
    """Return the evaluations of a run: the shown budget first, many images before few."""
    return sorted(run.evaluations, key=lambda e: (e.threat != shown, e.threat, -e.n, e.name))


def check_cautions(run: Run, shown: Threat | None) -> Iterator[tuple[str, str, str]]:
    """Yield the name of the run, a headline and the reason of every reservation.

    Checks that failed come first. A check that says the same at several budgets speaks once.
    """
    order = ranked(run, shown)
    found: dict[tuple[str, str], list[tuple[Evaluation, Finding]]] = {}
    for status in _ALARMS:
        for evaluation in order:
            for finding in _alarms(evaluation):
                if finding.status == status:
                    found.setdefault((status, finding.check), []).append((evaluation, finding))
    for (status, check), alarms in found.items():
        evaluation, finding = alarms[0]
        where = f"at {_title(evaluation)}: " if len(order) > 1 else ""
        text = f"{where}{said(finding)}"
        if others := len(alarms) - 1:
            more = "another evaluation" if others == 1 else f"{others} other evaluations"
            text += f" It says so of {more}, too: see Checks and cost."
        yield run.name, f"{_ALARMS[status]}: {check}", text
    for evaluation in order:
        if not evaluation.finished:
            yield run.name, "Evaluation not finished", _interrupted(run, evaluation)


def _alarms(evaluation: Evaluation) -> tuple[Finding, ...]:
    return tuple(f for f in evaluation.findings if f.status in _ALARMS)


def _title(evaluation: Evaluation) -> str:
    return f"{threat_text(*evaluation.threat)}, {images_text(evaluation.n, evaluation.sample)}"


def said(finding: Finding) -> str:
    """Return what was seen and what to do about it, in sentences."""
    remedy = finding.remedy[:1].upper() + finding.remedy[1:]
    return f"{closed(finding.message)} {closed(remedy)}".strip()


def _interrupted(run: Run, evaluation: Evaluation) -> str:
    last = ("--weights", "last") if evaluation.weights == "last" else ()
    return (
        f"the one at {_title(evaluation)} was interrupted (or still runs), so what it says is "
        f"preliminary; go on with `{command('evaluate', run.path, '--resume', *last)}`."
    )


def _facts(run: Run, evaluation: Evaluation) -> tuple[tuple[str, str], ...]:
    versions = evaluation.versions
    used = versions.get("command")
    facts = (
        ("Distances", _distances(evaluation)),
        ("Passes", _passes(evaluation)),
        ("Time", _time(evaluation)),
        ("Peak memory", _size(evaluation.memory)),
        ("Precision", _precision(evaluation)),
        ("Seed", _seed(evaluation)),
        ("Device", str(versions.get("device") or "")),
        ("Command", f"`{used}`" if used else ""),
        ("Check it again", f"`{command('verify', run.path)}`"),
    )
    return tuple((name, text) for name, text in facts if text)


def _distances(evaluation: Evaluation) -> str:
    far = evaluation.distances
    if far is None:
        return ""
    norm, eps = evaluation.threat
    images = "image that is" if far.fooled == 1 else "images that are"
    return (
        f"of {count(far.fooled)} {images} fooled: median {far.median:.4g}, largest "
        f"{far.largest:.4g} ({threat_text(norm, eps)})"
    )


def _passes(evaluation: Evaluation) -> str:
    whole = evaluation.whole
    if whole is None or not whole.forwards:
        return ""
    return f"{large(whole.forwards)} images forward, {large(whole.backwards)} backward"


def _time(evaluation: Evaluation) -> str:
    whole = evaluation.whole
    return f"{duration(whole.seconds)} in the attacks" if whole and whole.seconds else ""


def _size(memory: int) -> str:
    mebibytes = memory / 2**20
    if mebibytes < 1:
        return ""
    large = mebibytes >= 10 * 1024
    return f"{mebibytes / 1024:.1f}\u00a0GiB" if large else f"{mebibytes:.0f}\u00a0MiB"


def _precision(evaluation: Evaluation) -> str:
    whole = evaluation.whole
    if whole is None or not whole.precision:
        return ""
    passes = "1 forward pass" if whole.passes == 1 else f"{whole.passes} forward passes"
    return f"searched in {whole.precision}; every verdict is by {passes} in float32"


def _seed(evaluation: Evaluation) -> str:
    whole = evaluation.whole
    return "" if whole is None or whole.seed is None else str(whole.seed)
