"""The audit of an evaluation: what AutoAttack would find among the images that a search left.

The images are fixed, and AutoAttack's verdict on an image does not depend on the others, since its
random numbers are keyed by the image. So the misses of the search are a fixed number, and images
drawn at random bound it exactly (:func:`equipoise.measures.audits.most_failures`). The j-th round
of an audit has the error alpha / 2^j; together all rounds have at most alpha. No torch.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.measures.audits import most_failures, most_failures_together
from equipoise.measures.statistics import outwards

Flags = NDArray[np.bool_]

NEAR = 1e-4  # of the median margin: a search moves so much when its rounding differs
FULL, ANYTIME = "full", "anytime-valid"


@dataclass(frozen=True, kw_only=True)
class AuditRound:
    """One round of an audit: images drawn at random, until one falls or the bound is reached.

    Arguments:
        items: The images that were left and not yet under the whole of AutoAttack.
        checked: How many of them, in random order, went through the whole of AutoAttack.
        failed: How many of these fell.
        widened: The stages of AutoAttack that were then run on all images that were left.
        found: How many images they broke.
        reason: Why they were run.
    """

    items: int
    checked: int = 0
    failed: int = 0
    widened: tuple[str, ...] = ()
    found: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An audit, and what follows from it for the images of an evaluation.

    Arguments:
        nonce: The text that, with the digest, determines the random order.
        digest: The SHA-256 of the evaluation: model, images, labels, threat and seed.
        within: The difference of accuracies at which the audit ends.
        budget: The share of AutoAttack's passes at which it ends.
        stages: The names of the outcomes of AutoAttack's stages.
        searched: The names of the outcomes of the search that is audited.
        confidence: The probability with which the bound holds.
        rounds: The rounds, in their order.
        finished: Whether it has ended by itself.
        n: The number of images of the evaluation.
        robust: How many of them are robust under all attacks.
        near: How many images are misclassified, and how many are robust, by less than rounding.
        passes: The passes of search and audit as a share of those of AutoAttack on the images that
            the search left, estimated from the audited ones; None: unknown.
    """

    nonce: str
    digest: str
    within: float
    budget: float
    stages: tuple[str, ...]
    searched: tuple[str, ...] = ()
    confidence: float = 0.95
    rounds: tuple[AuditRound, ...] = ()
    finished: bool = False
    n: int = 0
    robust: int = 0
    near: tuple[int, int] = (0, 0)
    passes: float | None = None

    @property
    def ensemble(self) -> str:
        """The name of the audited search."""
        return self.stages[0].rpartition("/")[0]

    @property
    def survivors(self) -> int:
        """The images that the search left, before the audit."""
        return self.rounds[0].items if self.rounds else self.robust

    @property
    def audited(self) -> int:
        """The images that went through the whole of AutoAttack."""
        return self.survivors if self.method == FULL else sum(r.checked for r in self.rounds)

    @property
    def missed(self) -> int:
        """The images that the search left and that the audit broke."""
        return sum(r.failed + r.found for r in self.rounds)

    @property
    def remaining(self) -> int:
        """Return how many more images would fall to AutoAttack at the most."""
        bounds, later, drawn = [self.robust], 0, sum(r.checked > 0 for r in self.rounds)
        for each in reversed(self.rounds):
            later += each.found
            if each.checked:
                confidence = 1 - (1 - self.confidence) / 2**drawn
                most = most_failures(each.items, each.checked, each.failed, confidence)
                bounds.append(max(most - each.failed - later, 0))
                drawn -= 1
            if each.checked >= each.items:
                bounds.append(0)
            later += each.failed
        return min(bounds)

    @property
    def method(self) -> str:
        """``full`` if all images went through the whole of AutoAttack; else ``anytime-valid``."""
        last = self.rounds[-1] if self.rounds else AuditRound(items=self.robust)
        return FULL if last.checked >= last.items else ANYTIME

    @property
    def least(self) -> int:
        """At least so many images are robust under all attacks that ran, and AutoAttack."""
        return max(self.robust - self.remaining - self.near[1], 0)

    @property
    def most(self) -> int:
        """At most so many images are robust under all attacks that ran, and AutoAttack."""
        return self.robust + self.near[0]

    @property
    def lower(self) -> float:
        """The lower bound of the accuracy under these attacks, in [0, 1]."""
        return self.least / self.n if self.n else 0.0

    @property
    def upper(self) -> float:
        """The upper bound of the accuracy under these attacks, in [0, 1]."""
        return self.most / self.n if self.n else 0.0

    @property
    def widened(self) -> tuple[str, ...]:
        """The stages of AutoAttack that ran on all images that were left."""
        return tuple(dict.fromkeys(name for r in self.rounds for name in r.widened))

    def __str__(self) -> str:
        return self.sentence

    @property
    def claim(self) -> str:
        """The lower bound in words."""
        if self.method == FULL:
            return f"all {self.survivors} images that the search left went through AutoAttack"
        bound = f"{self.confidence:.0%}, valid at any stop"
        least, _ = outwards((self.lower, 1))
        return f"AutoAttack would report at least {least:.1f}% ({bound})"

    @property
    def sentence(self) -> str:
        """Return the result in one or two sentences."""
        n, left, found = max(self.n, 1), self.robust, f"{self.missed or 'none'} missed"
        why = "; ".join(dict.fromkeys(r.reason for r in self.rounds if r.reason))
        if self.method == FULL:
            every = f"all {self.survivors} images that the search left went through it, {found}"
            said = f"{left / n:.1%} of {n:,} images are robust under AutoAttack itself: "
            said += every if self.survivors else "the search left no image"
        else:
            said = (
                f"{left / n:.1%} of {n:,} images were left by the search"
                f"{' and the audit' * bool(self.missed)}; {self.claim}: {self.audited} of "
                f"{self.survivors} audited, {found}"
            )
        if self.widened:
            said += f" ({', '.join(self.widened)} ran on all images that were left: {why})"
        if self.passes is not None:
            said += f"; about {self.passes:.0%} of AutoAttack's passes"
        if any(self.near):
            said += f"; rounding may decide {sum(self.near)} of {n:,} images (in both bounds)"
        return said if self.finished else f"{said}; the audit was interrupted"

    def made(self, outcomes: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        """Return how the audited search was made; ``outcomes`` says it for each attack."""
        own = (how for name, how in outcomes.items() if name.startswith(f"{self.ensemble}/"))
        return next(own, {})

    def content(self) -> dict[str, Any]:
        """Return the audit as plain values, without what follows from the verdicts."""
        return {key: value for key, value in asdict(self).items() if key not in _COUNTED}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the audit that plain values describe.

        Raises:
            ValueError, TypeError: If they do not describe one.
        """
        stored = {f.name for f in fields(cls)} - _COUNTED
        if set(content) != stored:
            raise ValueError(f"expected {', '.join(sorted(stored))} of an audit")
        rounds = tuple(
            AuditRound(**{**each, "widened": tuple(each["widened"])}) for each in content["rounds"]
        )
        for each in rounds:
            if not 0 <= each.failed <= each.checked <= each.items:
                raise ValueError(f"impossible counts in a round of an audit: {each}")
        names = {key: tuple(content[key]) for key in ("stages", "searched")}
        return cls(**{**content, **names, "rounds": rounds})

    def counted(
        self,
        correct: Flags,
        robust: Flags,
        margin: NDArray[Any],
        costs: Mapping[str, tuple[int, int]],
    ) -> Self:
        """Return the audit with what follows from the verdicts.

        Arguments:
            correct: Which clean images are classified correctly, with shape (N,).
            robust: Which are so under all attacks, with shape (N,).
            margin: The smallest margin of each image, with shape (N,).
            costs: The passes of each attack, and the number of its images.
        """
        finite = np.abs(margin[correct & np.isfinite(margin)])
        tiny = NEAR * float(np.median(finite)) if len(finite) else 0.0
        near = correct & (np.abs(margin) <= tiny)
        counts = int((near & ~robust).sum()), int((near & robust).sum())
        new = replace(self, n=len(robust), robust=int(robust.sum()), near=counts)
        return replace(new, passes=new._passes(costs))

    def _passes(self, costs: Mapping[str, tuple[int, int]]) -> float | None:
        """Return the share of AutoAttack's passes on the images that the search left."""
        whole = sum(costs[s][0] / costs[s][1] for s in self.stages if costs.get(s, (0, 0))[1])
        own = f"{self.ensemble}/"
        spent = sum(cost for name, (cost, _) in costs.items() if name.startswith(own))
        return spent / (whole * self.survivors) if whole and self.survivors else None


def missed_together(audits: Sequence[Audit], confidence: float = 0.95) -> float:
    """Return by how much AutoAttack would report less, at the most and on average over models.

    It is one bound for all models together, as a difference of accuracies in [0, 1]; the bounds of
    single models hold one at a time.
    """
    audits = list(
        {audit.digest: audit for audit in audits}.values()
    )  # the same one is no new draw
    strata, seen, images = [], 0, sum(audit.n for audit in audits)
    again = 1 / (2 * max(len(audits), 1))  # the weight of another round
    for audit in audits:
        drawn = [each for each in audit.rounds if each.checked]
        if audit.method == FULL:
            continue
        last = drawn[-1] if drawn else AuditRound(items=audit.robust)
        weight = (1 - again) * again ** max(len(drawn) - 1, 0)
        strata.append((last.items, last.checked, last.failed, weight))
        seen += last.failed + last.found
    more = most_failures_together(strata, confidence) - seen if strata else 0
    near = sum(audit.near[1] for audit in audits)
    return max(more + near, 0) / images if images else 0.0


_COUNTED = frozenset({"n", "robust", "near", "passes"})


def evaluation_digest(
    *, model: str, data: str, labels: str, norm: str, eps: float, seed: int
) -> str:
    """Return the SHA-256 of what is audited: model, images, labels (digests), threat and seed."""
    content = {"model": model, "data": data, "labels": labels, "norm": norm, "seed": seed}
    text = json.dumps(content | {"eps": repr(eps)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def random_order(
    digest: str, nonce: str, label: str, images: Sequence[bytes], rows: Sequence[int]
) -> list[int]:
    """Return rows in the order of SHA-256(digest, nonce, label, image); nobody can choose it.

    Copies of an image are numbered, so that each is drawn by itself.

    Arguments:
        digest: The digest of the evaluation.
        nonce: Any text.
        label: What the order is for: each round of an audit has its own.
        images: A digest of each image.
        rows: The rows to order.
    """
    head, copies, keys = f"{digest}\n{nonce}\n{label}\n".encode(), Counter[bytes](), []
    for image in images:
        number = f"\n{copies[image]}".encode() if copies[image] else b""
        keys.append(hashlib.sha256(head + image + number).digest())
        copies[image] += 1
    return sorted(rows, key=lambda row: (keys[row], row))


def check_nonce(nonce: str | None) -> None:
    """Raise a UserError for an empty nonce."""
    if nonce is not None and not nonce.strip():
        raise UserError("the nonce is empty: give any text, or leave it out")
