r"""How Auto-PGD climbs: rows that ascend their losses and find their step sizes themselves.

.. math:: z_{k+1} = \Pi\bigl(x_k + \eta_k \, \mathrm{ascent}(\nabla \ell(x_k))\bigr), \qquad
          x_{k+1} = \Pi\bigl(x_k + \alpha (z_{k+1} - x_k) + (1 - \alpha) (x_k - x_{k-1})\bigr)

with :math:`\alpha = 0.75`, 1 at the first step, :math:`\eta_0 = 2 \epsilon` and the exact
projection :math:`\Pi`. At checkpoints :math:`\eta` is halved, and the ascent goes on from the
best point, where

1. the loss grew in at most :math:`\rho` of the steps since the last checkpoint, or
2. :math:`\eta` was kept at the last checkpoint and the best loss has not grown since.

Every row has its own :math:`\eta`; no row depends on another.

References:
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    | Attacks (Croce and Hein, 2020), Algorithm 1
    | https://arxiv.org/abs/2003.01690
"""

import torch
from torch import Tensor

from equipoise.threat import Threat

INERTIA = 0.25  # the share of the move before in the next one, 1 - alpha

FIRST, SHORTER, SHORTEST = 0.22, 0.03, 0.06  # windows between checkpoints, in shares of the steps


class Ascent:
    """Rows on their way up, for Linf and L2.

    The caller evaluates ``now`` and hands losses and gradients to :meth:`begin`, then in turn
    takes a :meth:`step` and shows what is found there to :meth:`learn`.

    Arguments:
        x: The clean inputs, with shape (R, ...).
        start: Where to start, within the threat, with shape (R, ...).
        threat: The ball and the range.
        steps: How many steps will be taken; the checkpoints depend on it.
        rho: The share of growing steps that a step size has to exceed to be kept.
    """

    def __init__(
        self, x: Tensor, start: Tensor, threat: Threat, steps: int, rho: float = 0.75
    ) -> None:
        self.x, self.threat, self.rho = x, threat, rho
        self.project = threat.projector(x)
        self.now = self.before = self.best = start
        self.sizes = x.new_full((len(x), *[1] * (x.ndim - 1)), 2 * threat.eps)
        self.window = max(int(FIRST * steps), 1)
        self.shorter, self.shortest = max(int(SHORTER * steps), 1), max(int(SHORTEST * steps), 1)
        self.taken = self.since = 0

    def begin(self, losses: Tensor, grad: Tensor) -> None:
        """Start from losses (R,) and gradients (R, ...) at ``now``."""
        self.grad = self.best_grad = grad
        self.best_losses = self.best_then = losses
        self.reduced = torch.ones_like(losses, dtype=torch.bool)
        self.growths = torch.zeros_like(losses)
        # The authors' code compares the loss after the first step with zero, not with the loss
        # at the start. The published numbers are with it, so that it belongs to the algorithm.
        self.last_losses = torch.zeros_like(losses)

    def step(self) -> None:
        """Move ``now`` by one step."""
        ahead = self.now + self.sizes * self.threat.ascent(self.grad)
        ahead = self.project(ahead)
        if self.taken:
            inert = self.now - self.before
            ahead = self.now + (1 - INERTIA) * (ahead - self.now) + INERTIA * inert
            ahead = self.project(ahead)
        self.now, self.before = ahead, self.now
        self.taken += 1

    def learn(self, losses: Tensor, grad: Tensor) -> None:
        """Take in losses (R,) and gradients (R, ...) at ``now``, and adapt at a checkpoint."""
        self.grad = grad
        better = losses > self.best_losses
        mask = better.view_as(self.sizes)
        self.best = torch.where(mask, self.now, self.best)
        self.best_grad = torch.where(mask, grad, self.best_grad)
        self.best_losses = torch.where(better, losses, self.best_losses)
        self.growths = self.growths + (losses > self.last_losses)
        self.last_losses = losses
        self.since += 1
        if self.since == self.window:
            self.since = 0
            self.adapt()

    def adapt(self) -> None:
        """Halve step sizes that serve no longer."""
        stuck = ~self.reduced & (self.best_then >= self.best_losses)
        self.reduced = (self.growths <= self.rho * self.window) | stuck
        self.best_then = self.best_losses
        self.growths = torch.zeros_like(self.growths)
        mask = self.reduced.view_as(self.sizes)
        self.sizes = torch.where(mask, self.sizes / 2, self.sizes)
        self.go_back(mask)
        self.window = max(self.window - self.shorter, self.shortest)

    def go_back(self, mask: Tensor) -> None:
        """Go on from the best point in some rows; their last move is kept, as in the original."""
        self.now = torch.where(mask, self.best, self.now)
        self.grad = torch.where(mask, self.best_grad, self.grad)

    def take(self, rows: Tensor) -> None:
        """Go on with the rows at some positions alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
        self.project = self.threat.projector(self.x)
