"""Accuracies and losses on held-out training images, during a training."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.execution.form import fast, guest
from equipoise.execution.policy import Execution
from equipoise.losses import cross_entropy
from equipoise.measures.by_class import BY_CLASS
from equipoise.threat import Threat
from equipoise.training.ranks import Ranks

METRICS = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss", *BY_CLASS)
"""The names of what is measured."""

FLOAT32 = Execution(precision="float32")
ALONE = Ranks()


@dataclass(frozen=True, kw_only=True)
class Validator:
    """Measures clean and robust accuracy and loss, the same way in every round.

    Attacks use the model's search form; the verdicts are the model's own. With several threats an
    image is robust if it is robust to all, and its robust loss is the largest. The randomness is
    keyed by the images: models, rounds and threats have the same draws.

    Arguments:
        x: The held-out images in [0, 1], with shape (N, C, H, W).
        y: Their labels, with shape (N,).
        threats: One or more threats.
        attack: The attack.
        seed: The seed of its draws.
        batch_size: How many images are attacked at a time.
        execution: The search form; it is never compiled, because the model may differ each round.
        ranks: The processes that share the images, in whole batches.
    """

    x: Tensor
    y: Tensor
    threats: tuple[Threat, ...]
    attack: Attack
    seed: int = 0
    batch_size: int = 250
    execution: Execution = FLOAT32
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        if not self.threats:
            raise UserError("expected at least one threat for the validation, got none")

    def __call__(self, model: nn.Module, threat: Threat | None = None) -> dict[str, float]:
        """Return the :data:`METRICS` of a model.

        Arguments:
            model: The model.
            threat: The only threat to use; None: all threats.
        """
        threats = self.threats if threat is None else (threat,)
        classes = int(self.y.max()) + 1 if len(self.y) else 1
        search = fast(model, execution=replace(self.execution, compile=False))

        def measured(k: int) -> Tensor:
            part = slice(k * self.batch_size, (k + 1) * self.batch_size)
            return self._measured(model, search, part, threats, classes)

        sums = torch.zeros(4 + 2 * classes, dtype=torch.float64)
        with guest(model), torch.no_grad():
            for measures in self.ranks.each(-(-len(self.y) // self.batch_size), measured, sums):
                sums += measures
        means = (sums[:4] / max(len(self.y), 1)).tolist()
        right = sums[4:].view(2, classes)
        return dict(zip(METRICS, means + self._of_classes(right), strict=True))

    def _measured(
        self,
        model: nn.Module,
        search: nn.Module,
        part: slice,
        threats: tuple[Threat, ...],
        classes: int,
    ) -> Tensor:
        """Return the sums over a batch, and its right answers in each class, as one tensor."""
        x, y = self.x[part], self.y[part]
        correct, loss = _correct_and_loss(model, x, y)
        robust = torch.ones_like(correct)
        robust_loss = torch.full_like(loss, -torch.inf)
        for current in threats:
            draws = KeyedDraws.of(x, self.seed)
            x_adv = self.attack(search, x, y, current, draws=draws)
            correct_adv, loss_adv = _correct_and_loss(model, x_adv, y)
            robust, robust_loss = robust * correct_adv, robust_loss.maximum(loss_adv)
        sums = torch.stack([v.sum() for v in (correct, robust, loss, robust_loss)])
        right = [y.bincount(values, classes) for values in (correct, robust)]
        return torch.cat([sums, *right]).cpu()

    def _of_classes(self, right: Tensor) -> list[float]:
        """Return the mean and the lowest accuracy over the classes that have images.

        Arguments:
            right: The clean and the robust images of each class, with shape (2, K).
        """
        sizes = self.y.bincount(minlength=right.shape[1]).cpu()
        parts = (right / sizes)[:, sizes > 0]
        if not parts.shape[1]:
            return [0.0] * 4
        return [*parts.mean(1).tolist(), *parts.amin(1).tolist()]


def _correct_and_loss(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether answers are correct (1 or 0) and the losses, both (B,) in float64."""
    logits = model(x)
    return (logits.argmax(1) == y).double(), cross_entropy(logits, y).double()
