"""How well a model does on held-out training images, while it is trained."""

__all__ = ["Validator"]

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.attacks import Attack
from equipoise.attacks.core import guest
from equipoise.draws import KeyedDraws
from equipoise.losses import cross_entropy
from equipoise.threat import Threat


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Measures clean and robust accuracy and loss, the same way in every round.

    The randomness is keyed by the images: two models, or two rounds, meet the same draws.

    Arguments:
        x: The held-out images in [0, 1], with shape (N, C, H, W).
        y: Their labels, with shape (N,).
        threat: What the attack may do.
        attack: The attack.
        seed: The seed of its draws.
        batch_size: How many images are attacked at a time.
    """

    x: Tensor
    y: Tensor
    threat: Threat
    attack: Attack
    seed: int = 0
    batch_size: int = 500

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Return ``clean_accuracy``, ``robust_accuracy``, ``clean_loss`` and ``robust_loss``."""
        sums = torch.zeros(4, dtype=torch.float64)
        with guest(model), torch.no_grad():
            for first in range(0, len(self.y), self.batch_size):
                part = slice(first, first + self.batch_size)
                x, y = self.x[part], self.y[part]
                draws = KeyedDraws.of(x, self.seed)
                x_adv = self.attack(model, x, y, self.threat, draws=draws)
                sums += torch.stack([*_measure(model, x, y), *_measure(model, x_adv, y)]).cpu()
        correct, loss, robust, robust_loss = (sums / max(len(self.y), 1)).tolist()
        return {
            "clean_accuracy": correct,
            "robust_accuracy": robust,
            "clean_loss": loss,
            "robust_loss": robust_loss,
        }


def _measure(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of correct answers and the sum of the losses, in float64."""
    logits = model(x)
    return (logits.argmax(1) == y).double().sum(), cross_entropy(logits, y).double().sum()
