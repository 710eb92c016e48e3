r"""The search of friendly adversarial training: ascent that ends soon after success.

An example may take :math:`\tau` further steps once it is misclassified. Before each step

* an example that is classified correctly takes it;
* one that is misclassified takes it if its budget is not spent, and pays one of it;
* one that is misclassified with nothing left stays where it is, for good.

So with :math:`\tau = 0` an example that the random start fools already is not moved. Deviations
from the authors' code: the batch keeps its order (theirs puts stopped examples first, and labels
and clean images with them); all examples are handled at once rather than in a loop; the graph of
the clean logits is not kept.

References:
    | Attacks Which Do Not Kill Training Make Adversarial Learning Stronger (Zhang et al., 2020)
    | https://arxiv.org/abs/2002.11242
"""

__all__ = ["Tau", "friendly"]

from bisect import bisect_right
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.attacks.core import guest, input_gradient
from equipoise.attacks.pgd import PGD, Ascended, located
from equipoise.draws import Draws, normal
from equipoise.errors import UserError
from equipoise.threat import Threat


@dataclass(frozen=True)
class Tau:
    r"""The budget :math:`\tau` over the training, constant between its places.

    Example:
        >>> Tau((0, 1, 2), (0.0, 0.42, 0.75))(0.5)
        1

    Arguments:
        values: The budgets.
        at: The progress from which on each of them holds, from 0 on; None spreads them evenly.
    """

    values: tuple[int, ...]
    at: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        places = self.places
        if not self.values or min(self.values) < 0:
            raise UserError(f"tau must be whole numbers >= 0, got {list(self.values)}")
        rising = list(places) == sorted(places)
        if len(places) != len(self.values) or not rising or places[0] != 0 or places[-1] >= 1:
            raise UserError(
                f"tau_at must name a rising progress in [0, 1) for each of the "
                f"{len(self.values)} values of tau, the first 0, got {list(places)}; "
                "tau_at=none spreads them evenly"
            )

    @property
    def places(self) -> tuple[float, ...]:
        """Return from where on each value holds."""
        if self.at is not None:
            return self.at
        return tuple(i / len(self.values) for i in range(len(self.values)))

    def __call__(self, progress: float) -> int:
        """Return the budget at a progress."""
        return self.values[max(bisect_right(self.places, progress + 1e-9) - 1, 0)]


def friendly(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    draws: Draws,
    *,
    attack: PGD,
    losses: Ascended,
    tau: int,
    omega: float = 0.0,
) -> tuple[Tensor, int]:
    r"""Return adversarial inputs and the gradient evaluations that they took.

    Arguments:
        model: The model.
        x: The clean inputs, with shape (B, ...).
        y: The labels, with shape (B,).
        threat: The ball and the range.
        draws: The randomness.
        attack: The start, the number of steps and their length.
        losses: What is maximised; see :meth:`PGD.search`.
        tau: :math:`\tau`.
        omega: The standard deviation of the noise that is added to each step.
    """
    with guest(model), torch.no_grad():
        x = x.detach()
        x_adv = attack.start_at(x, threat, draws)
        index = torch.arange(len(y), device=y.device)
        left = torch.full_like(y, tau)
        spent = 0
        for _ in range(attack.steps):
            spent += len(index)
            point = x_adv[index]
            logits, _, grad = input_gradient(model, point, located(losses, index))
            wrong = logits.argmax(1) != y[index]
            goes = (~wrong | (left > 0)).nonzero()[:, 0]  # one look at the device a step
            index, left = index[goes], (left - wrong.long())[goes]
            draws = draws.select(goes)
            if not len(index):
                break
            length = attack.step_length(threat)  # added as PGD does, to the last bit
            moved = torch.add(point[goes], threat.ascent(grad[goes]), alpha=length)
            if omega:
                moved = moved + omega * normal(draws, moved)
            x_adv[index] = threat.project(x[index], moved)
    return x_adv, spent
