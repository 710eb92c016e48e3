"""The audit of a cheap search: random images that it leaves go through the whole of AutoAttack.

1. Screens: a few of the images are searched longer and without gradients, and the search itself
   is looked at. A red screen widens the audit.
2. A round: images in the order of SHA-256(evaluation, nonce, image), each under all stages of
   AutoAttack, until the bound on the misses is within the limit or the budget is spent.
3. A miss widens the audit: the stage that found it runs on all images that are left, and a new
   round begins, with half the error. When all stages have run on all images, the result is that of
   AutoAttack itself.

The same images, verdicts and nonce give the same audit. So it can be repeated from stored verdicts
(:class:`Replay`), and an interrupted one is conducted anew, where images that a stage has attacked
are not attacked again.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from equipoise.errors import RunError
from equipoise.measures.audits import checks_needed
from equipoise.store.audit import Audit, AuditRound, Flags, random_order
from equipoise.terminal.progress import AttackProgress

FIRST = 20  # images of the first part of a round, so that a blind search is seen at once
PART = 64  # images of each other part
SEARCH = 0.03  # the share of AutoAttack's passes that the search takes on images that are left
PROBED = 64  # images of the screens


class Auditable(Protocol):
    """What is audited."""

    survivors: list[int]  # the images that the search left
    images: list[bytes]  # a digest of each image
    red: dict[str, str]  # the stages that red screens call for, with the reason

    def screens(self, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Run the screens on some images."""
        ...

    def attack(self, stage: str, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Run a stage of AutoAttack on some images."""
        ...

    def fallen(self, stage: str, rows: Sequence[int]) -> set[int]:
        """Return which images a stage broke; ``screens`` stands for all screens."""
        ...


@dataclass
class Auditing:
    """Conducts an audit.

    Arguments:
        subject: What is audited.
        log: The settings of the audit; at the end with its rounds.
        n: The number of images of the evaluation.
        stages: The stages of AutoAttack, in their order.
    """

    subject: Auditable
    log: Audit
    n: int
    stages: Sequence[str]
    left: set[int] = field(default_factory=set)
    whole: set[int] = field(default_factory=set)  # that went through all stages
    run_on_all: set[str] = field(default_factory=set)
    noted: list[tuple[AuditRound, ...]] = field(default_factory=lambda: [()])  # so far, each time

    def run(self) -> Iterator[AttackProgress]:
        """Conduct the audit; afterwards ``log`` is finished."""
        self.left = set(self.subject.survivors)
        probed = self._ordered("screens", self.left)[:PROBED]
        yield from self.subject.screens(probed)
        self.left -= self.subject.fallen("screens", probed)
        if red := self.subject.red:
            begun = AuditRound(items=len(self.left))
            yield from self._widen(begun, [s for s in self.stages if s in red], red)
        number = 0
        while True:
            number += 1
            rows = self._ordered(f"round {number}", self.left - self.whole)
            done, broke = AuditRound(items=len(rows)), dict[str, int]()
            self._note(done)
            while not broke and (size := self._next(done, number)):
                part = rows[done.checked : done.checked + size]
                for stage in self.stages:
                    gone = yield from self._attacked(stage, part)
                    if gone:
                        broke[stage] = gone
                self.whole.update(part)
                failed = done.failed + sum(broke.values())
                done = replace(done, checked=done.checked + len(part), failed=failed)
                self._note(done)
            if not broke:
                break
            counts = ", ".join(f"{stage} broke {k}" for stage, k in broke.items())
            reason = f"{counts} of {done.checked} audited images"
            yield from self._widen(done, list(broke), dict.fromkeys(broke, reason))
        self._note(done)
        self.log = replace(self.log, finished=True)

    def _ordered(self, label: str, rows: set[int]) -> list[int]:
        log = self.log
        return random_order(log.digest, log.nonce, label, self.subject.images, sorted(rows))

    def _attacked(self, stage: str, rows: Sequence[int]) -> Generator[AttackProgress, None, int]:
        """Run a stage on those of the images that are left; return how many it broke."""
        rows = [row for row in rows if row in self.left]
        if stage not in self.run_on_all and rows:
            yield from self.subject.attack(stage, rows)
            gone = self.subject.fallen(stage, rows)
            self.left -= gone
            return len(gone)
        return 0

    def _widen(
        self, begun: AuditRound, stages: Sequence[str], reasons: Mapping[str, str]
    ) -> Iterator[AttackProgress]:
        """Run stages of AutoAttack on all images that are left, and note it with a round."""
        reason = "; ".join(dict.fromkeys(reasons[stage] for stage in stages))
        begun = replace(begun, widened=tuple(stages), reason=reason)
        for stage in stages:
            gone = yield from self._attacked(stage, sorted(self.left - self.whole))
            self.run_on_all.add(stage)
            begun = replace(begun, found=begun.found + gone)
        if self.run_on_all.issuperset(self.stages):
            self.whole |= self.left
        self._note(begun, again=begun.checked > 0)

    def _note(self, done: AuditRound, *, again: bool = True) -> None:
        """Note a round; the last one again if it is the same round."""
        rounds = self.log.rounds
        same = again and rounds and not rounds[-1].widened and rounds[-1].items == done.items
        self.log = replace(self.log, rounds=(*(rounds[:-1] if same else rounds), done))
        self.noted.append(self.log.rounds)

    def _next(self, done: AuditRound, number: int) -> int:
        """Return how many images the next part of a round has; 0: the round ends."""
        confidence = 1 - (1 - self.log.confidence) / 2**number
        tolerated = int(self.log.within * self.n + 1e-9)
        needed = checks_needed(done.items, tolerated, confidence)
        share = self.log.budget if self.log.budget == 1 else max(self.log.budget - SEARCH, 0)
        affordable = int(share * done.items)
        planned = min(max(min(needed, affordable), FIRST), done.items)
        part = PART if done.checked else FIRST
        return min(part, planned - done.checked)


@dataclass
class Replay:
    """Stored verdicts of an evaluation that are audited again, without a model.

    Arguments:
        survivors: The images that the search left.
        images: A digest of each image.
        broken: Which images each stage of AutoAttack, and ``screens``, broke, with shape (N,).
        attacked: Which images each stage attacked; None, or for a stage: all.
        red: The stages that red screens call for, with the reason.
    """

    survivors: list[int]
    images: list[bytes]
    broken: Mapping[str, Flags]
    attacked: Mapping[str, Flags] | None = None
    red: dict[str, str] = field(default_factory=dict)

    def screens(self, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Look whether the screens ran."""
        yield from self.attack("screens", rows)

    def attack(self, stage: str, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Look whether the stage attacked the images; raise a RunError if not."""
        if self.attacked is not None and stage in self.attacked:
            missing = int(np.count_nonzero(~self.attacked[stage][list(rows)]))
            if missing:
                raise RunError(f"{missing} images for {stage}")
        yield from ()

    def fallen(self, stage: str, rows: Sequence[int]) -> set[int]:
        """Return which images a stage broke."""
        flags = self.broken.get(stage)
        return set() if flags is None else {row for row in rows if flags[row]}
