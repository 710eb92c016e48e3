"""The result of one attack: which examples it attacked, which stay correct, and its cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, repr=False)
class Outcome:
    """The verdicts of one attack, and their price.

    Arguments:
        verdict: Whether each example stays correct, with shape (N,); true also where it
            was not attacked.
        attacked: Which examples were attacked, with shape (N,).
        ensemble: The ensemble it was a stage of, or nothing.
        settings: Its settings, in words.
        notes: What had to be changed for this model, in sentences.
        finished: Whether all examples that were to be attacked were.
        forwards: Examples that passed forward through the model.
        backwards: Examples that passed backward through it.
        seconds: The time it took.
        rejected: How many of its points were outside the threat.
        nonfinite: On how many of its points the model's output was not finite.
        made: How it searched (seed, precision, layout, compile, batch_size, strongest) and on what
            (torch, device, threads): with its name, which :func:`equipoise.attacks.parse` takes,
            all that is needed to run it again.
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
    made: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        attacked, broken = int(self.attacked.sum()), int(self.broken.sum())
        rest = "" if self.finished else ", not finished"
        return f"Outcome({attacked} of {len(self.verdict)} attacked, {broken} broken{rest})"

    @classmethod
    def begun(cls, correct: Tensor, **given: Any) -> "Outcome":
        """Return the outcome of an attack that has not run yet, with what is given of it."""
        return cls(verdict=correct.clone(), attacked=torch.zeros_like(correct), **given)

    @property
    def broken(self) -> Tensor:
        """Tell which examples the attack broke, with shape (N,)."""
        return self.attacked & ~self.verdict

    @property
    def plain(self) -> dict[str, Any]:
        """Return everything but the verdicts, by name, as JSON can hold it."""
        names = (f.name for f in fields(self) if f.name not in ("verdict", "attacked"))
        return {name: getattr(self, name) for name in names}
