r"""Mixed adversarial training: :math:`(1 - w)\,\mathrm{CE}(f(x), y) + w\,\mathrm{CE}(f(x'), y)`.

Not in the paper, but the control that any claim about a trade-off has to face: one learner, one
knob. At w = 0 nothing is searched for and at w = 1 nothing is lost on
clean inputs: they are standard training and PGD-AT.

References:
    | Explaining and Harnessing Adversarial Examples (Goodfellow et al., 2015), section 6
    | https://arxiv.org/abs/1412.6572
"""

from dataclasses import dataclass

from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.errors import Part
from equipoise.objectives.core import Batch, Loss
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import TwoSided


@dataclass(frozen=True, kw_only=True)
class Mixed(TwoSided):
    """Clean and adversarial cross-entropy, weighted and averaged: the control of a trade-off.

    Arguments:
        weight: w, the weight of the adversarial one, in [0, 1].
    """

    objective: str = "mix-at"
    weight: Part = 0.5

    @property
    def both(self) -> bool:
        """Return whether both kinds are trained on."""
        return 0 < self.weight < 1

    @property
    def attacks(self) -> bool:
        """Return whether adversarial inputs are trained on at all."""
        return self.weight > 0

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the mean of both losses."""
        if self.weight == 0:
            return lambda: labels.cross_entropy(model(batch.x)).mean()
        x_adv = self.search(model, batch, labels, draws)
        if self.weight == 1:
            return lambda: labels.cross_entropy(model(x_adv)).mean()

        def loss() -> Tensor:
            clean, robust = self.logits(model, batch.x, x_adv)
            lost, lost_adv = (labels.cross_entropy(z).mean() for z in (clean, robust))
            return (1 - self.weight) * lost + self.weight * lost_adv

        return loss

    def terms(self) -> list[str]:
        """Return the loss."""
        w = self.weight
        return [f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(x'), y)"]
