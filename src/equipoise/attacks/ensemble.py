r"""AutoAttack: four attacks with different weaknesses, in turn on the images not yet fooled.

==============  =========================================================================
standard        APGD-CE, APGD-T (9 targets), FAB-T (9 targets), Square (5000 queries),
                100 steps and one restart each; for L1 APGD-CE has 5 restarts and APGD-T
                5 targets, both from larger radii inwards
plus            APGD-CE and APGD-DLR with 5 restarts, FAB with 5, Square, APGD-T and FAB-T
rand            APGD-CE and APGD-DLR, each step and each verdict averaged over 20 passes:
                for models whose answers are random
==============  =========================================================================

Every attack starts from the clean input and skips the examples that an earlier attack fooled.
With fewer than ten classes there are K - 1 targets; where the DLR loss is undefined the margin is
used, and the result has a note about it.

Deviations from the authors' code, none of them weaker: randomness is keyed by example instead of
by batch; all targets of an example are attacked in the same batch; a point only counts as fooled
if the float32 model misclassifies it after the search; in ``rand`` the verdict is that of the
averaged probabilities, theirs that of the last pass. Each attack lists its own deviations.

References:
    | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    | Attacks (Croce and Hein, 2020)
    | https://arxiv.org/abs/2003.01690
    | Mind the Box: l1-APGD for Sparse Adversarial Attacks on Image Classifiers (2021)
    | https://arxiv.org/abs/2103.01208
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import APGDCE, APGDDLR, APGDT
from equipoise.attacks.core import Attack, cost, prepared, refuse
from equipoise.attacks.fab import FAB, FABT
from equipoise.attacks.margin import MarginAscent, Noise
from equipoise.attacks.pgd import PGD
from equipoise.attacks.square import Square
from equipoise.draws import Draws
from equipoise.errors import UserError, out_of_range
from equipoise.execution.form import guest
from equipoise.losses import margin
from equipoise.threat import NORMS, Norm, Threat

Version = Literal["standard", "plus", "rand"]

VERSIONS: tuple[Version, ...] = ("standard", "plus", "rand")

PASSES = 20  # forward passes of a step and of a verdict in ``rand``


class Ensemble(ABC):
    """Attacks that run one after the other, each on the examples that are not yet fooled."""

    norms: tuple[Norm, ...]

    @abstractmethod
    def stages(self, norm: Norm) -> Mapping[str, Attack]:
        """Return the attacks by name, in the order in which they run."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the strongest ``x_adv`` found for every example: see :class:`Attack`.

        :func:`equipoise.evaluate` does the same, keeps the verdicts of each stage, and decides
        them separately from the search.
        """
        x, y, draws = prepared(self, x, y, threat, draws)
        best, lowest = x.clone(), torch.full_like(y, torch.inf, dtype=torch.float64)
        left = torch.arange(len(x), device=x.device)
        for name, attack in self.stages(threat.norm).items():
            if not len(left):
                break
            source = draws.child(name).select(left)
            points = attack(model, x[left], y[left], threat, draws=source)
            margins = _margins(model, points, y[left])
            better = margins < lowest[left]
            best[left[better]], lowest[left[better]] = points[better], margins[better]
            left = left[lowest[left] > 0]
        return best


@dataclass(frozen=True, kw_only=True)
class AutoAttack(Ensemble):
    """The ensemble of Croce and Hein.

    Example:
        >>> list(AutoAttack().stages("linf"))
        ['apgd-ce', 'apgd-t', 'fab-t', 'square']

    Arguments:
        version: ``"standard"``, ``"plus"`` or ``"rand"``.
        norms: The norms for which it is defined.
    """

    version: Version = "standard"
    norms: tuple[Norm, ...] = NORMS

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise UserError(f"version must be one of {', '.join(VERSIONS)}, got {self.version!r}")

    @property
    def passes(self) -> int:
        """Return the number of forward passes over which a verdict is averaged."""
        return PASSES if self.version == "rand" else 1

    def stages(self, norm: Norm) -> dict[str, Attack]:
        """Return the attacks by name, in the order in which they run."""
        if self.version == "rand":
            return {"apgd-ce": APGDCE(eot=PASSES), "apgd-dlr": APGDDLR(eot=PASSES)}
        targets = 5 if norm == "l1" else 9
        if self.version == "plus":
            return {
                "apgd-ce": APGDCE(restarts=5),
                "apgd-dlr": APGDDLR(restarts=5),
                "fab": FAB(restarts=5),
                "square": Square(),
                "apgd-t": APGDT(targets=targets),
                "fab-t": FABT(),
            }
        return {
            "apgd-ce": APGDCE(restarts=5 if norm == "l1" else 1),
            "apgd-t": APGDT(targets=targets),
            "fab-t": FABT(),
            "square": Square(),
        }

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        every = sum(cost(stage, norm) for stage in self.stages(norm).values())
        return every / 2  # the later stages attack fewer images


@dataclass(frozen=True, kw_only=True)
class Audited(Ensemble):
    """A cheap search on all examples; :func:`equipoise.evaluate` then audits it with AutoAttack.

    Randomly drawn examples that the search leaves go through the whole of standard AutoAttack:
    see :mod:`equipoise.evaluation.audit`. Called as an attack it is the search alone.

    Arguments:
        within: The audit ends when the search is shown to be at most so much above AutoAttack,
            as a difference of accuracies in (0, 1].
        budget: It also ends when search and audit have taken about this share of AutoAttack's
            passes, unless the audit finds something that the search missed.
        norms: The norms for which it is defined.
    """

    within: Annotated[float, "(0, 1]"] = 0.01
    budget: Annotated[float, "(0, 1]"] = 1.0
    norms: tuple[Norm, ...] = NORMS

    def __post_init__(self) -> None:
        refuse(out_of_range(self))

    def stages(self, norm: Norm) -> dict[str, Attack]:
        """Return the attacks of the search, in the order in which they run."""
        return {
            "noise": Noise(),
            "pgd-10": PGD(steps=10),
            "margin": MarginAscent(targets=5),
            "restarts": MarginAscent(diversified=7, restarts=2),
        }

    def probes(self, norm: Norm) -> dict[str, Attack]:
        """Return what is tried on a few examples that the search leaves."""
        return {"pgd-50": PGD(steps=50), "square-200": Square(queries=200)}

    def audit(self, norm: Norm) -> dict[str, Attack]:
        """Return all attacks of the audit: those on a few examples, and AutoAttack's stages."""
        return self.probes(norm) | self.auditor(norm)

    def auditor(self, norm: Norm) -> dict[str, Attack]:
        """Return the stages of AutoAttack."""
        return AutoAttack().stages(norm)

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image."""
        search = sum(cost(stage, norm) for stage in self.stages(norm).values())
        return search + min(self.budget, 0.3) * AutoAttack().cost(norm)


def _margins(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    if not len(x):
        return x.new_empty(0, dtype=torch.float64)
    with guest(model) as model, torch.no_grad():
        return -margin(model(x).double(), y)
