r"""TRADES: clean accuracy and a smooth answer around it.

.. math:: \min_\theta \frac1n \sum_i \mathrm{CE}(f(x_i), y_i)
          + \beta \, \mathrm{KL}(p(x_i) \,\|\, p(x'_i)), \qquad
          x' = \arg\max \mathrm{KL}(p(x) \,\|\, p(x'))

The search starts at x + 0.001 N(0, 1), since the divergence has no gradient at x itself, and
:math:`p(x)` is held fixed in it; in the loss the gradient flows through both sides. The
divergence is a mean over the batch (a mean over classes, too, would divide beta by K).

Deviations from the authors' code: clean and adversarial inputs pass forward as one batch
(:class:`equipoise.objectives.TwoSided` says why; ``joint=False`` is theirs); with that clean
inputs pass once rather than twice, with the same value and gradient, so the running statistics of
BatchNorm get both kinds in the ratio 1:1 rather than 2:1; the start is clipped to ball and range.
beta = 0 is standard training, without a search.

References:
    | Theoretically Principled Trade-off between Robustness and Accuracy (Zhang et al., 2019)
    | https://arxiv.org/abs/1901.08573
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD, Ascended
from equipoise.draws import Draws
from equipoise.errors import NotNegative
from equipoise.losses import kl
from equipoise.objectives.core import Batch, Loss
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import TwoSided, exact, noise_attack


@dataclass(frozen=True, kw_only=True)
class TRADES(TwoSided):
    r"""TRADES: clean cross-entropy and the divergence of the adversarial answer.

    Arguments:
        beta: The weight of the divergence (1/lambda in the paper).
    """

    ascends: ClassVar[str] = "KL(p(x) || p(x'))"
    objective: str = "trades"
    beta: NotNegative = 6.0
    attack: PGD = field(default_factory=noise_attack)

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each."""
        problems = super().problems()
        if self.attack.loss != "ce" or self.attack.confidence is not None:
            problems.append(
                "TRADES ascends the divergence: attack.loss and attack.confidence have no "
                "meaning here"
            )
        if self.attack.start == "zero":
            problems.append(
                "the divergence has no gradient at x; use attack.start=noise or uniform"
            )
        return problems

    def ascended(self, model: nn.Module, batch: Batch, labels: Labels) -> Ascended:
        """Return the divergence from the answers to the clean inputs."""
        del labels
        with torch.no_grad():
            clean = exact(model(batch.x))
        return lambda logits, index: kl(clean[index], logits)

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the loss on both."""
        on_clean = self.clean(batch, labels)
        if self.beta == 0:
            return lambda: on_clean(exact(model(batch.x)))
        x_adv = self.search(model, batch, labels, draws)

        def loss() -> Tensor:
            clean, robust = self.logits(model, batch.x, x_adv)
            return on_clean(clean) + self.beta * labels.mean(kl(clean, robust))

        return loss

    def clean(self, batch: Batch, labels: Labels) -> Callable[[Tensor], Tensor]:
        """Return the part of the loss on clean inputs, as a function of their logits."""
        del batch
        return lambda logits: labels.mean(labels.cross_entropy(logits))

    @property
    def kind(self) -> Literal["clean", "adversarial", "both"]:
        """Return the kind of inputs in the loss."""
        return "both" if self.beta else "clean"

    def terms(self) -> list[str]:
        """Return the loss."""
        divergence = f" + {self.beta:g} KL(p(x) || p(x'))" if self.beta else ""
        return [f"mean over the batch of CE(f(x), y){divergence}"]
