r"""The steps of Auto-PGD: each row ascends its own loss and adapts its own step size.

For Linf and L2 (:class:`Ascent`)

.. math:: z_{k+1} = \Pi\bigl(x_k + \eta_k \, \mathrm{ascent}(\nabla \ell(x_k))\bigr), \qquad
          x_{k+1} = \Pi\bigl(x_k + \alpha (z_{k+1} - x_k) + (1 - \alpha) (x_k - x_{k-1})\bigr)

with :math:`\alpha = 0.75`, 1 at the first step, :math:`\eta_0 = 2 \epsilon` and the exact
projection :math:`\Pi`. At checkpoints :math:`\eta` is halved, and the ascent continues from the
best point, where

1. the loss grew in at most :math:`\rho` of the steps since the last checkpoint, or
2. :math:`\eta` was kept at the last checkpoint and the best loss has not grown since.

For L1 (:class:`SparseAscent`) steps are sparse, as sparse as the best point demands:

.. math:: x_{k+1} = \Pi\bigl(x_k + \eta_k \, s / \|s\|_1\bigr), \qquad
          s = \mathrm{sign}(\text{the largest entries of } \nabla \ell(x_k))

without momentum and with :math:`\eta_0 = \epsilon`. A fifth of the entries is used at first;
after every 25th part of the steps, two thirds of as many as the best point changes. Where it
changes less than 95 % of what it changed at the checkpoint before, the ascent continues from the
best point with :math:`\eta = \epsilon`, elsewhere :math:`\eta` falls by 1.5, down to
:math:`\epsilon / 10`.

References:
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    | Attacks (Croce and Hein, 2020), Algorithm 1
    | https://arxiv.org/abs/2003.01690
    | Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers (Croce and Hein,
    | 2021), Algorithm 1
    | https://arxiv.org/abs/2103.01208
"""

import math

import torch
from torch import Tensor

from equipoise.attacks.core import parts
from equipoise.threat import Threat

INERTIA = 0.25  # the share of the move before in the next one, 1 - alpha
FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # windows between checkpoints, in shares of the steps
SPARSE_WINDOW = 0.04  # the same for L1
FALL, LEAST = 1.5, 0.1  # of the L1 step size: its divisor, and its least value in units of eps
SHARE = 0.2  # of the entries that move at first
DENSER = 1.5  # how many times the entries of a step the best point changes
SPARSER = 0.95  # of the entries changed before: fewer restart the step size
TRACE = 1e-6  # of eps: less is no change of an entry but the rounding of the projection


