r"""Auto-PGD: projected gradient ascent without a step size to choose.

==================  ============================================================================
APGD-CE             on the cross-entropy
APGD-DLR            on the difference of logits ratio, which no scale of the logits masks
APGD-T              on the targeted ratio, towards each of the highest other classes of the clean
                    logits
==================  ============================================================================

The steps are described in :mod:`equipoise.attacks.apgd_ascent`. From the same start the iterates
are those of the authors' code, with its peculiarities: at the first checkpoint one comparison is
with zero, and after a restart from the best point the last move is kept.

Starts, as there: for Linf uniform noise scaled to reach eps, for L2 a random direction at eps,
for L1 Gaussian noise projected. For L1 the search goes through balls of 3 eps and 2 eps first
(``largereps``), each time from the best point projected onto the next; only the ball of eps
counts.

Deviations, none of which makes the attack weaker:

* The projection is the exact one on ball and range; the authors project onto the L2 ball, then
  clip, which leaves budget unused at the border. Elsewhere both agree.
* A gradient gives a full step however small it is.
* All targets of an example are rows of one batch. As soon as one is misclassified, all rows of
  the example leave. The first misclassified point is returned, not the last.
* An example that stays robust comes back as its point of the smallest margin, not as it was.
* With ``eot`` > 1 the verdict is that of the mean class probabilities, not of a single pass.
* An L1 perturbation changes an entry only if by more than a millionth of eps; there, the rounding
  of the projection counts, too.

References:
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    | Attacks (Croce and Hein, 2020)
    | https://arxiv.org/abs/2003.01690
    | Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers (Croce and Hein,
    | 2021)
    | https://arxiv.org/abs/2103.01208
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd_ascent import Ascent, SparseAscent, phases
from equipoise.attacks.core import prepared, refuse, uncounted, wrong_norms
from equipoise.draws import Draws
from equipoise.errors import Part, out_of_range
from equipoise.execution.form import Fast, guest, input_gradient
from equipoise.losses import cross_entropy, dlr, dlr_targeted, margin
from equipoise.threat import Norm, Threat


@dataclass(frozen=True, kw_only=True)
class APGD:
    r"""Auto-PGD, untargeted or towards the highest other classes.

    Arguments:
        steps: The number of steps; with the start, steps + 1 forward and backward passes. For L1
            in larger balls two more; with targets one forward pass more.
        restarts: How often to search; all but the first only for examples not yet fooled.
        loss: ``"ce"``, ``"dlr"`` or ``"margin"``, with targets one of the last two. By default
            the cross-entropy, with targets the ratio. Where there are too few classes for the
            ratio (3, with targets 4), the margin takes its place.
        targets: How many of the highest other classes to aim at; None aims at none.
        rho: The share of growing steps above which a step size is kept.
        eot: How many passes are averaged, for a model that is random.
        largereps: Whether an L1 search starts in larger balls; None: it does. Other norms ignore
            it.
        norms: The norms for which the attack is defined.
    """

    steps: int = 100
    restarts: int = 1
    loss: Literal["ce", "dlr", "margin"] | None = None
    targets: int | None = None
    rho: Part = 0.75
    eot: int = 1
    largereps: bool | None = None
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        problems = uncounted(self, "steps", "restarts", "eot", "targets")
        losses = ("ce", "dlr", "margin") if self.targets is None else ("dlr", "margin")
        if self.loss is not None and self.loss not in losses:
            aim = "" if self.targets is None else " with targets"
            problems.append(f"loss{aim} must be one of {', '.join(losses)}, got {self.loss!r}")
        problems += out_of_range(self)
        if self.largereps not in (None, True, False):
            problems.append(f"largereps must be true, false or none, got {self.largereps!r}")
        refuse(problems + wrong_norms(self.norms))

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return float(self.steps * self.restarts * (self.targets or 1))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`."""
        x, y, draws = prepared(self, x, y, threat, draws)
        if not len(x) or threat.eps == 0:
            return x.clone()
        with guest(model) as model, torch.no_grad():
            targets = self._targets(model, x, y)
            finds = Finds(x)
            for rows, noise, _ in searches(finds, x, y, targets, draws, self.restarts):
                self._search(model, rows, noise, threat, finds)
        return finds.x_adv

    def rows_per_example(self, classes: int) -> int:
        """Return how many rows of a batch an example takes, given the number of classes."""
        return 1 if self.targets is None else max(min(self.targets, classes - 1), 1)

    def notes(self, classes: int) -> list[str]:
        """Return the changes of settings for so few classes, in sentences."""
        notes = []
        if self.targets is not None and self.targets > self.rows_per_example(classes):
            aims = self.rows_per_example(classes)
            notes.append(
                f"It aims at {aims}, not {self.targets} target classes: there are only {classes}."
            )
        needed = 3 if self.targets is None else 4
        if self._objective == "dlr" and classes < needed:
            notes.append(
                f"The difference of logits ratio needs {needed} classes; "
                f"with {classes}, the margin is attacked in its place."
            )
        return notes

    @property
    def _objective(self) -> str:
        return self.loss or ("ce" if self.targets is None else "dlr")

    def _targets(self, model: Fast, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the highest other classes of the clean inputs, highest first, (B, targets)."""
        if self.targets is None:
            return None
        logits = self._averaged([model(x).double() for _ in range(self.eot)])
        is_label = torch.arange(logits.shape[1], device=y.device) == y[:, None]
        others = logits.masked_fill(is_label, -torch.inf)
        return others.topk(self.rows_per_example(logits.shape[1]), dim=1).indices

    def _search(
        self,
        model: Fast,
        rows: "TargetRows",
        noise: Tensor,
        threat: Threat,
        finds: "Finds",
    ) -> None:
        """Search once from a random start for all open examples."""
        wide = threat.norm == "l1" and self.largereps is not False
        plan = phases(threat.eps, self.steps) if wide else [(threat.eps, self.steps)]
        start = _start(replace(threat, eps=plan[0][0]), rows.x, noise)
        for number, (eps, steps) in enumerate(plan):
            ball = replace(threat, eps=eps)
            start = ball.project(rows.x, start)
            last = number == len(plan) - 1
            if threat.norm == "l1":
                ascent: Ascent = SparseAscent(rows.x, start, ball, steps, warm=len(plan) > 1)
            else:
                ascent = Ascent(rows.x, start, ball, steps, self.rho)
            self._climb(model, rows, ascent, steps, finds if last else None)
            start = ascent.best

    def _climb(
        self,
        model: Fast,
        rows: "TargetRows",
        ascent: Ascent,
        steps: int,
        finds: "Finds | None",
    ) -> None:
        """Take the steps; with ``finds``, record every point and drop finished examples."""
        for taken in range(steps + 1):
            if taken:
                ascent.step()
            logits, losses, grad = self._evaluate(model, ascent.now, rows)
            learn = ascent.learn if taken else ascent.begin
            if finds is None:
                learn(losses, grad)
                continue
            wrong = self._wrong(model, ascent.now, logits, rows.y)
            left = finds.note(ascent.now, -margin(logits, rows.y), wrong)
            learn(losses, grad)
            if left is not None:
                ascent.take(left)
                rows = rows.take(left)
            if not len(rows.y):
                break

    def _evaluate(self, model: Fast, x: Tensor, rows: "TargetRows") -> tuple[Tensor, ...]:
        """Return logits, losses and gradients, the mean of several passes."""
        passes = [
            input_gradient(model, x, lambda z: self._losses(z, rows.y, rows.target))
            for _ in range(self.eot)
        ]
        logits, losses, grads = zip(*passes, strict=True)
        lost = torch.stack(losses).mean(0) if self.eot > 1 else losses[0]
        grad = torch.stack(grads).mean(0) if self.eot > 1 else grads[0]
        return self._averaged(list(logits)), torch.nan_to_num(lost, nan=-torch.inf), grad

    def _losses(self, logits: Tensor, y: Tensor, target: Tensor | None) -> Tensor:
        """Return what is maximised, with shape (R,)."""
        ratio = self._objective == "dlr"
        if target is None:
            if self._objective == "ce":
                return cross_entropy(logits, y)
            return (dlr if ratio and logits.shape[1] >= 3 else margin)(logits, y)
        if ratio and logits.shape[1] >= 4:
            return dlr_targeted(logits, y, target)
        wanted, own = (logits.gather(1, label[:, None])[:, 0] for label in (target, y))
        return wanted - own

    def _averaged(self, logits: list[Tensor]) -> Tensor:
        """Return the logits of one pass, or the logarithm of the mean class probabilities."""
        if len(logits) == 1:
            return logits[0]
        return torch.stack([z.double().log_softmax(1) for z in logits]).logsumexp(0)

    def _wrong(self, model: Fast, x: Tensor, logits: Tensor, y: Tensor) -> Tensor:
        """Return which points the exact model misclassifies, averaged over ``eot`` passes."""

        def decide(x: Tensor) -> Tensor:
            return self._averaged([model.decide(x) for _ in range(self.eot)])

        return model.confirmed(x, logits.argmax(1) != y, y, decide)


def APGDCE(*, steps: int = 100, restarts: int = 1, eot: int = 1) -> APGD:  # noqa: N802
    """Return Auto-PGD on the cross-entropy, of Croce and Hein (2020)."""
    return APGD(steps=steps, restarts=restarts, loss="ce", eot=eot)


def APGDDLR(*, steps: int = 100, restarts: int = 1, eot: int = 1) -> APGD:  # noqa: N802
    """Return Auto-PGD on the difference of logits ratio, of Croce and Hein (2020)."""
    return APGD(steps=steps, restarts=restarts, loss="dlr", eot=eot)


def APGDT(  # noqa: N802
    *, steps: int = 100, restarts: int = 1, targets: int = 9, eot: int = 1
) -> APGD:
    """Return Auto-PGD on the targeted ratio, of Croce and Hein (2020)."""
    return APGD(steps=steps, restarts=restarts, loss="dlr", targets=targets, eot=eot)


@dataclass(frozen=True)
class TargetRows:
    """The rows that are searched: one of each example, or one for each of its targets."""

    x: Tensor
    y: Tensor
    target: Tensor | None

    @classmethod
    def of(cls, x: Tensor, y: Tensor, targets: Tensor | None) -> Self:
        """Return the rows of examples; those of one example are adjacent."""
        if targets is None:
            return cls(x, y, None)
        count = targets.shape[1]
        rows = x.repeat_interleave(count, dim=0)
        return cls(rows, y.repeat_interleave(count), targets.flatten())

    def take(self, rows: Tensor) -> Self:
        """Return the rows at some positions."""
        target = None if self.target is None else self.target[rows]
        return type(self)(self.x[rows], self.y[rows], target)


class Finds:
    """The strongest point of each example so far, and which examples are open."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x.clone()
        self.margins = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.open = torch.arange(len(x), device=x.device)

    def note(self, points: Tensor, margins: Tensor, wrong: Tensor) -> Tensor | None:
        """Keep the points of the smallest margins, of all rows of the open examples.

        Return the positions of the rows whose examples stay open, or None if all do.
        """
        most = torch.finfo(margins.dtype).max
        margins = torch.nan_to_num(margins, nan=most, posinf=most).masked_fill(wrong, -torch.inf)
        margins = margins.view(len(self.open), -1)
        count = margins.shape[1]
        place = margins.argmin(1, keepdim=True)
        lowest = margins.gather(1, place)[:, 0].double()
        better = (lowest < self.margins[self.open]).nonzero()[:, 0]
        here = self.open[better]
        self.x_adv[here] = points[better * count + place[better, 0]]
        self.margins[here] = lowest[better]
        stays = ~wrong.view(-1, count).any(1)
        left = stays.nonzero()[:, 0]
        if len(left) == len(stays):
            return None
        self.open = self.open[left]
        return stays.repeat_interleave(count).nonzero()[:, 0]


def searches(
    finds: Finds, x: Tensor, y: Tensor, targets: Tensor | None, draws: Draws, restarts: int
) -> Iterator[tuple[TargetRows, Tensor, Draws]]:
    """Yield the rows of the examples that are open at each restart, noise for them, and draws.

    The noise is uniform in [0, 1) and has the shape of the rows; the draws are of the examples.
    """
    for restart in range(restarts):
        if len(finds.open):
            source, some = draws.child(f"restart {restart}").select(finds.open), x[finds.open]
            aims = None if targets is None else targets[finds.open]
            rows = TargetRows.of(some, y[finds.open], aims)
            count = len(rows.y) // len(some)
            noise = torch.stack([source.uniform(some) for _ in range(count)], dim=1)
            yield rows, noise.flatten(0, 1), source


def _start(threat: Threat, x: Tensor, noise: Tensor) -> Tensor:
    """Return random starting points for inputs, (R, ...), from numbers in [0, 1)."""
    centred = 2 * noise.double() - 1
    if threat.norm != "linf":
        most = 1 - 2.0**-24  # at 1 it would be infinite
        centred = math.sqrt(2) * torch.erfinv(centred.clamp(-most, most))
    if threat.norm != "l1":
        centred = centred * (threat.eps / Threat.lengths(centred, threat.norm).clamp_min(1e-12))
    return threat.project(x, x + centred.to(x.dtype))
