r"""TRADES: clean accuracy and a smooth answer around it.

.. math:: \min_\theta \frac1n \sum_i \mathrm{CE}(f(x_i), y_i)
          + \beta \, \mathrm{KL}(p(x_i) \,\|\, p(x'_i)), \qquad
          x' = \arg\max \mathrm{KL}(p(x) \,\|\, p(x'))

The search starts at x + 0.001 N(0, 1), since the divergence has no gradient at x itself, and
:math:`p(x)` is held fixed in it; in the loss the gradient flows through both sides. The
divergence is a mean over the batch (a mean over classes, too, would divide beta by K). With
``tau`` it is FAT for TRADES.

Deviations from the authors' code: clean and adversarial inputs pass forward as one batch
(:mod:`equipoise.objectives.two_sided` says why; ``joint=False`` is theirs); with ``joint=False``
clean inputs pass once rather than twice, with the same value and gradient, so the running
statistics of BatchNorm see both kinds in the ratio 1:1 rather than 2:1; the start is clipped to
ball and range. At beta = 0 nothing is searched for: it is standard training.

References:
    | Theoretically Principled Trade-off between Robustness and Accuracy (Zhang et al., 2019)
    | https://arxiv.org/abs/1901.08573
"""

__all__ = ["TRADES"]

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import Ascended
from equipoise.draws import Draws
from equipoise.errors import UserError
from equipoise.losses import kl
from equipoise.objectives.core import Batch
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import exact
from equipoise.objectives.two_sided import TwoSided


class TRADES(TwoSided):
    r"""The clean cross-entropy and the divergence of the adversarial answer from the clean one.

    Arguments:
        beta: :math:`\beta`, the weight of the divergence (1/lambda in the paper).
        settings: Those of :class:`TwoSided`.
    """

    ascends = "KL(p(x) || p(x'))"

    def __init__(self, *, beta: float = 6.0, **settings: Any) -> None:
        super().__init__(**settings)
        check_beta(beta)
        self.beta = beta
        self.both = beta > 0
        if self.attack.loss != "ce" or self.attack.confidence is not None:
            raise UserError(
                "TRADES ascends the divergence: attack.loss and attack.confidence have no "
                "meaning here"
            )
        if self.attack.start == "zero":
            raise UserError(
                "the divergence has no gradient at x; use attack.start=noise or uniform"
            )

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return what the model is trained on: clean inputs alone at beta = 0."""
        return super().inputs(model, batch, draws) if self.beta else batch.x

    def ascended(self, model: nn.Module, x: Tensor, labels: Labels) -> Ascended:
        """Return the divergence from the answers to the clean inputs."""
        del labels
        with torch.no_grad():
            clean = exact(model(x))
        return lambda logits, index: kl(clean[index], logits)

    def loss(
        self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws
    ) -> Callable[[], Tensor]:
        """Search for adversarial inputs; return the loss on both."""
        if self.beta == 0:
            return lambda: self.clean(exact(model(batch.x)), batch, labels)
        x_adv = self.search(model, batch, labels, draws)

        def loss() -> Tensor:
            clean, robust = self.logits(model, batch.x, x_adv)
            divergence = kl(clean, robust).mean()
            return self.clean(clean, batch, labels) + self.beta * divergence

        return loss

    def clean(self, logits: Tensor, batch: Batch, labels: Labels) -> Tensor:
        """Return the part of the loss that is taken on clean inputs."""
        del batch
        return labels.cross_entropy(logits).mean()

    @property
    def passes(self) -> int:
        """Return 2, or 1 at beta = 0."""
        return 2 if self.beta else 1

    @property
    def searching(self) -> int:
        """Return the gradient evaluations of the search: none at beta = 0."""
        return super().searching if self.beta else 0

    def weak(self, progress: float) -> bool:
        """Tell whether the attack is weak; without one there is nothing to fool."""
        return self.beta > 0 and super().weak(progress)

    def terms(self) -> list[str]:
        """Return the loss."""
        divergence = f" + {self.beta:g} KL(p(x) || p(x'))" if self.beta else ""
        return [f"mean over the batch of CE(f(x), y){divergence}"]


def check_beta(beta: float) -> None:
    """Raise a UserError for a weight that cannot be meant."""
    if not (math.isfinite(beta) and beta >= 0):
        raise UserError(f"beta must be a finite number >= 0, got {beta}")
