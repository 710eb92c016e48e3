r"""Friendly adversarial training (FAT): an inner attack that ends soon after success.

An example may take :math:`\tau` further steps once it is misclassified. Before each step

* an example that is classified correctly takes it;
* one that is misclassified takes it if its budget is not spent, which costs one of it;
* one that is misclassified with nothing left is not moved any more.

So with :math:`\tau = 0` an example whose random start is misclassified is not moved. Deviations
from the authors' code: the batch keeps its order (theirs puts stopped examples first, and labels
and clean images with them); all examples are processed at once rather than in a loop; the graph of
the clean logits is not kept.

References:
    | Attacks Which Do Not Kill Training Make Adversarial Learning Stronger (Zhang et al., 2020)
    | https://arxiv.org/abs/2002.11242
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from equipoise.attacks.pgd import PGD, Ascended, located
from equipoise.draws import Draws, normal
from equipoise.errors import NotNegative
from equipoise.execution.form import guest, input_gradient
from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Batch
from equipoise.objectives.labels import Labels
from equipoise.objectives.mart import MART
from equipoise.objectives.robust import Robust
from equipoise.objectives.trades import TRADES
from equipoise.threat import Threat

Budgets = Annotated[int | tuple[int, ...], "[0, inf)"]


@dataclass(frozen=True, kw_only=True)
class Friendly(Robust):
    """A learner whose inner attack ends soon after success; the last point counts.

    It comes after the objective in the bases of a class: ``class FATTRADES(TRADES, Friendly)``.

    Arguments:
        tau: The steps that the search may take after the first success, one value or several.
        tau_at: The progress from which on each value holds; None spreads them evenly.
    """

    tau: Budgets = 0
    tau_at: tuple[float, ...] | None = None

    def problems(self) -> list[str]:
        """Return the errors in the settings, a sentence each."""
        attack, problems = self.attack, super().problems()
        budgets, places = self.budgets, self.places
        rising = list(places) == sorted(places) and len(places) == len(budgets) > 0
        if not (rising and places[0] == 0 and places[-1] < 1):
            problems.append(
                f"tau_at must name a rising progress in [0, 1) for each of the "
                f"{len(budgets)} values of tau, the first 0, got {list(places)}; "
                "tau_at=none spreads them evenly"
            )
        if attack.restarts > 1 or attack.momentum is not None:
            problems.append("a search with tau takes neither attack.restarts nor attack.momentum")
        if attack.keep == "best":
            problems.append("a search with tau ends where it stops: set attack.keep=last")
        return problems

    @property
    def budgets(self) -> tuple[int, ...]:
        """Return the values of tau."""
        return (self.tau,) if isinstance(self.tau, int) else self.tau

    @property
    def places(self) -> Sequence[float]:
        """Return the progress from which on each value of tau holds."""
        if self.tau_at is not None and not isinstance(self.tau, int):
            return self.tau_at
        return [i / len(self.budgets) for i in range(len(self.budgets))]

    @property
    def noise(self) -> float:
        """Return the standard deviation of the noise that is added to each step."""
        return 0.0

    @property
    def undivided(self) -> str:
        """Return why a batch cannot be divided between processes; empty: it can."""
        drawn = "omega draws noise for the images of a batch that are still searched"
        return drawn if self.noise else super().undivided

    def budget(self, progress: float) -> int:
        """Return the steps after the first success at a progress."""
        place = bisect_right(self.places, progress + 1e-9)
        return self.budgets[max(place - 1, 0)] + self.level

    def searched(self, form: nn.Module, batch: Batch, labels: Labels, draws: Draws) -> Tensor:
        """Return where the search ends, and count its gradient evaluations."""
        x_adv, self.state.spent = friendly(
            form,
            batch.x,
            labels.y,
            self.threat,
            draws,
            attack=self.attack,
            losses=self.ascended(form, batch, labels),
            tau=self.budget(batch.progress),
            omega=self.noise,
        )
        return x_adv

    @property
    def stronger(self) -> PGD:
        """Return the attack unchanged: the budget grows, not the steps."""
        return self.attack

    @property
    def varies(self) -> bool:
        """Return True: the search may end early."""
        return True

    def evaluations(self, n: int) -> int:
        """Return the gradient evaluations of the last update, which had ``n`` examples."""
        return self.state.spent + super().evaluations(n) - self.searching * n

    def weak(self, progress: float) -> bool:
        """Return whether the search stops at the first success."""
        return self.searching > 0 and self.budget(progress) == 0

    def strengthen(self) -> str:
        """Let the search take one more step."""
        self.state.level += 1
        return f"tau is {self.level} larger from here on"

    def search_terms(self) -> list[str]:
        """Return what the attack does, and where it stops."""
        stages = ", ".join(
            f"{v + self.level} from {p:.3g}"
            for v, p in zip(self.budgets, self.places, strict=True)
        )
        noise = f", noise {self.noise:g} a step" if self.noise else ""
        end = f"     ends tau steps after the first success; tau over progress: {stages}{noise}"
        return [*super().search_terms(), end]


@dataclass(frozen=True, kw_only=True)
class FAT(Adversarial, Friendly):
    """Friendly adversarial training: the search ends soon after success.

    Arguments:
        omega: The standard deviation of the noise added to each step.
    """

    objective: str = "fat"
    tau: Budgets = (0, 1, 2)
    tau_at: tuple[float, ...] | None = (0.0, 50 / 120, 90 / 120)
    omega: NotNegative = 0.001

    @property
    def noise(self) -> float:
        """Return the standard deviation of the noise that is added to each step."""
        return self.omega


@dataclass(frozen=True, kw_only=True)
class FATTRADES(TRADES, Friendly):
    """Friendly adversarial training for TRADES."""

    objective: str = "fat-trades"
    tau: Budgets = (0, 1, 2, 3)
    tau_at: tuple[float, ...] | None = (0.0, 30 / 85, 50 / 85, 70 / 85)


@dataclass(frozen=True, kw_only=True)
class FATMART(MART, Friendly):
    """Friendly adversarial training for MART."""

    objective: str = "fat-mart"
    beta: NotNegative = 6.0
    tau: Budgets = (0, 1, 2, 3, 4)
    tau_at: tuple[float, ...] | None = (0.0, 20 / 90, 40 / 90, 60 / 90, 80 / 90)


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
