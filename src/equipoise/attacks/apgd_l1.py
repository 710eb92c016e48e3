r"""How Auto-PGD climbs for L1: with sparse steps, whose sparsity follows the best point.

.. math:: x_{k+1} = \Pi\bigl(x_k + \eta_k \, s / \|s\|_1\bigr), \qquad
          s = \mathrm{sign}(\text{the largest entries of } \nabla \ell(x_k))

without momentum, with :math:`\eta_0 = \epsilon` and the exact projection :math:`\Pi` onto ball
and range. A fifth of the entries is used at first; after every 25th part of the steps, two thirds
of as many as the best point changes. Where it changes less than 95 % of what it changed at the
checkpoint before, the ascent goes on from the best point with :math:`\eta = \epsilon`, elsewhere
:math:`\eta` falls by 1.5, down to :math:`\epsilon / 10`.

References:
    | Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers (Croce and Hein,
    | 2021), Algorithm 1
    | https://arxiv.org/abs/2103.01208
"""

import math

import torch
from torch import Tensor

from equipoise.attacks.apgd_ascent import Ascent
from equipoise.threat import Threat

WINDOW = 0.04  # between checkpoints, in shares of the steps

FALL, LEAST = 1.5, 0.1  # of the step size: by how much it falls, and how far in units of eps

SHARE = 0.2  # of the entries that move at first

DENSER = 1.5  # how many times the entries of a step the best point changes

SPARSER = 0.95

TRACE = 1e-6  # of eps: less is no change of an entry but the rounding of the projection


class SparseAscent(Ascent):
    """Rows on their way up, for L1.

    Arguments:
        x: The clean inputs, with shape (R, ...).
        start: Where to start, within the threat, with shape (R, ...).
        threat: The ball and the range.
        steps: How many steps will be taken.
        warm: Whether ``start`` was found by a search and says how sparse the steps should be.
    """

    def __init__(
        self, x: Tensor, start: Tensor, threat: Threat, steps: int, *, warm: bool = False
    ) -> None:
        super().__init__(x, start, threat, steps)
        self.sizes = self.sizes / 2
        self.window = max(int(WINDOW * steps), 1)
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
