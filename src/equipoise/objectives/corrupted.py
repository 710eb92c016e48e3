r"""Training on corrupted images.

.. math:: (1 - w) \, \mathrm{CE}(f(x), y) + w \, \mathrm{CE}(f(c(x)), y)

Each image of a step gets a random kind of corruption c at a random severity. That is
augmentation, not an attack. Accuracy on the kinds of corruptions that a model was trained on does
not say what it is on other kinds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from equipoise.data.corruptions import STRENGTHS, corrupted
from equipoise.draws import Draws
from equipoise.errors import Part
from equipoise.objectives.core import Batch, Objective, smoothing_line
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import exact


@dataclass(frozen=True, kw_only=True)
class Corrupted(Objective):
    """Clean and corrupted images: noise, blur, JPEG, brightness and contrast. No attack.

    Arguments:
        weight: w, the weight of the corrupted images, in [0, 1].
        severity: The largest severity; each image gets one from 1 to this.
    """

    objective: str = "corrupted"
    weight: Part = 0.5
    severity: Annotated[int, "[1, 5]"] = 5

    @property
    def undivided(self) -> str:
        """Return why a batch cannot be divided between processes: kinds are drawn together."""
        return "random numbers are drawn for all images of a batch with one kind of corruption"

    def losses(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss; clean and corrupted images pass forward as one batch."""
        labels = Labels(batch.y, smoothing=self.label_smoothing, weight=batch.weight)
        both = exact(model(torch.cat((batch.x, self.attacked(model, batch, draws)))))
        clean, changed = (labels.mean(labels.cross_entropy(z)) for z in both.chunk(2))
        yield (1 - self.weight) * clean + self.weight * changed

    def attacked(self, model: nn.Module, batch: Batch, draws: Draws) -> Tensor:
        """Return the images, each with a random corruption."""
        del model
        kinds, made = [*STRENGTHS], batch.x.clone()
        drawn = draws.uniform(batch.x.new_empty(len(batch.x), 2))
        kind, severity = (drawn * drawn.new_tensor([len(kinds), self.severity])).long().T
        for k, s in torch.unique(torch.stack((kind, severity)), dim=1).T.tolist():
            chosen = ((kind == k) & (severity == s)).nonzero()[:, 0]
            some = draws.select(chosen)
            made[chosen] = corrupted(batch.x[chosen], kinds[k], s + 1, some)
        return made

    @property
    def cost(self) -> int:
        """Return the passes of the loss: one for each kind of inputs."""
        return 2

    def formula(self) -> list[str]:
        """Return the loss, and what c is."""
        w = self.weight
        return [
            f"mean over the batch of {1 - w:g} CE(f(x), y) + {w:g} CE(f(c(x)), y)",
            f"c: one by chance of {', '.join(STRENGTHS)}, at a severity of 1 to {self.severity}",
            "x and c(x) pass forward as one batch",
            *smoothing_line(self.label_smoothing),
        ]
