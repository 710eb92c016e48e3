"""Attacking again: random images that are said to be robust, as they were attacked before.

That an image was fooled is proved by the example that is stored. That others withstood is only
said: nothing in the file shows that they were attacked at all. So some of them, drawn at random,
are attacked again: by the same attacks, with the same settings and seed. One that is fooled now
was never robust.

Where the machine, its threads and torch are those of then, the search is the same to the bit, in
the batch that it ran in then. Elsewhere, and in other batches, rounding may carry it past a
boundary that is near: such flips are counted apart.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from equipoise.attacks.core import Attack
from equipoise.errors import UserError
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.outcome import Outcome
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.search import NEAR, TRANSFER
from equipoise.jobs.verify_stored import recreate
from equipoise.measures.statistics import would_be_found
from equipoise.store.provenance import machine
from equipoise.version import __version__

SECOND = 8  # points that are looked at in their first batch, where a bit differs
_HOW = ("seed", "precision", "layout", "compile", "batch_size", "strongest")


@dataclass(frozen=True, kw_only=True)
class Again:
    """What attacking some points again found.

    Arguments:
        nonce: What they were drawn by.
        claimed: How many images are said to be robust.
        looked_at: How many of them were attacked again.
        false: How many of these were fooled.
        near: How many more were fooled by so little that rounding may have done it.
        same: For how many the strongest point was the same to the bit, here or in the batch that
            it was found in; None where machine, threads or torch are others than then.
        odd: For how many it was another one in that batch, too.
        left_out: Attacks that cannot be run again here.
    """

    nonce: str
    claimed: int
    looked_at: int
    false: int = 0
    near: int = 0
    same: int | None = None
    odd: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """Return what is wrong, a sentence each."""
        said = []
        if self.false:
            said.append(
                f"{self.false} of {self.looked_at} images that are said to be robust are fooled "
                f"by the attacks that are named (nonce {self.nonce})"
            )
        if self.odd:
            said.append(
                f"of {self.looked_at} points that were attacked again, {self.odd} are not what "
                f"these attacks find on this machine (nonce {self.nonce})"
            )
        return said

    def __str__(self) -> str:
        if not self.looked_at:
            return "no image is said to be robust, so none was attacked again"
        bits = ""
        if self.same is not None:
            bits = f", {self.same} gave the same bits as before"
        near = f"; {self.near} fooled by so little that rounding may do it" if self.near else ""
        out = f"; left out, as not known here: {', '.join(self.left_out)}" if self.left_out else ""
        least = would_be_found(self.claimed, self.looked_at)
        return (
            f"attacked again {self.looked_at} of the {self.claimed} images that are said to be "
            f"robust (nonce {self.nonce}): {self.false} fooled{bits}{near}{out}. If {least} or "
            "more of them were not robust, this finds one with a probability of 95 %"
        )


def attack_again(
    result: Result, x: Tensor, judge: Judge, *, n: int, nonce: str, version: str
) -> Again:
    """Attack random images that are said to be robust, as they were attacked before.

    Arguments:
        result: The evaluation.
        x: Its images, with shape (N, ...), on the device of the model.
        judge: Decides, for its model.
        n: How many points.
        nonce: Any text; it chooses the points.
        version: The version of equipoise that the evaluation is of.

    Raises:
        UserError: If what is said of how the attacks ran cannot be followed.
    """
    claimed = result.robust.nonzero()[:, 0].tolist()
    attacks, left_out = _attacks(result)
    n = min(n, len(claimed)) if attacks else 0
    rows = sorted(random.Random(nonce).sample(claimed, n))  # noqa: S311 - no secret
    found = Again(nonce=nonce, claimed=len(claimed), looked_at=n, left_out=left_out)
    if not rows:
        return found
    search = _Search(result, x, judge, attacks)
    now = search.on(torch.tensor(rows))
    fooled = now.correct & ~now.robust
    lead = judge.rule(x[rows], result.y[rows].to(x.device)).margin.cpu()
    near = fooled & (-now.margin <= NEAR * lead)
    same, odd = None, 0
    if not left_out and _alike(result, x.device, version) and judge.repeats(x[:1]):
        differs = [place for place, row in enumerate(rows) if search.differs(now, place, row)]
        as_then = {place: search.as_then(rows[place]) for place in differs[:SECOND]}
        odd = sum(not found for found in as_then.values())
        near[[place for place, found in as_then.items() if found]] = True
        same = n - len(differs) + sum(as_then.values())
    near &= fooled
    return replace(
        found, false=int((fooled & ~near).sum()), near=int(near.sum()), same=same, odd=odd
    )


def _attacks(result: Result) -> tuple[dict[str, Attack], tuple[str, ...]]:
    """Return the attacks of an evaluation, and the names of those that are not known here."""
    found, left_out = {}, []
    for name in result.outcomes:
        if name == TRANSFER:
            continue
        try:
            found[name] = recreate(name, result.threat.norm)
        except UserError:
            left_out.append(name)
    return found, tuple(left_out)


class _Search:
    """The search of an evaluation, on some of its points.

    Arguments:
        result: The evaluation.
        x: Its images.
        judge: Decides.
        attacks: Its attacks, by the names of their outcomes.
    """

    def __init__(
        self, result: Result, x: Tensor, judge: Judge, attacks: Mapping[str, Attack]
    ) -> None:
        self.result, self.x, self.judge, self.attacks = result, x, judge, attacks

    def on(self, rows: Tensor, names: Sequence[str] = (), whole: bool = True) -> Result:
        """Return what the attacks find on some of the points, all together.

        Arguments:
            rows: The points.
            names: The attacks; none: all of them.
            whole: Whether the search goes on from a point that is fooled to a stronger one: for
                those that withstand it is the same.
        """
        groups: dict[Protocol, dict[str, Attack]] = {}
        for name in names or self.attacks:
            groups.setdefault(_made(self.result.outcomes[name]), {})[name] = self.attacks[name]
        found: Result | None = None
        for made, attacks in groups.items():
            protocol = replace(
                made.under(self.result.threat),
                attacks=attacks,
                individual=True,
                passes=self.judge.passes,
                strongest=whole or made.strongest,
                checks=False,
            )
            given = self.judge.model, self.x[rows], self.result.y[rows]
            now = evaluate_by(protocol, *given, classes=self.result.classes)
            found = now.joined(found)
        assert found is not None, "there is an attack"
        return found

    def differs(self, now: Result, place: int, row: int) -> bool:
        """Tell whether the strongest point of an image is another one than then.

        Points of other models may have been stronger then; they are not made again.
        """
        margin, stored = float(now.margin[place]), float(self.result.margin[row])
        if TRANSFER in self.result.outcomes and stored < margin:
            return False
        return margin != stored or not torch.equal(now.x_adv[place], self.result.x_adv[row])

    def as_then(self, row: int) -> bool:
        """Tell whether the attacks find the stored point, each in the batch that it ran in.

        Of a point that is said to withstand it must be one that the model answers rightly.
        """
        found: Result | None = None
        for name, attack in self.attacks.items():
            batch = self._batch(name, attack, row)
            found = _only(self.on(batch, [name], whole=False), batch == row).joined(found)
        assert found is not None, "there is an attack"
        return float(self.result.margin[row]) >= 0 and not self.differs(found, 0, row)

    def _batch(self, name: str, attack: Attack, row: int) -> Tensor:
        """Return the images that an attack met together with one of them."""
        outcome = self.result.outcomes[name]
        met = outcome.attacked.nonzero()[:, 0]
        k = len(self.result.classes) or int(self.result.y.max()) + 1
        each = attack.rows_per_example(k) if hasattr(attack, "rows_per_example") else 1
        size = max(1, int(outcome.made["batch_size"]) // each)
        return next(
            (batch for batch in torch.split(met, size) if row in batch), torch.tensor([row])
        )


def _made(outcome: Outcome) -> Protocol:
    """Return how an attack was run, as far as its outcome says."""
    missing = [key for key in _HOW if key not in outcome.made]
    if missing:
        raise UserError(f"it does not say with which {missing[0]} its attacks ran")
    return Protocol.of(outcome.made)


def _only(result: Result, rows: Tensor) -> Result:
    """Return the points of a result that are chosen, without its verdicts."""
    names = ("y", "prediction", "x_adv", "margin", "adversarial_prediction", "distance")
    return replace(result, outcomes={}, **{name: getattr(result, name)[rows] for name in names})


def _alike(result: Result, device: torch.device, version: str) -> bool:
    """Tell whether this machine is the one of then, as far as bits depend on it."""
    here = machine(str(device))
    made = [o.made for name, o in result.outcomes.items() if name != TRANSFER]
    same = all(here.items() <= dict(then).items() for then in made)
    return device.type == "cpu" and version == __version__ and same
