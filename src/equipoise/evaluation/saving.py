"""An evaluation that is stored while it runs, and whose findings are shown."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store
from equipoise.store.finding import Finding
from equipoise.terminal.progress import AttackProgress, Console

SAVE_SECONDS = 5.0
SAVE_SHARE = 20  # a save may cost a twentieth of the time
_SHOWN = ("outputs", "search-form")  # findings that are shown although nothing is wrong


def evaluate_and_save(
    protocol: Protocol,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    store: Store,
    about: Mapping[str, Any],
    origin: Mapping[str, Any],
    console: Console,
    before: Result | None = None,
    resume: bool = False,
    again: str = "",
    advance: Callable[[AttackProgress], None] | None = None,
    **given: Any,
) -> Result:
    """Evaluate a model as :func:`evaluate_by` does, and save the result while it runs.

    Arguments:
        protocol: As for :func:`evaluate_by`, as are the next three.
        model: The model.
        x: The inputs, with shape (N, ...).
        y: The labels, with shape (N,).
        store: Where the result is stored.
        about: What the evaluation is of, and its options.
        origin: The data and the versions that it was made with.
        console: Where progress and findings are shown.
        before: An earlier result on the same model and points; its verdicts count in the stored
            result.
        resume: Whether ``before`` is continued.
        again: The command that continues after an interruption; empty: it is not shown.
        advance: Called with the progress in place of ``console.attack``.
        given: ``others``, ``warm``, ``ahead``, ``control`` and ``classes``, as for
            :func:`evaluate_by`.

    Returns:
        The result that is stored.

    Raises:
        UserError, RunError: As :func:`equipoise.evaluate`; the result up to then is stored.
    """
    saver = _Saver(store, x, about, origin, console, before)
    begun = before if resume else None
    try:
        result = evaluate_by(
            protocol,
            model,
            x,
            y,
            begun=begun,
            advance=advance or console.attack,
            after=saver.after,
            **given,
        )
    except BaseException:
        if saver.latest is not None and saver.latest.outcomes:
            saver.save(saver.latest)
            if again:
                console.say(f"the results so far are kept; continue with: {again}")
        raise
    saver.show(result.findings)
    return saver.save(result, finished=True)


@dataclass
class _Saver:
    """Saves one evaluation, and shows its findings."""

    store: Store
    x: Tensor
    about: Mapping[str, Any]
    origin: Mapping[str, Any]
    console: Console
    before: Result | None
    latest: Result | None = None
    ended: set[str] = field(default_factory=set)
    shown: list[Finding] = field(default_factory=list)
    saved: float = field(default_factory=time.monotonic)
    cost: float = 0.0

    def after(self, result: Result) -> None:
        """Save a result if an attack has ended, or if the last save is some time ago."""
        ended = {name for name, outcome in result.outcomes.items() if outcome.finished}
        due = time.monotonic() - self.saved > max(SAVE_SECONDS, SAVE_SHARE * self.cost)
        self.latest = result
        self.show(result.findings)
        if ended - self.ended or due:
            self.save(result)
        self.ended = ended

    def save(self, result: Result, finished: bool = False) -> Result:
        """Store a result together with the earlier one, and return both joined."""
        start = time.monotonic()
        joined = result.joined(self.before)
        self.store.write(joined, self.x, {**self.about, "finished": finished}, self.origin)
        self.saved, self.cost = time.monotonic(), time.monotonic() - start
        return joined

    def show(self, findings: Sequence[Finding]) -> None:
        """Show the findings that are new, as far as something is wrong."""
        for finding in findings:
            if finding in self.shown:
                continue
            self.shown.append(finding)
            if finding.alarm:
                self.console.warn(f"{finding.check}: {finding.message}; {finding.remedy}")
            elif finding.check in _SHOWN:
                self.console.say(f"{finding.check}: {finding.message}")
