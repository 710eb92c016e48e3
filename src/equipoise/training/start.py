r"""When to start handing the global weights back: :math:`t'` (the paper's Eq. 7).

A rule looks at the losses of each learner so far, one value a round, and names for each learner
the first round at which it had stabilised. Each learner is latched separately, and

.. math:: t' = \max(t_n, t_r).

Rules are pure functions of the history, so a resumed run decides as the whole one would.
"""

__all__ = ["AnyStart", "Fixed", "Never", "Stable", "Threshold", "Verdict"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from equipoise.errors import UserError


@dataclass(frozen=True)
class Verdict:
    """When each learner stabilised, and why.

    Arguments:
        rounds: For each learner the round, from 1, or None as long as it has not.
        reasons: For each learner why, in words.
    """

    rounds: Mapping[str, int | None]
    reasons: Mapping[str, str]

    @property
    def round(self) -> int | None:
        """Return :math:`t'`, the latest of the rounds, or None."""
        found = [t for t in self.rounds.values() if t is not None]
        return max(found) if found and len(found) == len(self.rounds) else None

    def sentences(
        self, t: int, then: str = "hand-over may begin", who: str = "the {} learner"
    ) -> list[str]:
        """Return in words what was found in round ``t``.

        Arguments:
            t: The round.
            then: What follows t'.
            who: What is stable; a learner's name comes into the braces.
        """
        said = []
        for name, found in self.rounds.items():
            if found == t:
                symbol = SYMBOLS.get(name, "t")
                why = self.reasons[name]
                said.append(f"{symbol} = {t}: {who.format(name)} counts as stable ({why})")
        return [*said, f"t' = {t}: {then}"] if self.round == t else said


SYMBOLS = {"clean": "t_n", "robust": "t_r"}


@dataclass(frozen=True, kw_only=True)
class Fixed:
    """Start at a given round, as Generalist does.

    Arguments:
        round: The round; None takes ``fraction`` of all rounds.
        fraction: The part of all rounds, rounded to the nearest; Generalist has 75 of 120.
        losses: Which losses it names; it needs none: ``train`` or ``held-out``.
    """

    rule: Literal["fixed"] = "fixed"
    round: int | None = None
    fraction: float = 0.625
    losses: Literal["train", "held-out"] = "train"

    def __post_init__(self) -> None:
        if self.round is not None and self.round < 1:
            raise UserError(f"start.round must be at least 1, got {self.round}")
        if not 0 <= self.fraction <= 1:
            raise UserError(f"start.fraction must lie in [0, 1], got {self.fraction}")

    def __call__(self, history: Mapping[str, Sequence[float]], rounds: int) -> Verdict:
        """Return the fixed round, known from the beginning."""
        wanted = self.latest(rounds)
        reason = f"fixed at round {wanted}"
        return Verdict(dict.fromkeys(history, wanted), dict.fromkeys(history, reason))

    def latest(self, rounds: int) -> int:
        """Return the round."""
        return self.round or max(1, math.floor(self.fraction * rounds + 0.5))


@dataclass(frozen=True, kw_only=True)
class Never:
    """Never start: the control that shows what handing back is worth.

    Arguments:
        losses: Which losses it names; it needs none: ``train`` or ``held-out``.
    """

    rule: Literal["never"] = "never"
    losses: Literal["train", "held-out"] = "train"

    def __call__(self, history: Mapping[str, Sequence[float]], rounds: int) -> Verdict:
        """Return that no learner starts."""
        del rounds
        return Verdict(dict.fromkeys(history), dict.fromkeys(history, "never, as asked"))


@dataclass(frozen=True, kw_only=True)
class Threshold:
    r"""The paper's rule, literally: below :math:`l_h` for :math:`t_{num}` rounds in a row.

    Arguments:
        threshold: The loss :math:`l_h`, for all learners or for each.
        patience: How many rounds in a row, :math:`t_{num}`.
        losses: Which losses the rule looks at: ``train`` or ``held-out``.
    """

    rule: Literal["threshold"] = "threshold"
    threshold: float | Mapping[str, float] = 0.5
    patience: int = 3
    losses: Literal["train", "held-out"] = "train"

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"start.patience must be at least 1, got {self.patience}")
        values = (
            self.threshold.values() if isinstance(self.threshold, Mapping) else [self.threshold]
        )
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise UserError(f"start.threshold must be positive, got {self.threshold}")

    def __call__(self, history: Mapping[str, Sequence[float]], rounds: int) -> Verdict:
        """Return for each learner the first round that ends such a row."""
        del rounds
        found: dict[str, int | None] = {}
        reasons = {}
        for name, losses in history.items():
            limit = self._limit(name)
            below = 0
            found[name] = None
            for t, loss in enumerate(losses, 1):
                below = below + 1 if loss < limit else 0
                if below >= self.patience:
                    found[name] = t
                    break
            reasons[name] = self._reason(losses, limit, found[name])
        return Verdict(found, reasons)

    def _limit(self, name: str) -> float:
        if not isinstance(self.threshold, Mapping):
            return self.threshold
        if name not in self.threshold:
            raise UserError(f"start.threshold names no value for the learner {name!r}")
        return self.threshold[name]

    def _reason(self, losses: Sequence[float], limit: float, t: int | None) -> str:
        if t is not None:
            return f"loss below {limit:g} for {self.patience} rounds"
        lowest = f"the lowest is {min(losses):.3g}" if losses else "none yet"
        return f"loss not below {limit:g} for {self.patience} rounds; {lowest}"


