r"""Interpolated adversarial training: clean and adversarial inputs, each mixed with others.

.. math:: \min_\theta \tfrac12 \bigl( \mathrm{mix}(x, \lambda_c, \pi_c)
          + \mathrm{mix}(x', \lambda_a, \pi_a) \bigr), \qquad
          \mathrm{mix}(x, \lambda, \pi) = \lambda\,\mathrm{CE}(f(\tilde x), y)
          + (1 - \lambda)\,\mathrm{CE}(f(\tilde x), y_\pi)

with :math:`\tilde x = \lambda x + (1 - \lambda) x_\pi`, two independent permutations, and two
independent :math:`\lambda \sim \mathrm{Beta}(a, a)`, one a batch. The adversarial inputs
:math:`x'` are found for the unmixed images with their own labels. Without mixing (a = 0) it is
the mean of the clean and the adversarial cross-entropy.

Deviations: the one public code for ResNet-18 attacks with the model in training mode; here, as
everywhere, it is in eval mode. Both kinds pass forward as one batch (``joint=False``: one after
the other, as there). The authors' own code is not public.

References:
    | Interpolated Adversarial Training (Lamb et al., 2019), https://arxiv.org/abs/1906.06784
    | mixup: Beyond Empirical Risk Minimization (Zhang et al., 2018)
    | https://arxiv.org/abs/1710.09412
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from scipy.special import betaincinv
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import Draws
from equipoise.errors import NotNegative
from equipoise.objectives.core import Batch, Loss
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import TwoSided, inner_attack


@dataclass(frozen=True, kw_only=True)
class IAT(TwoSided):
    """Interpolated adversarial training: mixup of clean and of adversarial images.

    Arguments:
        mixup: a, the parameter of the Beta distribution of the shares; 0 does not mix.
    """

    objective: str = "iat"
    mixup: NotNegative = 1.0
    attack: PGD = field(default_factory=lambda: inner_attack(steps=7, step_factor=1.75))

    @property
    def undivided(self) -> str:
        """Return why a batch cannot be divided between processes; empty: it can."""
        return "mixup mixes the images of a batch" if self.mixup else super().undivided

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the mean loss on both kinds, mixed."""
        x_adv = self.search(model, batch, labels, draws)
        if self.mixup == 0:
            x, lose, lose_adv = batch.x, _mean(labels), _mean(labels)
        else:
            x, lose = self._mix(batch.x, labels, draws)
            x_adv, lose_adv = self._mix(x_adv, labels, draws)

        def loss() -> Tensor:
            clean, robust = self.logits(model, x, x_adv)
            return lose(clean) / 2 + lose_adv(robust) / 2

        return loss

    def _mix(
        self, x: Tensor, labels: Labels, draws: Draws
    ) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Draw a mix of inputs; return it, and its mean loss as a function of logits."""
        share = self._share(draws.uniform(x.new_empty(1))).to(x)
        order = draws.uniform(x.new_empty(len(x))).argsort()
        mixed, others = share * x + (1 - share) * x[order], labels.take(order)

        def loss(logits: Tensor) -> Tensor:
            own, other = labels.cross_entropy(logits), others.cross_entropy(logits)
            return labels.mean(share * own + (1 - share) * other)

        return mixed, loss

    def _share(self, unit: Tensor) -> Tensor:
        """Return a number of the Beta distribution for one in [0, 1)."""
        if self.mixup == 1:
            return unit
        return torch.tensor([float(betaincinv(self.mixup, self.mixup, float(unit)))])

    def terms(self) -> list[str]:
        """Return the loss."""
        if self.mixup == 0:
            return ["mean over the batch of CE(f(x), y) / 2 + CE(f(x'), y) / 2"]
        return [
            "mean over the batch of mix(x) / 2 + mix(x') / 2, where",
            "  mix(u) = s CE(f(m), y) + (1 - s) CE(f(m), y_j), m = s u + (1 - s) u_j,",
            f"  j a permutation, s ~ Beta({self.mixup:g}, {self.mixup:g}), drawn for each mix",
        ]


def _mean(labels: Labels) -> Callable[[Tensor], Tensor]:
    return lambda logits: labels.mean(labels.cross_entropy(logits))
