"""Evaluating with a store: what was found is saved every few batches and at the end."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store
from equipoise.store.finding import Finding
from equipoise.terminal.progress import Console

SAVE_SECONDS = 5.0
SAVE_SHARE = 20  # a save may cost a twentieth of the time
_SAID = ("outputs", "search-form")  # findings that are shown though nothing is wrong


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
    **given: Any,
) -> Result:
    """Evaluate a model, and save what is found while the evaluation goes on.

    Arguments:
        protocol: How, with its threat.
        model: The model.
        x: The inputs, with shape (N, ...).
        y: The labels, with shape (N,).
        store: Where the result is stored.
        about: What the evaluation is of, and what was asked for.
        origin: Where it is made.
        console: Where progress and findings are shown.
        before: An earlier result on the same model and points, which counts in the stored one.
        resume: Whether that is gone on with.
        again: The command that goes on after an interruption; empty: it is not shown.
        given: ``others``, ``warm``, ``control`` and ``classes``, as for :func:`evaluate_by`.

    Returns:
        The result that is stored.

    Raises:
        UserError, RunError: As :func:`equipoise.evaluate`; what was found is stored.
    """
    saver = _Saver(store, x, about, origin, console, before)
    begun = before if resume else None
    try:
        result = evaluate_by(
            protocol, model, x, y, begun=begun, advance=console.attack, after=saver.after, **given
        )
    except BaseException:
        saver.interrupted(again)
        raise
    return saver.end(result)


class _Saver:
    """Saves one evaluation, and shows its findings."""

    def __init__(
        self,
        store: Store,
        x: Tensor,
        about: Mapping[str, Any],
        origin: Mapping[str, Any],
        console: Console,
        before: Result | None,
    ) -> None:
        self.store, self.x, self.about, self.origin = store, x, about, origin
        self.console, self.before = console, before
        self.latest: Result | None = None
        self.ended: set[str] = set()
        self.saved, self.cost = time.monotonic(), 0.0
        self.shown: list[Finding] = []

    def after(self, result: Result) -> None:
        """Save a result where an attack ended, or the last save is a while ago."""
        ended = {name for name, outcome in result.outcomes.items() if outcome.finished}
        due = time.monotonic() - self.saved > max(SAVE_SECONDS, SAVE_SHARE * self.cost)
        self.latest = result
        self._show(result.findings)
        if ended - self.ended or due:
            self._save(result)
        self.ended = ended

    def interrupted(self, again: str) -> None:
        """Save what was found last."""
        if self.latest is not None and self.latest.outcomes:
            self._save(self.latest)
            if again:
                self.console.say(f"what was found is kept; go on with: {again}")

    def end(self, result: Result) -> Result:
        """Save the whole, and return it."""
        self._show(result.findings)
        return self._save(result, finished=True)

    def _save(self, result: Result, finished: bool = False) -> Result:
        began = time.monotonic()
        joined = result.joined(self.before)
        about = {**self.about, "finished": finished}
        self.store.write(joined, self.x, about, self.origin)
        self.saved, self.cost = time.monotonic(), time.monotonic() - began
        return joined

    def _show(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding in self.shown:
                continue
            self.shown.append(finding)
            if finding.alarm:
                self.console.warn(f"{finding.check}: {finding.message}; {finding.remedy}")
            elif finding.check in _SAID:
                self.console.say(f"{finding.check}: {finding.message}")