class Ascent:
    """Rows that ascend their losses, for Linf and L2.

    The caller evaluates ``now`` and passes losses and gradients to :meth:`begin`, then in turn
    takes a :meth:`step` and passes those at the new points to :meth:`learn`.

    Arguments:
        x: The clean inputs, with shape (R, ...).
        start: Where to start, within the threat, with shape (R, ...).
        threat: The ball and the range.
        steps: How many steps will be taken; the checkpoints depend on it.
        rho: The share of growing steps above which a step size is kept.
    """

    def __init__(
        self, x: Tensor, start: Tensor, threat: Threat, steps: int, rho: float = 0.75
    ) -> None:
        self.x, self.threat, self.rho = x, threat, rho
        self.parts = parts(x)
        self.project = [threat.projector(x[part]) for part in self.parts]
        self.now = self.before = self.best = start
        self.sizes = x.new_full((len(x), *[1] * (x.ndim - 1)), 2 * threat.eps)
        self.window = max(int(FIRST * steps), 1)
        self.shorter, self.shortest = max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1)
        self.taken = self.since = 0

    def begin(self, losses: Tensor, grad: Tensor) -> None:
        """Start from losses (R,) and gradients (R, ...) at ``now``."""
        self.grad, self.best, self.best_grad = grad, self.now.clone(), grad.clone()
        self.best_losses = self.best_then = losses
        self.reduced = torch.ones_like(losses, dtype=torch.bool)
        self.growths = torch.zeros_like(losses)
        # The authors' code compares the loss after the first step with zero, not with the loss
        # at the start. The published numbers are with it, so that it belongs to the algorithm.
        self.last_losses = torch.zeros_like(losses)

    def step(self) -> None:
        """Move ``now`` by one step."""
        ahead = torch.empty_like(self.now)
        for part, project in zip(self.parts, self.project, strict=True):
            now = self.now[part]
            point = project(self.threat.ascent(self.grad[part]).mul_(self.sizes[part]).add_(now))
            if self.taken:
                point = point.sub_(now).mul_(1 - INERTIA).add_(now)
                point = project(point.add_(now - self.before[part], alpha=INERTIA))
            ahead[part] = point
        self.now, self.before = ahead, self.now
        self.taken += 1

    def learn(self, losses: Tensor, grad: Tensor) -> None:
        """Record losses (R,) and gradients (R, ...) at ``now``; adapt at a checkpoint."""
        self.grad = grad
        better = (losses > self.best_losses).nonzero()[:, 0]
        self.best[better] = self.now[better]
        self.best_grad[better] = grad[better]
        self.best_losses = torch.maximum(losses, self.best_losses)
        self.growths = self.growths + (losses > self.last_losses)
        self.last_losses = losses
        self.since += 1
        if self.since == self.window:
            self.since = 0
            self.adapt()

    def adapt(self) -> None:
        """Halve the step sizes that no longer help."""
        stuck = ~self.reduced & (self.best_then >= self.best_losses)
        self.reduced = (self.growths <= self.rho * self.window) | stuck
        self.best_then = self.best_losses
        self.growths = torch.zeros_like(self.growths)
        mask = self.reduced.view_as(self.sizes)
        self.sizes = torch.where(mask, self.sizes / 2, self.sizes)
        self.go_back(mask)
        self.window = max(self.window - self.shorter, self.shortest)

    def go_back(self, mask: Tensor) -> None:
        """Continue from the best point in some rows; their last move is kept, as there."""
        self.now = torch.where(mask, self.best, self.now)
        self.grad = torch.where(mask, self.best_grad, self.grad)

    def take(self, rows: Tensor) -> None:
        """Continue with the rows at some positions alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
        self.parts = parts(self.x)
        self.project = [self.threat.projector(self.x[part]) for part in self.parts]


class SparseAscent(Ascent):
    """Rows that ascend their losses, for L1.

    Arguments but the last are those of :class:`Ascent`.

    Arguments:
        warm: Whether ``start`` is the result of a search, whose sparsity the first steps have.
    """

    def __init__(
        self, x: Tensor, start: Tensor, threat: Threat, steps: int, *, warm: bool = False
    ) -> None:
        super().__init__(x, start, threat, steps)
        self.sizes = self.sizes / 2
        self.window = max(int(SPARSE_WINDOW * steps), 1)
        self.entries = x[0].numel()
        changed = self.changes()
        self.changed = changed if warm else torch.full_like(changed, self.entries)
        self.share = self.sparsity() if warm else torch.full_like(changed, SHARE)

    def step(self) -> None:
        """Move ``now`` by one step."""
        size = self.grad.abs().flatten(1)
        skipped = ((1 - self.share) * self.entries).clamp(0, self.entries - 1).long()
        moved = self.entries - skipped
        largest = size.topk(int(moved.max()), dim=1).values  # a sort of everything takes longer
        least = largest.gather(1, moved[:, None] - 1)
        signs = self.grad.flatten(1).sign() * (size >= least)
        signs = signs / signs.abs().sum(1, keepdim=True).clamp_min(1)
        ahead = self.now + self.sizes * signs.reshape(self.x.shape)
        self.now, self.before = self.threat.project(self.x, ahead), self.now
        self.taken += 1

    def adapt(self) -> None:
        """Follow the sparsity of the best point."""
        changed = self.changes()
        mask = (changed / self.changed < SPARSER).view_as(self.sizes)
        self.changed = changed
        self.share = self.sparsity()
        eps = self.threat.eps
        self.sizes = torch.where(mask, eps, self.sizes / FALL).clamp(LEAST * eps, eps)
        self.go_back(mask)

    def changes(self) -> Tensor:
        """Return how many entries the best point changes, as float64 of shape (R,)."""
        moved = (self.best - self.x).abs() > TRACE * self.threat.eps
        return moved.flatten(1).sum(1).double()

    def sparsity(self) -> Tensor:
        """Return the share of the entries that the next steps move, with shape (R,)."""
        return self.changed / self.entries / DENSER


def phases(eps: float, steps: int) -> list[tuple[float, int]]:
    """Return radii and steps of a search that starts in a larger ball.

    Three tenths of the steps at 3 eps, as many at 2 eps, the rest at eps; where that leaves
    nothing for the last, all at eps.
    """
    part = math.ceil(0.3 * steps)
    if steps - 2 * part < 1:
        return [(eps, steps)]
    return [(3 * eps, part), (2 * eps, part), (eps, steps - 2 * part)]
