"""Examples that are probed, and who has been fooled by what."""

__all__ = ["Probe"]

import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack
from equipoise.attacks.pgd import PGD, for_verdicts
from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import listed
from equipoise.evaluation.checks.model import correct_of, exact_of
from equipoise.evaluation.judge import Judge
from equipoise.threat import Threat


class Probe:
    """Some correct examples, and which of them were fooled so far by attacks with gradients."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, rows: Tensor, threat: Threat, seed: int,
        passes: int,
    ) -> None:  # fmt: skip
        self.model, self.x, self.y, self.rows, self.threat = model, x, y, rows, threat
        self.seed, self.passes = seed, passes
        self.draws = KeyedDraws.of(x, seed).child("probes")
        self.found = torch.zeros_like(y, dtype=torch.bool)
        self.known: dict[str, Tensor] = {}
        self.repeats = Judge(exact_of(model), passes=passes).repeats(x)

    @property
    def n(self) -> int:
        """Return how many examples are probed."""
        return len(self.y)

    def fools(
        self, attack: Attack, among: Tensor, name: str, *, threat: Threat | None = None,
        model: nn.Module | None = None,
    ) -> Tensor:  # fmt: skip
        """Tell whom an attack fools among some examples, with shape (N,).

        Arguments:
            attack: The attack.
            among: Which examples it is shown, with shape (N,).
            name: The name of its random numbers.
            threat: What it is allowed, if something else.
            model: The model it searches, if another; the verdict is that of the model itself.
        """
        rows = among.nonzero()[:, 0]
        fooled = torch.zeros_like(among)
        if len(rows):
            x, y, allowed = self.x[rows], self.y[rows], threat or self.threat
            draws = self.draws.child(name).select(rows)
            attack = for_verdicts(attack) if self.repeats else attack
            x_adv = attack(model or self.model, x, y, allowed, draws=draws)
            inside = allowed.contains(x, x_adv)
            fooled[rows] = inside & ~correct_of(self.model, x_adv, y, passes=self.passes)
        return fooled

    def broken(self, attack: PGD) -> Tensor:
        """Tell whom a plain search fools among all; each search is made once."""
        key = repr(attack)
        if key not in self.known:
            self.known[key] = self.fools(attack, torch.ones_like(self.found), "base")
            self.found |= self.known[key]
        return self.known[key]

    def where(self, flags: Tensor) -> str:
        """Return in words which rows of the caller's inputs some examples are."""
        return f"rows {listed(self.rows[flags])}" if bool(flags.any()) else "none"
