"""Attacking again: random images that count as robust, as they were attacked before.

A stored adversarial example proves that an image is not robust. Nothing that is stored proves that
the other images were attacked at all. So some of them, drawn at random, are attacked again by the
same attacks, with the same settings and seed. An image that is fooled now was never robust.

With the same machine, threads and torch, and in the same batch, the search gives the same bits.
Otherwise rounding may carry it across a decision boundary that is close: these are counted apart.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from equipoise.attacks.core import Attack
from equipoise.errors import UserError
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.outcome import TRANSFER
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.search import NEAR, together
from equipoise.jobs.verify_stored import recreate
from equipoise.measures.audits import most_failures
from equipoise.store.provenance import machine
from equipoise.version import __version__

ROUNDED = 1e-6  # of pixels in [0, 1] and of margins: a few bits of float32
REPEATED = 8  # images that are attacked again in their first batch, where a bit differs
_HOW = ("seed", "precision", "layout", "compile", "batch_size", "strongest")


@dataclass(frozen=True, kw_only=True)
class Again:
    """The result of attacking some images again.

    Arguments:
        nonce: The text by which the images were drawn.
        claimed: The number of images that count as robust.
        attacked: How many of them were attacked again.
        false: How many of these were fooled.
        near: How many more were fooled by so little that rounding may be the reason.
        same: For how many the strongest point has the same bits, here or in its first batch; None:
            machine, threads or torch are not the same.
        odd: For how many it is another point in its first batch, too.
        left_out: Attacks that cannot be run again here.
    """

    nonce: str
    claimed: int
    attacked: int
    false: int = 0
    near: int = 0
    same: int | None = None
    odd: int = 0
    left_out: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """The problems, a sentence each."""
        problems = []
        if self.false:
            problems.append(
                f"{self.false} of {self.attacked} images that count as robust are fooled by the "
                f"attacks that are named (nonce {self.nonce})"
            )
        if self.odd:
            problems.append(
                f"of {self.attacked} points that were attacked again, {self.odd} are not the "
                f"points of these attacks on this machine (nonce {self.nonce})"
            )
        return problems

    def __str__(self) -> str:
        if not self.attacked:
            return "no image counts as robust, so none was attacked again"
        bits = "" if self.same is None else f", {self.same} with the same bits as before"
        near = f"; {self.near} fooled by so little that it may be rounding" if self.near else ""
        out = f"; left out, as unknown here: {', '.join(self.left_out)}" if self.left_out else ""
        least = most_failures(self.claimed, self.attacked, 0, anytime=False) + 1
        return (
            f"attacked again {self.attacked} of the {self.claimed} images that count as robust "
            f"(nonce {self.nonce}): {self.false} fooled{bits}{near}{out}. If {least} or more of "
            "them were not robust, this would show it with a probability of 95 %"
        )


def attack_again(
    result: Result, x: Tensor, judge: Judge, *, n: int, nonce: str, version: str
) -> Again:
    """Attack random images that count as robust, as they were attacked before.

    Arguments:
        result: The evaluation.
        x: Its images, with shape (N, ...), on the device of the model.
        judge: The judge of its model.
        n: The number of images.
        nonce: Any text; it determines which images are drawn.
        version: The version of equipoise of the evaluation.

    Raises:
        UserError: If the stored settings of the attacks are invalid.
    """
    claimed = result.robust.nonzero()[:, 0].tolist()
    attacks, left_out = _attacks(result)
    n = min(n, len(claimed)) if attacks else 0
    rows = sorted(random.Random(nonce).sample(claimed, n))  # noqa: S311 - no secret
    again = Again(nonce=nonce, claimed=len(claimed), attacked=n, left_out=left_out)
    if not rows:
        return again
    search = _Search(result, x, judge, attacks)
    now = search.run(torch.tensor(rows), attacks)
    fooled = now.correct & ~now.robust
    clean_margin = judge.rule(x[rows], result.y[rows].to(x.device)).margin.cpu()
    near = fooled & (-now.margin <= NEAR * clean_margin)
    same, odd = None, 0
    alike = result.audit is None and not left_out  # the batches of an audit are not stored
    if alike and _same_machine(result, x.device, version) and judge.repeats(x[:1]):
        differing = [i for i, row in enumerate(rows) if search.differs(now, i, row)]
        same = n - len(differing)
        for i in differing[:REPEATED]:
            if search.repeats(rows[i]):
                near[i], same = True, same + 1
            else:
                odd += 1
    near &= fooled
    false = int((fooled & ~near).sum())
    return replace(again, false=false, near=int(near.sum()), same=same, odd=odd)


def _attacks(result: Result) -> tuple[dict[str, Attack], tuple[str, ...]]:
    """Return the attacks of an evaluation, and the names of those that are unknown here."""
    attacks, left_out = {}, []
    for name in result.outcomes:
        if name == TRANSFER:
            continue
        try:
            attacks[name] = recreate(name, result.threat.norm)
        except UserError:
            left_out.append(name)
    return attacks, tuple(left_out)


class _Search:
    """Runs the attacks of an evaluation again, on some of its images."""

    def __init__(
        self, result: Result, x: Tensor, judge: Judge, attacks: Mapping[str, Attack]
    ) -> None:
        self.result, self.x, self.judge, self.attacks = result, x, judge, attacks

    def run(self, rows: Tensor, names: Iterable[str], strongest: bool = True) -> Result:
        """Return the result of some attacks on some images, all together.

        By default the search continues from the first point that fools the model to the strongest
        one: an image that is not fooled has the same point. An attack attacks only the images that
        it attacked before: an audit attacks some of them.
        """
        groups: dict[tuple[Protocol, tuple[bool, ...]], dict[str, Attack]] = {}
        for name in names:
            made = self.result.outcomes[name].made
            if missing := [key for key in _HOW if key not in made]:
                raise UserError(f"the {missing[0]} of {name} is not stored")
            before = tuple(self.result.outcomes[name].attacked[rows].tolist())
            groups.setdefault((Protocol.of(made), before), {})[name] = self.attacks[name]
        results = []
        for (group, before), attacks in groups.items():
            among = torch.tensor(before).nonzero()[:, 0]
            if not len(among):
                continue
            protocol = replace(
                group.under(self.result.threat),
                attacks=attacks,
                individual=True,
                passes=self.judge.passes,
                strongest=strongest or group.strongest,
                checks=False,
            )
            given = self.judge.model, self.x[rows[among]], self.result.y[rows[among]]
            now = evaluate_by(protocol, *given, classes=self.result.classes)
            results.append(self._placed(now, rows, among) if len(among) < len(rows) else now)
        return _joined(results)

    def _placed(self, now: Result, rows: Tensor, among: Tensor) -> Result:
        """Return a result on some of the rows as one on all of them, the others not attacked."""

        def put(values: Tensor, into: Tensor) -> Tensor:
            return into.index_copy(0, among, values)

        y, prediction, x = self.result.y[rows], self.result.prediction[rows], self.x[rows].cpu()
        correct = prediction == y
        return replace(
            now,
            y=y,
            prediction=put(now.prediction, prediction),
            x_adv=put(now.x_adv, x.to(now.x_adv)),
            margin=put(now.margin, torch.full((len(rows),), torch.inf, dtype=now.margin.dtype)),
            adversarial_prediction=put(now.adversarial_prediction, prediction),
            distance=put(now.distance, torch.zeros(len(rows), dtype=now.distance.dtype)),
            outcomes={
                name: replace(
                    o,
                    verdict=put(o.verdict, correct),
                    attacked=put(o.attacked, torch.zeros_like(correct)),
                )
                for name, o in now.outcomes.items()
            },
        )

    def differs(self, now: Result, i: int, row: int) -> bool:
        """Return whether the strongest point of an image is not the stored one.

        Points of other models, which are not made again, may have been stronger.
        """
        margin, stored = float(now.margin[i]), float(self.result.margin[row])
        if TRANSFER in self.result.outcomes and stored < margin:
            return False
        return margin != stored or not torch.equal(now.x_adv[i], self.result.x_adv[row])

    def repeats(self, row: int) -> bool:
        """Return whether the attacks give the stored point, each in its first batch.

        The stored point of an image that counts as robust must be classified correctly.
        """
        results = []
        for name in self.attacks:
            if not self.result.outcomes[name].attacked[row]:
                continue
            batch = self._batch(name, row)
            results.append(_only(self.run(batch, [name], strongest=False), batch == row))
        now, right = _joined(results), float(self.result.margin[row]) >= 0
        return right and (not self.differs(now, 0, row) or self._rounded(now, row))

    def _rounded(self, now: Result, row: int) -> bool:
        """Return whether a point is the stored one but for rounding.

        A search in bfloat16 goes on in float32 near a boundary, there in a batch of other images,
        which is not stored.
        """
        apart = float((now.x_adv[0] - self.result.x_adv[row]).abs().max())
        margins = abs(float(now.margin[0]) - float(self.result.margin[row]))
        low = any(o.made.get("precision") == "bfloat16" for o in self.result.outcomes.values())
        return low and max(apart, margins) <= ROUNDED

    def _batch(self, name: str, row: int) -> Tensor:
        """Return the images of the batch in which an attack attacked an image."""
        outcome, attack = self.result.outcomes[name], self.attacks[name]
        k = len(self.result.classes) or int(self.result.y.max()) + 1
        size = together(attack, k, int(outcome.made["batch_size"]))
        batches = torch.split(outcome.attacked.nonzero()[:, 0], size)
        return next((batch for batch in batches if row in batch), torch.tensor([row]))


def _joined(results: Sequence[Result]) -> Result:
    return reduce(lambda earlier, later: later.joined(earlier), results)


def _only(result: Result, rows: Tensor) -> Result:
    """Return some of the points of a result, without its verdicts."""
    names = ("y", "prediction", "x_adv", "margin", "adversarial_prediction", "distance")
    return replace(result, outcomes={}, **{name: getattr(result, name)[rows] for name in names})


def _same_machine(result: Result, device: torch.device, version: str) -> bool:
    """Return whether everything that bits depend on is the same as in the evaluation."""
    here = machine(str(device))
    made = [o.made for name, o in result.outcomes.items() if name != TRANSFER]
    same = all(here.items() <= dict(there).items() for there in made)
    return device.type == "cpu" and version == __version__ and same