@dataclass(frozen=True, kw_only=True)
class Stable:
    r"""The scale-free rule: the last rounds brought little of all that was ever gained.

    With :math:`L` the median of three neighbouring held-out losses, a learner has stabilised at
    the first round with

    .. math:: L_{t-w} - L_t < r \, (L_1 - L_t),

    which no change of scale or offset of the loss alters. At the deadline every learner counts
    as stable, so that a run cannot end without ever having synchronised.

    Arguments:
        window: How many rounds are looked back, :math:`w`.
        ratio: The part of all gains so far below which those rounds count as none, :math:`r`.
        deadline: The latest start, as a part of all rounds.
        losses: Which losses the rule looks at: ``train`` or ``held-out``.
    """

    rule: Literal["stable"] = "stable"
    window: int = 3
    ratio: float = 0.1
    deadline: float = 0.6
    losses: Literal["train", "held-out"] = "held-out"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise UserError(f"start.window must be at least 1, got {self.window}")
        if not 0 < self.ratio < 1:
            raise UserError(f"start.ratio must lie in (0, 1), got {self.ratio}")
        if not 0 < self.deadline <= 1:
            raise UserError(f"start.deadline must lie in (0, 1], got {self.deadline}")

    def __call__(self, history: Mapping[str, Sequence[float]], rounds: int) -> Verdict:
        """Return for each learner the first round at which it had stabilised."""
        last = self.latest(rounds)
        found: dict[str, int | None] = {}
        reasons = {}
        for name, losses in history.items():
            t = self._first(losses[:last])
            if t is not None:
                gain = f"{self.ratio:.0%} of the gain so far"
                reason = f"the last {self.window} rounds brought less than {gain}"
            elif len(losses) >= last:
                t, reason = last, f"forced at the deadline, round {last} of {rounds}"
            else:
                reason = f"still falling; deadline at round {last}"
            found[name], reasons[name] = t, reason
        return Verdict(found, reasons)

    def latest(self, rounds: int) -> int:
        """Return the round of the deadline."""
        return max(1, math.floor(self.deadline * rounds + 1e-9))

    def _first(self, losses: Sequence[float]) -> int | None:
        smooth = [median(losses[max(0, t - 2) : t + 1]) for t in range(len(losses))]
        for t in range(self.window, len(smooth)):
            gained = smooth[0] - smooth[t]
            if gained > 0 and smooth[t - self.window] - smooth[t] < self.ratio * gained:
                return t + 1
        return None


AnyStart = Stable | Threshold | Fixed | Never
"""The rules by their class; ``rule`` names the one that is meant."""
