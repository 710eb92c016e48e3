"""The gate: whether stored evaluations meet requirements, by bounds instead of estimates.

An accuracy is met if its lower bound is, a drop if its upper bound is: with 95 % confidence for
each requirement, for new images of the same kind. Nothing is attacked; no torch is imported.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError, short
from equipoise.jobs.gate_folder import (
    CLEAN,
    OWN_POINTS,
    TRANSFER,
    Folder,
    Selection,
    attacks_of,
    eps_exact,
    radius,
    results,
)
from equipoise.measures.paired import drop_bound, images_needed
from equipoise.measures.statistics import interval, outwards
from equipoise.parsing import share
from equipoise.store.audit import FULL
from equipoise.store.pairing import paired
from equipoise.store.records import WORST, Record, stage_of
from equipoise.store.verdicts import Evaluation

ERROR = 0.05  # the chance that the bound of one requirement is wrong
MARGIN = 0.02  # the largest drop against an earlier model, if none is given
UNDECIDED = "undecided"
EXAMPLE = '--require "worst-case>=0.70"'

_REQUIREMENT = re.compile(
    r"(?P<name>[^<>=!~≥≤@()]+(?:\(.*\))?)\s*(?:@(?P<eps>[^<>=!~≥≤]*))?"
    r"(?P<sign>[<>=!~≥≤]+)(?P<value>[^<>=!~≥≤]*)"
)


@dataclass(frozen=True)
class Requirement:
    """The least accuracy that is required.

    Arguments:
        text: The requirement as it was given.
        name: ``clean``, ``worst-case``, or the name of an attack or an ensemble.
        value: The accuracy, in [0, 1].
        above: Whether the bound must be above the value; else it may be equal to it.
        eps: The radius; None: that of the selection.
    """

    text: str
    name: str
    value: float
    above: bool = False
    eps: float | None = None

    @classmethod
    def of(cls, text: str) -> Self:
        """Return the requirement of a text like ``worst-case@8/255>=70%``.

        Raises:
            UserError: If it is none.
        """
        text = text.strip()
        match = _REQUIREMENT.fullmatch(text)
        if match is None:
            raise UserError(
                f"--require {short(text)} is no requirement: write NAME>=VALUE in quotation "
                f"marks, like {EXAMPLE} (without them the shell takes > for the name of a file)"
            )
        name, sign, value = match["name"].strip(), match["sign"], match["value"].strip()
        if sign not in (">=", ">"):
            raise UserError(
                f"--require {short(text)}: {sign} is not known here: a requirement is a lower "
                f'bound, so write >= or >, like "{name}>={value or 0.7}"'
            )
        required = share(value, f"--require {name}{sign}VALUE")
        return cls(
            text, name, required, sign == ">", radius(match["eps"], f"--require {name}@EPS")
        )

    def met(self, bound: float) -> bool:
        """Return whether a lower bound meets it."""
        return bound > self.value if self.above else bound >= self.value


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What one requirement came to.

    Arguments:
        rule: ``requirement``, ``drop``, ``checks``, or ``undecided``.
        name: What was required, in a few words.
        passed: Whether it is met.
        text: The numbers, in one line.
        file: The evaluation that decided it; None: there is none.
    """

    rule: str
    name: str
    passed: bool
    text: str
    file: Path | None = None

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.name}: {self.text}"


def decide(
    run: Path,
    requirements: Sequence[str] = (),
    against: Path | None = None,
    *,
    margin: float | str = MARGIN,
    selection: Selection | None = None,
) -> list[Decision]:
    """Return what each requirement came to; the gate is passed if all of them are met.

    Arguments:
        run: The run folder.
        requirements: Texts like ``worst-case>=0.70`` (:meth:`Requirement.of`).
        against: The run folder of an earlier model, whose accuracy must not fall.
        margin: The largest drop against it, as a fraction or like ``2%``.
        selection: Which evaluations are meant, where the folder holds several.

    Raises:
        UserError: If something cannot be decided.
    """
    if not requirements and against is None:
        raise UserError(f"nothing is required: give {EXAMPLE}, or --against RUN, or both")
    selection, most = selection or Selection(), share(margin, "--margin")
    wanted = [Requirement.of(text) for text in dict.fromkeys(requirements)]
    new, attacked, decisions = Folder.open(run), list[Evaluation](), list[Decision]()
    for each in wanted:
        at = selection if each.eps is None else replace(selection, eps=each.eps)
        evaluation = new.choose(each.name, at)
        decisions.append(_required(each, evaluation))
        if each.name != CLEAN and evaluation not in attacked:
            attacked.append(evaluation)
    folders = [new]
    if against is not None:
        if most >= 1:
            raise UserError(f"--margin {margin} excuses every drop: did you mean 1%, or 0.01?")
        old = Folder.open(against)
        if old.path.resolve() == new.path.resolve():
            raise UserError(f"--against {against} is the run itself: give that of another model")
        for evaluation in attacked or [new.choose(WORST, selection)]:
            decisions += _drops(new, old, evaluation, most)
        folders.append(old)
    decisions += [check for folder in folders for check in _checks(folder)]
    return list(dict.fromkeys(decisions))


