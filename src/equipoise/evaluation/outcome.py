"""What one attack did: whom it attacked, who withstood, and what it cost."""

__all__ = ["Outcome"]

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The verdicts of one attack, and their price.

    Arguments:
        verdict: Whether each example withstood the attack, with shape (N,); true also where it
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

    @classmethod
    def begun(
        cls,
        correct: Tensor,
        *,
        ensemble: str = "",
        settings: str = "",
        notes: tuple[str, ...] = (),
    ) -> "Outcome":
        """Return the outcome of an attack that has attacked nobody yet."""
        attacked = torch.zeros_like(correct)
        return cls(
            verdict=correct.clone(),
            attacked=attacked,
            ensemble=ensemble,
            settings=settings,
            notes=notes,
        )

    @property
    def broken(self) -> Tensor:
        """Tell which examples the attack broke, with shape (N,)."""
        return self.attacked & ~self.verdict

    def alone(self, correct: Tensor) -> bool:
        """Tell whether it attacked every correct example, so that its verdicts stand alone."""
        return bool((self.attacked | ~correct).all())
