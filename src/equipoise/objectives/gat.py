r"""Guided adversarial training (GAT): one step, guided by the distance from the clean answer.

.. math:: \min_\theta \mathrm{CE}(f(x), y) + \lambda \, \|p(x') - p(x)\|_2^2, \qquad
          x' = \Pi\bigl(u + \epsilon \, \mathrm{sign} \nabla_u [\mathrm{CE}(f(u), y)
          + \lambda \, \|p(u) - p(x)\|_2^2]\bigr)

where p is the softmax of f, u = x + (eps/2) s with random signs s, clipped to the range, and p(x)
is held fixed in the search; in the loss the gradient flows through both sides. lambda grows
fourfold for the last 14 % of the training. An update takes a forward pass, for p(x), and three
forward and backward passes, where PGD-AT with ten steps takes eleven.

Readings and deviations from the authors' codes (docs/decisions.md, GAT): p(x) of the search is
that of the model in eval mode, as p(u) is; clean and adversarial inputs pass forward as one batch
(``joint=False``: one after the other, as theirs); the attack uses labels without smoothing. For
L2, which the paper has not, the start has the length eps/2, and the step follows the gradient
scaled to length one; for L1 it is refused.

References:
    | Guided Adversarial Attack for Evaluating and Enhancing Adversarial Defenses
    | (Sriramanan et al., 2020), https://arxiv.org/abs/2011.14969
"""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD, Ascended
from equipoise.draws import Draws
from equipoise.errors import UserError
from equipoise.objectives.core import Batch, Knots, Loss, scheduled
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import TwoSided, exact


def guided_attack() -> PGD:
    """Return the attack of GAT: one step of eps from x + (eps/2) random signs."""
    return PGD(steps=1, step_factor=1, start="signs", keep="last", norms=("linf", "l2"))


@dataclass(frozen=True, kw_only=True)
class GAT(TwoSided):
    """Guided adversarial training: one step, a quarter of the cost of PGD-AT.

    The step climbs the cross-entropy and the squared distance from the clean answer.

    Arguments:
        beta: The weight of the squared distance, lambda in the paper.
        beta_factors: The factors on it at the places ``beta_at``.
        beta_at: The places, as progress from 0 to 1; None spreads them evenly.
    """

    ascends: ClassVar[str] = "CE(f(x'), y) + b |p(x') - p(x)|^2"
    objective: str = "gat"
    beta: Annotated[float, "(0, inf)"] = 10.0
    beta_factors: Annotated[tuple[float, ...], "(0, inf)"] = (1.0, 1.0, 4.0, 4.0)
    beta_at: tuple[float, ...] | None = (0.0, 0.86, 0.86, 1.0)
    attack: PGD = field(default_factory=guided_attack)

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each."""
        problems = super().problems()
        if self.attack.loss != "ce" or self.attack.confidence is not None:
            problems.append(
                "GAT climbs the cross-entropy and a distance: attack.loss and attack.confidence "
                "have no meaning here"
            )
        try:
            self.growth  # noqa: B018  # raises an error for places that do not fit
        except UserError as error:
            problems.append(str(error))
        return problems

    @property
    def growth(self) -> Knots:
        """Return the factor on beta over the progress of the training."""
        return scheduled("beta", self.beta_factors, self.beta_at)

    def weight(self, progress: float) -> float:
        """Return the weight of the squared distance at a progress."""
        return self.beta * self.growth(progress)

    def ascended(self, model: nn.Module, batch: Batch, labels: Labels) -> Ascended:
        """Return cross-entropy and the distance from the clean answer, which is held fixed."""
        entropies, weight = super().ascended(model, batch, labels), self.weight(batch.progress)
        with torch.no_grad():
            p = exact(model(batch.x)).softmax(1)
        return lambda logits, index: (
            entropies(logits, index) + weight * distance(logits.softmax(1), p[index])
        )

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the loss on both kinds."""
        x_adv, weight = self.search(model, batch, labels, draws), self.weight(batch.progress)

        def loss() -> Tensor:
            clean, robust = self.logits(model, batch.x, x_adv)
            apart = distance(robust.softmax(1), clean.softmax(1))
            return labels.mean(labels.cross_entropy(clean) + weight * apart)

        return loss

    def terms(self) -> list[str]:
        """Return the loss, and the weight over the progress."""
        knots = zip(self.growth.values, self.growth.places, strict=True)
        over = ", ".join(f"{self.beta * factor:g} at {place:g}" for factor, place in knots)
        return [
            "mean over the batch of CE(f(x), y) + b |p(x') - p(x)|^2,",
            f"  b over the progress: {over}, on straight lines between",
        ]


def distance(p: Tensor, q: Tensor) -> Tensor:
    """Return the squared distances of rows, with shape (B,)."""
    return (p - q).square().sum(1)
