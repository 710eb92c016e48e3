"""How well a model does on held-out training images, while it is trained."""

__all__ = ["Validator"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equipoise.attacks import Attack
from equipoise.attacks.core import guest
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.execution import Execution, fast
from equipoise.losses import cross_entropy
from equipoise.threat import Threat

FLOAT32 = Execution(precision="float32")


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Measures clean and robust accuracy and loss, the same way in every round.

    Attacks search in the model's search form, and the model itself says what they found.

    Of several threats an image has to withstand all, and its robust loss is the largest. The
    randomness is keyed by the images: two models, two rounds, or two threats meet the same draws.

    Arguments:
        x: The held-out images in [0, 1], with shape (N, C, H, W).
        y: Their labels, with shape (N,).
        threats: What the attack may do: one or more threats.
        attack: The attack.
        seed: The seed of its draws.
        batch_size: How many images are attacked at a time.
        execution: The search form; it is never compiled, for a model may be a new one each round.
    """

    x: Tensor
    y: Tensor
    threats: tuple[Threat, ...]
    attack: Attack
    seed: int = 0
    batch_size: int = 250
    execution: Execution = FLOAT32

    def __post_init__(self) -> None:
        if not self.threats:
            raise UserError("expected at least one threat to validate against, got none")

    def __call__(self, model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        """Return ``clean_accuracy``, ``robust_accuracy``, ``clean_loss`` and ``robust_loss``.

        Arguments:
            model: The model.
            threat: The only threat that counts; None: all of them do.
        """
        threats = self.threats if threat is None else (threat,)
        sums = torch.zeros(4, dtype=torch.float64)
        search = fast(model, execution=replace(self.execution, compile=False))
        with guest(model), torch.no_grad():
            for first in range(0, len(self.y), self.batch_size):
                part = slice(first, first + self.batch_size)
                x, y = self.x[part], self.y[part]
                clean = _measured(model, x, y)
                robust = self._worst(model, search, x, y, threats)
                sums += torch.stack([value.sum() for value in (*clean, *robust)]).cpu()
        correct, loss, withstood, robust_loss = (sums / max(len(self.y), 1)).tolist()
        return {
            "clean_accuracy": correct,
            "robust_accuracy": withstood,
            "clean_loss": loss,
            "robust_loss": robust_loss,
        }

    def _worst(
        self,
        model: nn.Module,
        search: nn.Module,
        x: Tensor,
        y: Tensor,
        threats: tuple[Threat, ...],
    ) -> tuple[Tensor, Tensor]:
        """Return which images withstand every threat, and the largest loss of each."""
        withstood = torch.ones_like(y, dtype=torch.float64)
        losses = torch.full_like(withstood, -torch.inf)
        for threat in threats:
            draws = KeyedDraws.of(x, self.seed)
            found = _measured(model, self.attack(search, x, y, threat, draws=draws), y)
            withstood, losses = withstood * found[0], torch.maximum(losses, found[1])
        return withstood, losses


def _measured(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return which answers are correct (1 or 0) and the losses, both (B,) in float64."""
    logits = model(x)
    return (logits.argmax(1) == y).double(), cross_entropy(logits, y).double()
