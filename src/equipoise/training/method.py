"""A method: named learners and the rule that merges them into one model."""

__all__ = ["Branch", "LearnerSpec", "Method", "check_factors", "check_sgd"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from equipoise.errors import UserError
from equipoise.objectives import Objective
from equipoise.training.merge import Merge
from equipoise.training.schedule import Knots
from equipoise.training.start import Never, Threshold, Verdict


def check_sgd(lr: float, momentum: float, weight_decay: float) -> None:
    """Raise a UserError for settings of SGD that cannot be meant, all at once."""
    problems = [
        f"{name} must be a finite number {'> 0' if name == 'lr' else '>= 0'}, got {value}"
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay))
        if not math.isfinite(value) or value < 0 or (name == "lr" and value == 0)
    ]
    if problems:
        raise UserError("; ".join(problems))


def check_factors(schedule: Knots) -> None:
    """Raise a UserError for a schedule that would climb the loss."""
    if min(schedule.values) < 0:
        raise UserError(f"lr_factors must be >= 0, got {list(schedule.values)}")


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """One learner: its objective, and its own SGD with its own schedule and weight decay.

    Arguments:
        objective: What it minimises.
        lr: The largest learning rate.
        schedule: The factor on the learning rate over the progress of the training.
        momentum: The momentum of SGD.
        weight_decay: The factor of the L2 penalty.
        nesterov: Whether the momentum looks ahead.
    """

    objective: Objective
    lr: float
    schedule: Knots
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True

    def __post_init__(self) -> None:
        check_sgd(self.lr, self.momentum, self.weight_decay)
        check_factors(self.schedule)


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Learners that share a trunk: until the branch one learner trains, then each its own way.

    Arguments:
        trunk: The learner that trains first; the others start from its weights and momentum.
        round: The last round of the trunk. A trunk without weight in the merge ends there.
    """

    trunk: str
    round: int


@dataclass(frozen=True, kw_only=True)
class Method:
    """Named learners and the rule that merges them.

    Arguments:
        learners: The learners by name.
        merge: The rule.
        branch: When the learners part, if they share a trunk.
    """

    learners: Mapping[str, LearnerSpec]
    merge: Merge
    branch: Branch | None = None

    def __post_init__(self) -> None:
        strangers = set(self.merge.weights.knots) - set(self.learners)
        if strangers:
            raise UserError(f"weights for learners that do not exist: {sorted(strangers)}")
        if self.branch is not None and self.branch.trunk not in self.learners:
            raise UserError(f"the trunk {self.branch.trunk!r} is not one of the learners")
        if self.branch is not None and self.branch.round < 1:
            raise UserError(f"branch.round must be at least 1, got {self.branch.round}")
        rule = self.merge.start
        if isinstance(rule, Threshold) and isinstance(rule.threshold, Mapping):
            names, merged = set(rule.threshold), set(self.merge.weights.knots)
            if names != merged:
                raise UserError(
                    f"start.threshold must name each of {sorted(merged)}, got {sorted(names)}"
                )

    def active(self, t: int) -> list[str]:
        """Return the names of the learners that train in round ``t``."""
        if self.branch is None:
            return list(self.learners)
        if t <= self.branch.round:
            return [self.branch.trunk]
        merged = self.merge.weights.knots
        return [name for name in self.learners if name != self.branch.trunk or name in merged]

    def weights(self, t: int, rounds: int, start: int | None) -> dict[str, float]:
        """Return how much each learner counts in round ``t``."""
        if self.branch is not None and t <= self.branch.round:
            return {self.branch.trunk: 1.0}
        return self.merge.weights.at(t, rounds, start)

    def verdict(self, history: Sequence[Mapping[str, Any]], rounds: int) -> Verdict:
        """Ask the rule for t' about each learner that is merged.

        While learners share a trunk, the trunk's losses count for each of them.

        Arguments:
            history: The records of the rounds so far.
            rounds: How many rounds the training has in all.
        """
        rule = self.merge.start
        losses: dict[str, list[float]] = {name: [] for name in self.merge.weights.knots}
        for name, values in losses.items():
            key = "loss" if rule.losses == "train" else self.learners[name].objective.monitor
            for record in history:
                present = record["learners"]
                values.append(present.get(name, next(iter(present.values())))[key])
        return rule(losses, rounds)

    def due(self, t: int, granularity: Literal["round", "step"], start: int | None) -> bool:
        """Tell whether round ``t`` hands over after each such part, with t' = start."""
        handover = self.merge.handover
        return handover.granularity == granularity and handover.due(t, start)

    def settled(self, t: int, start: int | None) -> int | None:
        """Return the round from which on the training is what it is to be; None: it is to come.

        That is when the learners have parted from their trunk and been handed the global
        weights, where they ever are.

        Arguments:
            t: The rounds that are done.
            start: t'.
        """
        rounds = [0 if self.branch is None else self.branch.round + 1]
        if self.merge.handover.every is not None and not isinstance(self.merge.start, Never):
            rounds.append(t + 1 if start is None else start)
        return max(rounds) if max(rounds) <= t else None