def _required(requirement: Requirement, evaluation: Evaluation) -> Decision:
    """Return whether the lower bound of an accuracy meets a requirement."""
    record = results(evaluation)[requirement.name]
    least, error = _least(evaluation, record)
    n, bound = record.n, _lower(least, record.n, error)
    passed = requirement.met(bound)
    text = f"{record.accuracy:.2%} of {n:,} images, "
    if least < record.robust:
        half = f" with {1 - error:.1%} (the draw of the images takes half of the error)"
        text += f"by the audit{half if error < ERROR else ''} at least "
        text += f"{outwards((least / n, 1), 2)[0]:.2f}% of them, "
    text += f"95 % lower bound {outwards((bound, 1), 2)[0]:.2f}%"
    if not passed and least / n > requirement.value:
        needed = _grown(n, lambda m: requirement.met(_lower(least * m // n, m, error)))
        text += _needed(needed, evaluation)
    where = "" if requirement.name == CLEAN else f"{_threat(evaluation)}, "
    return Decision(
        rule="requirement",
        name=requirement.text,
        passed=passed,
        text=f"{text} ({where}{evaluation.name})",
        file=evaluation.path,
    )


def _least(evaluation: Evaluation, record: Record) -> tuple[int, float]:
    """Return how many images are robust at least, and the error that is left for their sampling.

    Where only a part of the images was audited, the audit takes half of the error.
    """
    audit = evaluation.verdicts.audit
    if audit is None and record.attack != CLEAN:
        ensembles = {stage_of(name)[0] for name in evaluation.verdicts.outcomes}
        if any(name.partition("(")[0] == "audited" for name in ensembles):
            raise UserError(
                f"{evaluation.path}: later evaluations replaced what its audit was about: "
                "evaluate with audited again"
            )
    if audit is None or record.attack not in (WORST, stage_of(audit.stages[0])[0]):
        return record.robust, ERROR
    if audit.method == FULL:
        return min(audit.least, record.robust), ERROR
    half = replace(audit, confidence=1 - ERROR / 2)
    return min(half.least, record.robust), ERROR / 2


def _regained(name: str, earlier: Evaluation) -> int:
    """Return how many images more the earlier model may keep under AutoAttack."""
    audit = earlier.verdicts.audit
    return 0 if audit is None or name == CLEAN else audit.most - audit.robust


def _lower(successes: int, n: int, error: float) -> float:
    """Return the exact (Clopper-Pearson) lower bound of a proportion."""
    return interval(successes, n, 1 - 2 * error)[0]


def _grown(n: int, met: Callable[[int], bool]) -> int:
    """Return about the least number of images above n that is enough; some number must be."""
    more = n + 1
    while not met(more):
        more = math.ceil(1.02 * more)
    return more


def _needed(images: int | None, evaluation: Evaluation, audited: bool = False) -> str:
    """Return how many images would decide, if more of them gave the same shares."""
    if images is None:
        more = ", with what the audits leave open: choose a smaller within=" if audited else ""
        return f"; no number of images would decide: the drop is not below the margin{more}"
    digit = 10 ** max(len(str(images)) - 2, 0)
    about = -(-images // digit) * digit  # two digits, rounded up
    there = evaluation.sample.of if evaluation.sample else about
    few = f", but there are only {there:,}" if there < images else ""
    return f"; about {about:,} images with the same result would decide{few}"


def _drops(new: Folder, old: Folder, evaluation: Evaluation, margin: float) -> Iterator[Decision]:
    """Return whether clean accuracy and the worst case fell by at most a margin."""
    earlier = old.like(evaluation)
    _same_attacks(new, evaluation, old, earlier)
    rows = paired(evaluation, earlier)
    for name in (CLEAN, WORST):
        record = results(evaluation)[name]
        least, error = _least(evaluation, record)
        now = _kept(name, evaluation, earlier, new=True)
        before = _kept(name, earlier, evaluation, new=False)[rows]
        lost, gained, both = (int(f.sum()) for f in (before & ~now, now & ~before, now & before))
        observed = f"{100 * (lost - gained) / record.n:.2f} points ({lost:,} images lost, "
        observed += f"{gained:,} gained, of {record.n:,}"
        for flags, e, path in ((now, evaluation, new.path), (before, earlier, old.path)):
            if spared := int(flags.sum()) - results(e)[name].robust:
                observed += f"; {spared:,} that only earlier points broke in {path} are left out"
        unsure = record.robust - least + _regained(name, earlier)
        if unsure:
            observed += f"; {unsure:,} more that the audits leave open count as lost"
        fallen = min(unsure, both)
        lost, gained = lost + fallen, max(gained - (unsure - fallen), 0)
        bound = drop_bound(lost, gained, record.n, 1 - error)
        passed = bound <= margin
        most = outwards((0, bound), 2)[1]
        text = f"{observed}), 95 % upper bound {most:.2f}, margin {100 * margin:g}"
        if not passed:
            needed = images_needed(lost, gained, record.n, margin, 1 - error)
            text += _needed(needed, evaluation, audited=unsure > 0)
        where = "" if name == CLEAN else f" ({_threat(evaluation)})"
        yield Decision(
            rule="drop",
            name=f"drop of {name}{where} against {old.path}",
            passed=passed,
            text=f"{text} ({evaluation.name})",
            file=evaluation.path,
        )


def _kept(name: str, of: Evaluation, other: Evaluation, new: bool) -> NDArray[np.bool_]:
    """Return which images a model keeps under the attacks that both models faced.

    Points of other evaluations are no attack that can be run on both. Where they are not the same
    ones, they count for the new model alone, unless they are of its own earlier attacks.
    """
    told, others = (e.verdicts.outcomes.get(TRANSFER, {}) for e in (of, other))
    same = told.get("ensemble") or told.get("settings") == others.get("settings")
    if name == CLEAN or same or (new and told.get("settings") != OWN_POINTS):
        return results(of)[name].verdict
    return of.verdicts.only(attacks_of(of)).robust


def _same_attacks(new: Folder, evaluation: Evaluation, old: Folder, earlier: Evaluation) -> None:
    """Raise a UserError if two evaluations were attacked in different ways."""
    settings = [
        {
            name: o["settings"].split(", searched")[0]
            for name, o in e.verdicts.outcomes.items()
            if name != TRANSFER  # see _kept
        }
        for e in (evaluation, earlier)
    ]
    passes = [e.verdicts.passes for e in (evaluation, earlier)]
    if settings[0] == settings[1] and len({*passes}) == 1:
        return
    names, most = [attacks_of(e) for e in (evaluation, earlier)], max(passes)
    every, more = list(dict.fromkeys([*names[0], *names[1]])), ["--passes", str(most)] * (most > 1)
    todo = []
    for folder, e, like, own in ((new, evaluation, earlier, 0), (old, earlier, evaluation, 1)):
        missing = [name for name in every if name not in names[own]]
        others = bool(missing) or set(names[0]) != set(names[1])  # the other one lacks some
        if passes[own] < most or not (others or len({*passes}) > 1):
            missing = every
        if missing:
            todo.append(folder.evaluate(missing, Selection.of(e), like, *more))
    raise UserError(
        f"{evaluation.path} and {earlier.path} were not attacked in the same way "
        f"({', '.join(names[0])} against {', '.join(names[1])}, or other settings of them); "
        f"make them equal: {' && '.join(todo)}"
    )


def _checks(folder: Folder) -> Iterator[Decision]:
    """Return what the checks of the evaluations that were used say."""
    for each in folder.used:
        failed = each.failed
        text = f"failed: {', '.join(failed)}; equipoise report shows what they say"
        yield Decision(
            rule="checks",
            name=f"checks of {each.name} in {folder.path}",
            passed=not failed,
            text=text if failed else f"{len(each.findings)} checks, none failed",
            file=each.path,
        )


def _threat(evaluation: Evaluation) -> str:
    return f"{evaluation.verdicts.norm}, eps {eps_exact(evaluation.verdicts.eps)}"
