r"""Adversarial training with PGD (the paper's Eq. 1 and 6).

.. math:: \min_\theta \mathrm{CE}(f(x'), y), \qquad
          x' = \arg\max_{\|x' - x\| \le \epsilon} \mathrm{CE}(f(x'), y)

The inner attack runs with the model in eval mode, as in the Generalist code and as recommended
by Pang et al. (2021); the last iterate is trained on. Deviation from the authors' codes: the
random start is clipped to the range before the first gradient.

References:
    | Towards Deep Learning Models Resistant to Adversarial Attacks (Madry et al., 2018)
    | https://arxiv.org/abs/1706.06083
    | Bag of Tricks for Adversarial Training (Pang et al., 2021)
    | https://arxiv.org/abs/2010.00467
"""

from dataclasses import dataclass

from torch import nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch, Loss
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import Robust


@dataclass(frozen=True, kw_only=True)
class Adversarial(Robust):
    """Adversarial training with PGD; horizon averages its weights."""

    objective: str = "pgd-at"

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the mean cross-entropy on them."""
        x_adv = self.search(model, batch, labels, draws)
        return lambda: labels.mean(labels.cross_entropy(model(x_adv)))

    def terms(self) -> list[str]:
        """Return the loss."""
        return ["mean over the batch of CE(f(x'), y)"]
