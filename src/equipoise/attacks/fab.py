r"""The fast adaptive boundary attack: the smallest change that alters the decision.

From the iterate :math:`x_k` the decision between the label :math:`y` and a rival :math:`s` is
taken as linear, with :math:`w = \nabla (z_s - z_y)(x_k)`. Both :math:`x_k` and the clean
:math:`x` are projected onto that hyperplane within the range, :math:`x_k + \delta_1` and
:math:`x + \delta_2`, and

.. math:: x_{k+1} = \mathrm{clip}\bigl((1 - \alpha)(x_k + \eta \, \delta_1)
          + \alpha (x + \eta \, \delta_2)\bigr), \qquad
          \alpha = \min\Bigl(\frac{\|\delta_1\|}{\|\delta_1\| + \|\delta_2\|}, \alpha_{max}\Bigr).

A misclassified :math:`x_{k+1}` is kept if it is the nearest so far, and drawn back to
:math:`x + \beta (x_{k+1} - x)`. Its target is the distance, not a loss: it needs no step size
and does not care for the scale of the logits.

==========  ====================================================================================
FAB         the rival is the nearest of all classes in each step, which takes K - 1 backward
            passes
FAB-T       one search for each of the rivals with the highest clean logits, all at once
==========  ====================================================================================

Deviations from the authors' code: the targets of an example are searched side by side, so that
one that is found ends the others at once; an example with a misclassified point within the
radius is done; where there is none, the nearest points are brought back to the radius and tried
there; the projections need no sort; distances are judged in float64. As there, the final search
of the paper is left out, so that distances are about half a percent too long. With the search
form of a model, near misses are searched on with the model itself.

References:
    | Minimally distorted Adversarial Examples with a Fast Adaptive Boundary Attack
    | (Croce and Hein, 2020)
    | https://arxiv.org/abs/1907.02044
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    | Parameter-free Attacks (Croce and Hein, 2020), for FAB-T
    | https://arxiv.org/abs/2003.01690
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from equipoise.attacks.core import (
    guest,
    prepared,
    refuse,
    uncounted,
    wrong_norms,
)
from equipoise.attacks.fab_search import BoundarySearch
from equipoise.draws import Draws
from equipoise.errors import Part, out_of_range
from equipoise.threat import Norm, Threat


@dataclass(frozen=True, kw_only=True)
class FAB:
    r"""The fast adaptive boundary attack, untargeted or against several targets at once.

    Arguments:
        steps: The number of steps; each is one forward and one backward pass, and one more
            forward pass, per target; untargeted it is K - 1 backward passes.
        restarts: How often to search; all but the first from random points at half the radius,
            and only where nothing was found yet.
        targets: How many of the other classes to search for, those with the highest clean
            logits first; None searches for the nearest.
        alpha_max: The largest weight :math:`\alpha_{max}` of the clean point.
        eta: How far beyond the hyperplane to go, :math:`\eta`, as a multiple of the way there.
        beta: How far to go back after a success, :math:`\beta`, as a share of the distance.
        norms: The norms for which the attack is defined.
    """

    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    alpha_max: Part = 0.1
    eta: Annotated[float, "[1, inf)"] = 1.05
    beta: Part = 0.9
    norms: tuple[Norm, ...] = ("linf", "l2", "l1")

    def __post_init__(self) -> None:
        counts = ["steps", "restarts"] + ["targets"] * (self.targets is not None)
        problems = uncounted(self, *counts)
        refuse([*problems, *out_of_range(self), *wrong_norms(self.norms)])

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        return float(self.steps * self.restarts * (self.targets or 1))

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`.

        Where nothing was found within the radius, the nearest points beyond it are brought into
        the threat, and the one with the largest margin comes back.
        """
        x, y, draws = prepared(self, x, y, threat, draws)
        if not len(x) or threat.eps == 0:
            return x.clone()
        with guest(model) as model, torch.no_grad():
            return self._search(model, threat, nearest=False)(x, y, draws).points

    def nearest(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the nearest misclassified points, however far, and their distances.

        No example leaves the search before its last step.

        Arguments:
            model: From inputs within the threat's range to logits, with shape (B, K).
            x: The clean inputs, with shape (B, ...).
            y: The labels, int64, with shape (B,).
            threat: The norm and the range; its radius matters to restarts alone.
            draws: The randomness; by default it is keyed by the examples with seed 0.

        Returns:
            Points with the shape of ``x``, and distances in float64 with shape (B,): zero where
            x itself is misclassified, infinite (and the point x) where nothing was found.
        """
        x, y, draws = prepared(self, x, y, threat, draws)
        if not len(x):
            return x.clone(), torch.zeros(0, dtype=torch.float64, device=x.device)
        with guest(model) as model, torch.no_grad():
            found = self._search(model, threat, nearest=True)(x, y, draws)
        distances = threat.distance(x, found.points)
        return found.points, distances.masked_fill(found.distance.isinf(), math.inf)

    def rows_per_example(self, classes: int) -> int:
        """Return how many rows of a batch one example takes."""
        return 1 if self.targets is None else min(self.targets, classes - 1)

    def notes(self, classes: int) -> list[str]:
        """Return what had to be changed for so few classes, in sentences."""
        if self.targets is None or self.targets < classes:
            return []
        rows = self.rows_per_example(classes)
        return [f"FAB-T has {rows} target{'s' * (rows > 1)} instead of {self.targets}"]

    def _search(self, model: nn.Module, threat: Threat, *, nearest: bool) -> BoundarySearch:
        return BoundarySearch(
            model=model,
            threat=threat,
            nearest=nearest,
            steps=self.steps,
            restarts=self.restarts,
            targets=self.targets,
            alpha_max=self.alpha_max,
            eta=self.eta,
            beta=self.beta,
        )


def FABT(*, steps: int = 100, restarts: int = 1, targets: int = 9) -> FAB:  # noqa: N802
    """Return targeted FAB: against the ``targets`` highest other classes of the clean logits."""
    return FAB(steps=steps, restarts=restarts, targets=targets)
