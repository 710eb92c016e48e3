"""Keeping what an evaluation finds while it goes on, and showing how far it is."""

__all__ = ["Keeper", "Work"]

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from equipoise.evaluation import Finding, Result
from equipoise.jobs.store import Store
from equipoise.jobs.target_model import Subject
from equipoise.terminal.progress import AttackProgress, Console

SAVE_SECONDS = 5.0
SAVE_SHARE = 20  # a save may cost a twentieth of the time


class Work(Protocol):
    """What the keeper works for."""

    console: Console
    subject: Subject

    def keep(self, store: Store, result: Result, about: Mapping[str, Any]) -> None:
        """Keep a result."""


class Keeper:
    """Keeps what one evaluation finds, and shows how far it is.

    Arguments:
        work: The job.
        store: Where the result goes.
        about: What the evaluation is of, and what was asked for.
        before: What is known of the same model and points from before.
    """

    def __init__(
        self, work: Work, store: Store, about: Mapping[str, Any], before: Result | None
    ) -> None:
        self.work, self.store, self.about, self.before = work, store, about, before
        self.latest: Result | None = None
        self.saved, self.cost = time.monotonic(), 0.0
        self.warned: list[Finding] = []

    def advance(self, progress: AttackProgress) -> None:
        """Show progress."""
        self.work.console.attack(progress)

    def after(self, result: Result) -> None:
        """Keep a result, and save it where the last save is a while ago."""
        finished = {name for name, outcome in result.outcomes.items() if outcome.finished}
        ended = finished - {n for n, o in _outcomes(self.latest).items() if o.finished}
        self.latest = result
        self._warn(result.findings)
        if ended or time.monotonic() - self.saved > max(SAVE_SECONDS, SAVE_SHARE * self.cost):
            self._save(result)

    def end(self, result: Result) -> None:
        """Keep the whole."""
        self.latest = None
        self._warn(result.findings)
        self._save(result, finished=True)
        self._checked(result.findings)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Save what was found last, whatever ends the block."""
        try:
            yield
        except BaseException:
            if self.latest is not None and self.latest.outcomes:
                self._save(self.latest)
                again = self.work.subject.resuming
                self.work.console.say(f"what was found is kept; go on with: {again}")
            raise

    def _save(self, result: Result, finished: bool = False) -> None:
        began = time.monotonic()
        joined = result.joined(self.before)
        self.work.keep(self.store, joined, {**self.about, "finished": finished})
        self.saved, self.cost = time.monotonic(), time.monotonic() - began

    def _warn(self, findings: Sequence[Finding]) -> None:
        for finding in findings:
            if finding in self.warned:
                continue
            if finding.status in ("warning", "failed"):
                self.work.console.warn(f"{finding.check}: {finding.message}; {finding.remedy}")
                self.warned.append(finding)
            elif finding.check in _SAID:
                self.work.console.say(f"{finding.check}: {finding.message}")
                self.warned.append(finding)

    def _checked(self, findings: Sequence[Finding]) -> None:
        if findings:
            counts: dict[str, int] = {}
            for finding in findings:
                counts[finding.status] = counts.get(finding.status, 0) + 1
            told = ", ".join(f"{count} {status}" for status, count in counts.items())
            self.work.console.say(f"checks of the evaluation: {told}")


_SAID = ("outputs", "search-form")  # what is said though nothing is wrong


def _outcomes(result: Result | None) -> Mapping[str, Any]:
    return result.outcomes if result is not None else {}
