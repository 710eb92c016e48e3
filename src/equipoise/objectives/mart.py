r"""MART: misclassified examples count more.

.. math:: \min_\theta \frac1n \sum_i \mathrm{BCE}(f(x'_i), y_i)
          + \lambda \, \mathrm{KL}(p(x_i) \,\|\, p(x'_i)) \, (1.0000001 - p_{y_i}(x_i))

with the boosted cross-entropy :math:`-\log p_y - \log(1.0001 - \max_{k \ne y} p_k)`. The search
climbs the cross-entropy from x + 0.001 N(0, 1). Gradients flow through the weight and through
both sides of the divergence. Losses are taken in float32 at least.

Deviations from the authors' code: logarithms of probabilities come from the logits, so that the
1e-12 by which theirs avoids log 0 is not needed; clean and adversarial inputs pass forward as one
batch (``joint=False`` is theirs); the start is clipped to ball and range. At
lambda = 0 clean inputs are not used.

References:
    | Improving Adversarial Robustness Requires Revisiting Misclassified Examples
    | (Wang et al., 2020)
    | https://openreview.net/forum?id=rklOg6EFwS
"""

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import Draws
from equipoise.errors import NotNegative
from equipoise.losses import kl
from equipoise.objectives.core import Batch, Loss
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import TwoSided, exact, noise_attack


@dataclass(frozen=True, kw_only=True)
class MART(TwoSided):
    """MART: misclassified examples count more.

    Arguments:
        beta: The weight of the divergence, lambda in the paper.
    """

    objective: str = "mart"
    beta: NotNegative = 5.0
    attack: PGD = field(default_factory=noise_attack)

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the loss on both."""
        x_adv = self.search(model, batch, labels, draws)
        if self.beta == 0:
            return lambda: labels.mean(labels.boosted(exact(model(x_adv))))

        def loss() -> Tensor:
            clean, robust = self.logits(model, batch.x, x_adv)
            right = clean.softmax(1).gather(1, labels.y[:, None])[:, 0]
            divergence = kl(clean, robust) * (1.0000001 - right)
            return labels.mean(labels.boosted(robust)) + self.beta * labels.mean(divergence)

        return loss

    @property
    def kind(self) -> Literal["clean", "adversarial", "both"]:
        """Return the kind of inputs in the loss."""
        return "both" if self.beta else "adversarial"

    def terms(self) -> list[str]:
        """Return the loss."""
        lines = ["mean over the batch of -log p_y(x') - log(1.0001 - max over k != y of p_k(x'))"]
        if self.beta:
            lines.append(f"  + {self.beta:g} KL(p(x) || p(x')) (1.0000001 - p_y(x))")
        return lines
