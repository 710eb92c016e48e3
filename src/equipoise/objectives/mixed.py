r"""Mixed adversarial training: :math:`(1 - w)\,\mathrm{CE}(f(x), y) + w\,\mathrm{CE}(f(x'), y)`.

Not in the paper, but the control for every claim about a trade-off: one learner with one weight.
w = 0 is standard training, without a search, and w = 1 is PGD-AT, without clean inputs.

:class:`Following` has the same loss on the adversarial inputs of another learner in the same step:
their search, nine tenths of an update, is done once. Against this learner they are a transfer
attack, which is the weaker the more the two learners differ.

References:
    | Explaining and Harnessing Adversarial Examples (Goodfellow et al., 2015), section 6
    | https://arxiv.org/abs/1412.6572
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.errors import Part
from equipoise.objectives.core import Batch, Loss, Objective, smoothing_line
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import TwoSided, exact


@dataclass(frozen=True, kw_only=True)
class Mixed(TwoSided):
    """Clean and adversarial cross-entropy, weighted and averaged: the control of a trade-off.

    Arguments:
        weight: w, the weight of the adversarial cross-entropy, in [0, 1].
    """

    objective: str = "mix-at"
    weight: Part = 0.5

    @property
    def kind(self) -> Literal["clean", "adversarial", "both"]:
        """Return the kind of inputs in the loss."""
        return "clean" if self.weight == 0 else "adversarial" if self.weight == 1 else "both"

    def loss(self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Loss:
        """Search for adversarial inputs; return the mean of both losses."""
        if self.weight == 0:
            return lambda: labels.mean(labels.cross_entropy(model(batch.x)))
        x_adv = self.search(model, batch, labels, draws)
        if self.weight == 1:
            return lambda: labels.mean(labels.cross_entropy(model(x_adv)))

        def loss() -> Tensor:
            clean, robust = self.logits(model, batch.x, x_adv)
            lost, lost_adv = (labels.mean(labels.cross_entropy(z)) for z in (clean, robust))
            return (1 - self.weight) * lost + self.weight * lost_adv

        return loss

    def terms(self) -> list[str]:
        """Return the loss."""
        w = self.weight
        return [f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(x'), y)"]


@dataclass(frozen=True, kw_only=True)
class Following(Objective):
    """Clean images, and the adversarial ones found for the robust learner.

    Arguments:
        weight: w, the weight of the adversarial inputs, in [0, 1).
    """

    follows: ClassVar[str | None] = "robust"
    objective: str = "following"
    weight: Annotated[float, "[0, 1)"] = 0.1

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss; clean and adversarial inputs pass forward as one batch."""
        del draws
        labels = Labels(batch.y, smoothing=self.label_smoothing, weight=batch.weight)
        if self.weight == 0:
            yield labels.mean(labels.cross_entropy(exact(model(batch.x))))
            return
        assert batch.adversarial is not None, "the batch has no adversarial inputs"
        both = exact(model(torch.cat((batch.x, batch.adversarial))))
        clean, robust = (labels.mean(labels.cross_entropy(z)) for z in both.chunk(2))
        yield (1 - self.weight) * clean + self.weight * robust

    @property
    def cost(self) -> int:
        """Return the passes of the loss: the search is another learner's."""
        return 2 if self.weight else 1

    def formula(self) -> list[str]:
        """Return the loss, and where x' comes from."""
        w = self.weight
        source = "x' = what the learner that it follows has found for itself"
        return [
            f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(x'), y)",
            *([source, "x and x' pass forward as one batch"] if w else []),
            *smoothing_line(self.label_smoothing),
        ]
