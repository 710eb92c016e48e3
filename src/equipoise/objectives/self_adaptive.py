r"""Self-adaptive training with TRADES: labels that learn from the model.

Every training image keeps a soft label :math:`t_i`, at first its one-hot label. From the round
``onset`` on

.. math:: t_i \leftarrow a\, t_i + (1 - a)\, p(x_i), \qquad w_i \propto \max_k t_{ik}, \qquad
          \frac1n \sum_i w_i \, \mathrm{CE}(f(x_i), t_i) + \beta \, \mathrm{KL}(p(x_i) \| p(x'_i))

with weights of mean 1 over the batch and :math:`p(x)` of the same forward pass, without a
gradient. Before, it is TRADES. Soft labels are state: they are saved, and a resumed training has
them. The index in the batch says which label belongs to which image.

Deviations from the authors' code: theirs does not save the labels, so that a resumed training
begins with hard ones again. Those of :mod:`equipoise.objectives.trades` hold here, too.

References:
    | Self-Adaptive Training: beyond Empirical Risk Minimization (Huang et al., 2020)
    | https://arxiv.org/abs/2002.10319
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from equipoise.errors import Part, UserError
from equipoise.losses import cross_entropy
from equipoise.objectives.core import Batch
from equipoise.objectives.labels import Labels
from equipoise.objectives.trades import TRADES


@dataclass(frozen=True, kw_only=True)
class SelfAdaptive(TRADES):
    """Self-adaptive training: TRADES whose labels learn from the model.

    Arguments:
        onset: The progress from which on the labels learn.
        memory: a, the weight of the former label in each update.
    """

    objective: str = "sat"
    onset: Part = 0.69
    memory: Part = 0.9

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each."""
        whole = "soft labels belong to whole images: cutmix does not fit them"
        return super().problems() + [whole] * bool(self.cutmix)

    @property
    def undivided(self) -> str:
        """Return why a batch cannot be divided between processes: its labels are state."""
        return "the labels that learn are kept by one process"

    @property
    def soft(self) -> Tensor:
        """Return the soft labels of the training set, with shape (N, K)."""
        if "soft" not in dict(self.state.named_buffers()):
            raise UserError("soft labels need the training set: call prepare(y, classes) first")
        return self.state.get_buffer("soft")

    def prepare(self, y: Tensor, classes: int) -> None:
        """Make the soft labels of a training set."""
        labels = Labels(y, smoothing=self.label_smoothing)
        self.state.register_buffer("soft", labels.target(classes).to(y.device))

    def clean(self, batch: Batch, labels: Labels) -> Callable[[Tensor], Tensor]:
        """Return the weighted cross-entropy with soft labels; before the onset that with hard."""
        soft, index = self.soft, batch.index
        if batch.progress + 1e-9 < self.onset:
            return super().clean(batch, labels)
        learned: list[Tensor] = []  # perturbed weights ask for the loss twice: same labels

        def loss(logits: Tensor) -> Tensor:
            if not learned:
                answer = logits.detach().softmax(1).to(soft.dtype)
                learned.append(self.memory * soft[index] + (1 - self.memory) * answer)
                soft[index] = learned[0]
            weights = learned[0].amax(1)
            weights = weights / weights.mean()
            return labels.mean(weights.to(logits) * cross_entropy(logits, learned[0].to(logits)))

        return loss

    def terms(self) -> list[str]:
        """Return the loss before and from the onset on."""
        return [
            f"before progress {self.onset:g}: {super().terms()[0]}",
            f"then: mean over the batch of w CE(f(x), t) + {self.beta:g} KL(p(x) || p(x')),",
            f"  t <- {self.memory:g} t + {1 - self.memory:.3g} p(x) for each image,",
            "  w = max over k of t_k, over its mean",
        ]
