r"""Self-adaptive training with TRADES: labels that learn from the model.

Every training image keeps a soft label :math:`t_i`, at first its one-hot label. From the round
``onset`` on

.. math:: t_i \leftarrow a\, t_i + (1 - a)\, p(x_i), \qquad w_i \propto \max_k t_{ik}, \qquad
          \frac1n \sum_i w_i \, \mathrm{CE}(f(x_i), t_i) + \beta \, \mathrm{KL}(p(x_i) \| p(x'_i))

with weights of mean 1 over the batch and :math:`p(x)` of the same forward pass, without a
gradient. Before, it is TRADES. Soft labels are state: they are saved, and a resumed training has
them. Which label belongs to which image is told by the index in the batch.

Deviations from the authors' code: theirs does not save the labels, so that a resumed training
begins with hard ones again. Those of :mod:`equipoise.objectives.trades` hold here, too.

References:
    | Self-Adaptive Training: beyond Empirical Risk Minimization (Huang et al., 2020)
    | https://arxiv.org/abs/2002.10319
"""

__all__ = ["SelfAdaptive"]

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.attacks.core import refuse
from equipoise.draws import Draws
from equipoise.errors import UserError
from equipoise.losses import cross_entropy
from equipoise.objectives.core import Batch
from equipoise.objectives.labels import Labels
from equipoise.objectives.trades import TRADES


class SelfAdaptive(TRADES):
    """TRADES whose clean part is taken with soft labels from a round on.

    Arguments:
        onset: The progress from which on the labels learn.
        memory: a, what a label keeps of itself at each visit.
        settings: Those of :class:`TRADES`.
    """

    soft: Tensor

    def __init__(self, *, onset: float = 0.69, memory: float = 0.9, **settings: Any) -> None:
        super().__init__(**settings)
        refuse(
            [
                f"{name} must lie in [0, 1], got {value}"
                for name, value in (("onset", onset), ("memory", memory))
                if not 0 <= value <= 1
            ]
        )
        if self.options.cutmix:
            raise UserError("soft labels belong to whole images: cutmix does not fit them")
        self.onset, self.memory = onset, memory
        self.register_buffer("soft", torch.zeros(0, 0))
        self._learned: tuple[Tensor, Tensor] | None = None

    def prepare(self, y: Tensor, classes: int) -> None:
        """Make the soft labels of a training set."""
        self.soft = Labels(y, smoothing=self.options.label_smoothing).target(classes).to(y.device)

    def forward(self, model: nn.Module, batch: Batch, draws: Draws) -> Iterator[Tensor]:
        """Yield the loss; then the labels of the batch are what they have become."""
        if not len(self.soft):
            raise UserError("soft labels need the training set: call prepare(y, classes) first")
        self._learned = None
        yield from super().forward(model, batch, draws)
        if self._learned is not None:
            index, labels = self._learned
            self.soft[index] = labels

    def clean(self, logits: Tensor, batch: Batch, labels: Labels) -> Tensor:
        """Return the weighted cross-entropy with soft labels; before the onset that with hard."""
        if batch.progress + 1e-9 < self.onset:
            return super().clean(logits, batch, labels)
        if self._learned is None:  # perturbed weights are asked a second time: same labels
            answer = logits.detach().softmax(1).to(self.soft.dtype)
            learned = self.memory * self.soft[batch.index] + (1 - self.memory) * answer
            self._learned = batch.index, learned
        _, soft = self._learned
        weights = soft.amax(1)
        weights = weights / weights.mean()
        return (weights.to(logits) * cross_entropy(logits, soft.to(logits))).mean()

    def terms(self) -> list[str]:
        """Return the loss before and from the onset on."""
        return [
            f"before progress {self.onset:g}: {super().terms()[0]}",
            f"then: mean over the batch of w CE(f(x), t) + {self.beta:g} KL(p(x) || p(x')),",
            f"  t <- {self.memory:g} t + {1 - self.memory:.3g} p(x) for each image,",
            "  w = max over k of t_k, over its mean",
        ]
