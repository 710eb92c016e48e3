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

__all__ = ["Adversarial"]

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD
from equipoise.draws import Draws
from equipoise.losses import cross_entropy
from equipoise.objectives.core import Batch, Objective
from equipoise.threat import Threat


class Adversarial(Objective):
    """The mean cross-entropy on adversarial inputs.

    Arguments:
        threat: What the adversarial inputs may be.
        attack: How they are searched for.
        precision: The arithmetic of the search: ``"bfloat16"`` runs the model's matrix
            products in it, under autocast; the update is in float32 either way.
    """

    monitor = "robust_loss"

    def __init__(
        self,
        *,
        threat: Threat,
        attack: PGD,
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        self.threat = threat
        self.attack = attack
        self.precision = precision

    def inputs(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the adversarial inputs of a batch."""
        low = self.precision == "bfloat16"
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=low):
            return self.attack.search(model, batch.x, batch.y, self.threat, draws)

    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss."""
        yield cross_entropy(model(self.inputs(model, batch, draws)), batch.y).mean()

    @property
    def cost(self) -> int:
        """Return the steps of the attack and one for the update."""
        return self.attack.steps * self.attack.restarts + 1
