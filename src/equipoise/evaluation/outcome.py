"""One attack of an evaluation, and its result: which examples stay correct, and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from equipoise.attacks.core import Attack

COSTS = ("forwards", "backwards", "seconds", "rejected", "nonfinite")  # sums over the images
TRANSFER = "transfer"  # the outcome of adversarial examples of other models or evaluations


@dataclass(frozen=True)
class Stage:
    """One attack of an evaluation.

    Arguments:
        name: Its name in the result; for a stage of an ensemble ``ensemble/stage``.
        attack: The attack.
        ensemble: The name of its ensemble; empty: none.
        after: It attacks the examples that are still robust after these stages; none: all correct
            examples.
        share: It attacks this share of them, those with the smallest margin so far.
    """

    name: str
    attack: Attack
    ensemble: str = ""
    after: tuple[str, ...] = ()
    share: float = 1.0


@dataclass(frozen=True, kw_only=True, repr=False)
class Outcome:
    """The verdicts of one attack, and their cost.

    Arguments:
        verdict: Whether each example stays correct, with shape (N,); true also where it
            was not attacked.
        attacked: Which examples were attacked, with shape (N,).
        ensemble: The name of the ensemble that it is a stage of; empty: none.
        settings: Its settings, as text.
        notes: How it was changed for this model, in sentences.
        finished: Whether it has attacked all its examples.
        forwards: Examples that passed forward through the model.
        backwards: Examples that passed backward through it.
        seconds: The time it took.
        rejected: The number of its points outside the threat.
        nonfinite: The number of its points with outputs that are not finite.
        distortion: The values of :data:`equipoise.measures.cmmr.RAW` of its own point for each
            example that it fooled, else NaN, with shape (N, 4); None: not measured.
        made: The settings of the search (seed, precision, layout, compile, batch_size, strongest)
            and its machine (torch, device, threads): together with its name, everything that is
            needed to run it again.
    """

    verdict: Tensor
    attacked: Tensor
    ensemble: str = ""
    settings: str = ""
    notes: tuple[str, ...] = ()
    finished: bool = False
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    rejected: int = 0
    nonfinite: int = 0
    distortion: Tensor | None = None
    made: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        attacked, broken = int(self.attacked.sum()), int(self.broken.sum())
        rest = "" if self.finished else ", not finished"
        return f"Outcome({attacked} of {len(self.verdict)} attacked, {broken} broken{rest})"

    @classmethod
    def begun(cls, correct: Tensor, **given: Any) -> "Outcome":
        """Return the outcome of an attack that has not run yet, with some of its fields."""
        return cls(verdict=correct.clone(), attacked=torch.zeros_like(correct), **given)

    def to(self, device: torch.device) -> "Outcome":
        """Return it with its tensors on a device."""
        distortion = None if self.distortion is None else self.distortion.to(device)
        verdict, attacked = self.verdict.to(device), self.attacked.to(device)
        return replace(self, verdict=verdict, attacked=attacked, distortion=distortion)

    @property
    def broken(self) -> Tensor:
        """Which examples the attack fooled, with shape (N,)."""
        return self.attacked & ~self.verdict

    @property
    def plain(self) -> dict[str, Any]:
        """All fields except the tensors, by name, as JSON can hold them."""
        tensors = ("verdict", "attacked", "distortion")
        names = (f.name for f in fields(self) if f.name not in tensors)
        return {name: getattr(self, name) for name in names}
