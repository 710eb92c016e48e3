r"""Cheap attacks for a first look: noise, and ascent on the margin; fooled examples leave at once.

.. math:: x_{k+1} = \Pi\bigl(x_k + \eta_k \, \mathrm{ascent}(\nabla (z_t - z_y)(x_k))\bigr), \qquad
          \eta_k = \varepsilon \bigl(0.1 + 0.45 (1 + \cos(\pi k / K))\bigr)

with t a target class, or at each step the highest class that is not the label. The targets are
those that look nearest: the smallest :math:`(z_y - z_t) / \|\nabla (z_y - z_t)\|_q` at the clean
input, with q dual to the norm of the threat, among the :data:`RANKED` highest other logits (MALT).

A diversified start (ODI) goes steps of sign(gradient) and of length eps along a random
combination of the logits, so that the starts differ in the outputs rather than in the pixels.

References:
    | MALT Powers Up Adversarial Attacks (Melamed, Yehudai and Vardi, 2024)
    | https://arxiv.org/abs/2407.02240
    | Diversity can be Transferred: Output Diversification for White- and Black-box Attacks
    | (Tashiro, Song and Ermon, 2020), https://arxiv.org/abs/2003.06878
    | Practical Evaluation of Adversarial Robustness via Adaptive Auto Attack (Liu et al., 2022),
    | the step sizes, https://arxiv.org/abs/2203.05154
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import Finds, TargetRows, searches
from equipoise.attacks.core import prepared, refuse, uncounted, wrong_norms
from equipoise.draws import Draws
from equipoise.execution.form import Fast, guest, input_gradient, input_gradients
from equipoise.losses import margin
from equipoise.threat import NORMS, Norm, Threat

RANKED = 9  # the highest other classes, among which the nearest targets are chosen

_DUAL: dict[Norm, Norm] = {"linf": "l1", "l2": "l2", "l1": "linf"}


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Random points at the full radius: for Linf every value moves by eps, up or down.

    Arguments:
        tries: The number of points for each example.
        norms: The norms for which it is defined.
    """

    tries: int = 1
    norms: tuple[Norm, ...] = NORMS

    def __post_init__(self) -> None:
        refuse(uncounted(self, "tries") + wrong_norms(self.norms))

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return self.tries / 3

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`."""
        x, y, draws = prepared(self, x, y, threat, draws)
        finds = Finds(x)
        with guest(model) as model, torch.no_grad():
            for number in range(self.tries):
                if not len(finds.open):
                    break
                source = draws.child(f"try {number}").select(finds.open)
                noise = source.uniform(x[finds.open])
                signs = noise.round() if threat.norm == "linf" else noise
                noted(model, threat.start(x[finds.open], signs), y[finds.open], finds)
        return finds.x_adv


@dataclass(frozen=True, kw_only=True)
class MarginAscent:
    r"""Ascent on the margin, towards the nearest targets or the highest other class.

    Arguments:
        steps: The number of steps K; each is one forward and one backward pass.
        targets: How many of the nearest targets to aim at, in rows of one batch; None aims at
            the highest other class of each step.
        diversified: The number of steps of output diversification before the ascent.
        restarts: How often to search; all but the first only for examples not yet fooled.
        norms: The norms for which it is defined.
    """

    steps: int = 20
    targets: int | None = None
    diversified: int = 0
    restarts: int = 1
    norms: tuple[Norm, ...] = NORMS

    def __post_init__(self) -> None:
        counts = "steps", "restarts", "targets", *["diversified"] * bool(self.diversified)
        refuse(uncounted(self, *counts) + wrong_norms(self.norms))

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        ranking = RANKED if self.targets else 0
        each = (self.steps + self.diversified) * (self.targets or 1)
        return float(self.restarts * each + ranking)

    def rows_per_example(self, classes: int) -> int:
        """Return how many rows of a batch an example takes, given the number of classes."""
        return max(min(self.targets or 1, classes - 1), 1)

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`."""
        x, y, draws = prepared(self, x, y, threat, draws)
        if not len(x) or threat.eps == 0:
            return x.clone()
        finds = Finds(x)
        with guest(model) as model, torch.no_grad():
            targets = None if not self.targets else nearest(model, x, y, threat, self.targets)
            for rows, noise, source in searches(finds, x, y, targets, draws, self.restarts):
                self._search(model, rows, noise, source, threat, finds)
        return finds.x_adv

    def _search(
        self,
        model: Fast,
        rows: TargetRows,
        noise: Tensor,
        draws: Draws,
        threat: Threat,
        finds: Finds,
    ) -> None:
        """Search once from a random start for all open examples."""
        point = threat.start(rows.x, noise)
        if self.diversified:
            point = self._diversify(model, point, rows, threat, draws)
        project = threat.projector(rows.x)
        for taken in range(self.steps + 1):
            if taken == self.steps:
                noted(model, point, rows.y, finds)
                break
            losses = _towards(rows.y, rows.target)
            logits, _, grad = input_gradient(model, point, losses)
            wrong = model.confirmed(point, logits.argmax(1) != rows.y, rows.y)
            left = finds.note(point, -margin(logits, rows.y), wrong)
            length = threat.eps * (0.1 + 0.45 * (1 + math.cos(math.pi * taken / self.steps)))
            moved = torch.add(point, threat.ascent(grad), alpha=length)
            if left is not None:
                rows, moved = rows.take(left), moved[left]
                project = threat.projector(rows.x)
            if not len(rows.y):
                break
            point = project(moved)

    def _diversify(
        self, model: Fast, point: Tensor, rows: TargetRows, threat: Threat, draws: Draws
    ) -> Tensor:
        """Return starts that differ in a random combination of the logits."""
        project = threat.projector(rows.x)
        weights = 2 * draws.uniform(model(point).float()) - 1
        for _ in range(self.diversified):
            _, _, grad = input_gradient(model, point, lambda z: (weights * z).sum(1))
            point = project(torch.add(point, threat.ascent(grad), alpha=threat.eps))
        return point


def nearest(model: Fast, x: Tensor, y: Tensor, threat: Threat, count: int) -> Tensor:
    """Return the targets that look nearest at the clean inputs, nearest first, (B, count).

    The distance is linear: the margin divided by the dual norm of its gradient.
    """
    logits = model(x).double()
    is_label = torch.arange(logits.shape[1], device=y.device) == y[:, None]
    most = min(RANKED, logits.shape[1] - 1)
    highest = logits.masked_fill(is_label, -torch.inf).topk(most, dim=1).indices
    ratios = [
        lead / Threat.lengths(grad, _DUAL[threat.norm]).flatten().clamp_min(1e-30)
        for lead, grad in input_gradients(
            model, x, lambda z: z.gather(1, y[:, None]) - z.gather(1, highest)
        )
    ]
    order = torch.nan_to_num(torch.stack(ratios, dim=1), nan=torch.inf).argsort(dim=1, stable=True)
    targets: Tensor = highest.gather(1, order[:, : min(count, most)])
    return targets


def _towards(y: Tensor, target: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return the loss that is maximised, from logits (R, K) to (R,)."""
    if target is None:
        return lambda logits: margin(logits, y)
    return lambda logits: (
        logits.gather(1, target[:, None]) - logits.gather(1, y[:, None])
    ).flatten()


def noted(model: Fast, point: Tensor, y: Tensor, finds: Finds) -> None:
    """Record points that are not moved further; ``y`` has the label of each row."""
    logits = model(point)
    wrong = model.confirmed(point, logits.argmax(1) != y, y)
    finds.note(point, -margin(logits, y), wrong)
