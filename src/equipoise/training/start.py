r"""The rules for the round :math:`t'` from which learners get the global weights (Eq. 7).

From the losses of each learner, one a round, a rule returns the first round from which the learner
counts as stable, :math:`t_n` and :math:`t_r`; later losses do not change it. Then

.. math:: t' = \max(t_n, t_r).

Rules are pure functions of the history, so a resumed run decides like an uninterrupted one.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Literal

from equipoise.errors import Count, Part, UserError, out_of_range

Losses = Literal["train", "held-out"]
Finding = tuple[int | None, str]
"""The round from which a learner is stable, or None, and the reason."""


@dataclass(frozen=True)
class Verdict:
    """The rounds from which the learners are stable, with the reasons.

    Arguments:
        rounds: For each learner the round, counted from 1, or None.
        reasons: For each learner the reason, in words.
    """

    rounds: Mapping[str, int | None]
    reasons: Mapping[str, str]

    @property
    def round(self) -> int | None:
        """Return :math:`t'`, the latest of the rounds; None until every learner has a round."""
        stable = [t for t in self.rounds.values() if t is not None]
        return max(stable) if stable and len(stable) == len(self.rounds) else None

    def sentences(self, t: int, then: str) -> list[str]:
        """Return a sentence for each learner that is stable from round ``t`` on, and for t'.

        Arguments:
            t: The round.
            then: The event that follows t', in words.
        """
        lines = [
            f"{SYMBOLS.get(name, 't')} = {t}: the {name} learner counts as stable "
            f"({self.reasons[name]})"
            for name, first in self.rounds.items()
            if first == t
        ]
        return [*lines, f"t' = {t}: {then}"] if self.round == t else lines


SYMBOLS = {"clean": "t_n", "robust": "t_r"}


class Rule(ABC):
    """A rule for t': from the learners' losses so far, one a round, to a :class:`Verdict`."""

    losses: Losses

    def __post_init__(self) -> None:
        problems = out_of_range(self, "start.")
        if problems:
            raise UserError("; ".join(problems))

    def __call__(self, history: Mapping[str, Sequence[float]], rounds: int) -> Verdict:
        """Return for each learner the first round from which it is stable.

        Arguments:
            history: For each learner its losses, one a round.
            rounds: How many rounds the training has in all.
        """
        results = {name: self.stable(name, losses, rounds) for name, losses in history.items()}
        return Verdict(
            {name: first for name, (first, _) in results.items()},
            {name: reason for name, (_, reason) in results.items()},
        )

    @abstractmethod
    def stable(self, name: str, losses: Sequence[float], rounds: int) -> Finding:
        """Return the first round from which a learner is stable, or None, and the reason."""

    def latest(self, rounds: int) -> int:
        """Return the latest possible t'."""
        return rounds


@dataclass(frozen=True, kw_only=True)
class Fixed(Rule):
    """Start at a given round, like Generalist.

    Arguments:
        round: The round; None takes ``fraction`` of all rounds.
        fraction: The part of all rounds, rounded to whole rounds, so that at least one is left;
            Generalist has 75 of 120.
        losses: Not used by this rule: ``train`` or ``held-out``.
    """

    rule: Literal["fixed"] = "fixed"
    round: Count | None = None
    fraction: Part = 0.625
    losses: Losses = "train"

    def stable(self, name: str, losses: Sequence[float], rounds: int) -> Finding:
        """Return the fixed round."""
        del name, losses
        return self.latest(rounds), f"fixed at round {self.latest(rounds)}"

    def latest(self, rounds: int) -> int:
        """Return the round."""
        rounded = math.floor(self.fraction * rounds + 0.5)
        return self.round or max(1, min(rounded, rounds - (self.fraction < 1)))


@dataclass(frozen=True, kw_only=True)
class Never(Rule):
    """Never start: the control that shows the effect of the hand-overs.

    Arguments:
        losses: Not used by this rule: ``train`` or ``held-out``.
    """

    rule: Literal["never"] = "never"
    losses: Losses = "train"

    def stable(self, name: str, losses: Sequence[float], rounds: int) -> Finding:
        """Return None: there is no t'."""
        del name, losses, rounds
        return None, "never"


@dataclass(frozen=True, kw_only=True)
class Threshold(Rule):
    r"""The paper's rule, literally: below :math:`l_h` for :math:`t_{num}` rounds in a row.

    Arguments:
        threshold: The loss :math:`l_h`, for all learners or for each.
        patience: How many rounds in a row, :math:`t_{num}`.
        losses: Which losses the rule uses: ``train`` or ``held-out``.
    """

    rule: Literal["threshold"] = "threshold"
    threshold: float | Mapping[str, float] = 0.5
    patience: Count = 3
    losses: Losses = "train"

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.threshold
        limits = given.values() if isinstance(given, Mapping) else [given]
        if not all(math.isfinite(limit) and limit > 0 for limit in limits):
            raise UserError(f"start.threshold must be positive, got {given}")

    def stable(self, name: str, losses: Sequence[float], rounds: int) -> Finding:
        """Return the last of the first so many rounds in a row."""
        del rounds
        limit, below = self._limit(name), 0
        for t, loss in enumerate(losses, 1):
            below = below + 1 if loss < limit else 0
            if below >= self.patience:
                return t, f"loss below {limit:g} for {self.patience} rounds"
        lowest = f"the lowest is {min(losses):.3g}" if losses else "none yet"
        return None, f"loss not below {limit:g} for {self.patience} rounds; {lowest}"

    def _limit(self, name: str) -> float:
        if not isinstance(self.threshold, Mapping):
            return self.threshold
        if name not in self.threshold:
            raise UserError(f"start.threshold names no value for the learner {name!r}")
        return self.threshold[name]


@dataclass(frozen=True, kw_only=True)
class Stable(Rule):
    r"""The scale-free rule: little of the whole decrease of the loss came in the last rounds.

    With :math:`L` the median of three neighbouring held-out losses, a learner has stabilised at
    the first round with

    .. math:: L_{t-w} - L_t < r \, (L_1 - L_t),

    which does not depend on the scale or the offset of the loss. At the deadline every learner
    counts as stable, so that every run has hand-overs.

    Arguments:
        window: The number of last rounds, :math:`w`.
        ratio: The part of the decrease so far below which that of these rounds is small, r.
        deadline: The latest start, as a part of all rounds.
        losses: Which losses the rule uses: ``train`` or ``held-out``.
    """

    rule: Literal["stable"] = "stable"
    window: Count = 3
    ratio: Annotated[float, "(0, 1)"] = 0.1
    deadline: Annotated[float, "(0, 1]"] = 0.6
    losses: Losses = "held-out"

    def stable(self, name: str, losses: Sequence[float], rounds: int) -> Finding:
        """Return the first round at which the learner has stabilised."""
        del name
        last = self.latest(rounds)
        first = self._first(losses[:last])
        if first is not None:
            whole = f"{self.ratio:.0%} of the decrease so far"
            return first, f"the last {self.window} rounds lowered the loss by less than {whole}"
        if len(losses) >= last:
            return last, f"forced at the deadline, round {last} of {rounds}"
        return None, f"the loss is still falling; deadline at round {last}"

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
"""Any rule; the field ``rule`` has its name."""
