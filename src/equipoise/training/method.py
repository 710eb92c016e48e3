"""A method: named learners and the rule that merges them into one model."""

__all__ = ["Branch", "LearnerSpec", "Method", "check_factors", "check_sgd", "named"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from equipoise.errors import UserError
from equipoise.objectives import Objective, Robust
from equipoise.threat import Threat
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
    if 1 <= momentum < math.inf:
        problems.append(f"momentum must be below 1, got {momentum}: the steps would never end")
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
        follows: The learner whose batches, and the adversarial inputs found for them, it is
            trained on; None: batches of its own.
    """

    objective: Objective
    lr: float
    schedule: Knots
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    follows: str | None = None

    def __post_init__(self) -> None:
        check_sgd(self.lr, self.momentum, self.weight_decay)
        check_factors(self.schedule)


def leads(name: str, objective: Objective) -> None:
    """Raise a UserError if a learner's adversarial inputs are of no use to another."""
    if not isinstance(objective, Robust) or not objective.shares:
        raise UserError(f"{name} finds no adversarial inputs that another learner could follow")
    if objective.options.cutmix or objective.options.erasing:
        raise UserError(
            f"{name} changes its images by cutmix or erasing: a learner that follows it would be "
            "trained on other images than those that were attacked"
        )


class Learns(Protocol):
    """Settings of which a learner is made."""

    def spec(self, threat: Threat) -> LearnerSpec:
        """Return the learner against a threat."""
        ...


def named(name: str, how: Learns, threat: Threat) -> LearnerSpec:
    """Return a learner against a threat; what is wrong with it is said with its name."""
    try:
        return how.spec(threat)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Branch:
    """Learners that share a trunk: until the branch one learner trains, then each its own way.

    Arguments:
        trunk: The learner that trains first; the others start from its weights and momentum.
        round: The last round of the trunk; None: t', the round at which the rule for the start
            finds it stable. A trunk without weight in the merge ends there.
        restart: Whether the schedules of the others begin at the branch: they then run from
            their first value there to their last at the end. Else they go on where the
            training is.
    """

    trunk: str
    round: int | None = None
    restart: bool = False


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
        if self.branch is not None and self.branch.round is not None and self.branch.round < 1:
            raise UserError(f"branch.round must be at least 1, got {self.branch.round}")
        self._check_following()
        rule = self.merge.start
        if isinstance(rule, Threshold) and isinstance(rule.threshold, Mapping):
            names, merged = set(rule.threshold), set(self.merge.weights.knots)
            if names != merged:
                raise UserError(
                    f"start.threshold must name each of {sorted(merged)}, got {sorted(names)}"
                )

    @property
    def carrier(self) -> str:
        """Return the learner in whose share the initial weights are: whichever counts most."""
        if self.branch is not None:
            return self.branch.trunk
        knots = self.merge.weights.knots
        return max(knots, key=lambda name: knots[name](0.0))

    def _check_following(self) -> None:
        """Raise a UserError if a learner follows one that does not search before it."""
        before: dict[str, LearnerSpec] = {}
        for name, spec in self.learners.items():
            if spec.follows is not None:
                leader = before.get(spec.follows)
                if leader is None:
                    raise UserError(
                        f"{name} follows {spec.follows!r}, which is no learner before it"
                    )
                leads(spec.follows, leader.objective)
            before[name] = spec

    def parted(self, t: int, start: int | None) -> bool:
        """Tell whether the learners are no longer one in round ``t``, with t' = start."""
        if self.branch is None:
            return True
        last = start if self.branch.round is None else self.branch.round
        return last is not None and t > last

    def active(self, t: int, start: int | None) -> list[str]:
        """Return the names of the learners that train in round ``t``, with t' = start."""
        if self.branch is None:
            return list(self.learners)
        if not self.parted(t, start):
            return [self.branch.trunk]
        merged = self.merge.weights.knots
        return [name for name in self.learners if name != self.branch.trunk or name in merged]

    def weights(self, t: int, rounds: int, start: int | None) -> dict[str, float]:
        """Return how much each learner counts in round ``t``."""
        if self.branch is not None and not self.parted(t, start):
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

    def cost(self, rounds: int) -> float:
        """Return the gradient evaluations that an image takes a round, at most.

        With a trunk it is a mean over the rounds, of which the branches have those after the
        latest at which they may part.

        Arguments:
            rounds: How many rounds the training has in all.
        """
        last = 0
        if self.branch is not None:
            latest = getattr(self.merge.start, "latest", lambda rounds: rounds)
            last = min(rounds, self.branch.round or latest(rounds))
        parts = (last, self.active(last, last)), (rounds - last, self.active(last + 1, last))
        spent = (n * sum(self.learners[k].objective.cost for k in names) for n, names in parts)
        return sum(spent) / rounds

    def said(self, verdict: Verdict, t: int) -> list[str]:
        """Return in words what a verdict found in round ``t``."""
        if self.branch is not None and self.branch.round is None:
            who = f"the {{}} loss of the {self.branch.trunk}"
            return verdict.sentences(t, "the learners may part", who)
        return verdict.sentences(t)

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
        rounds = [0]
        if self.branch is not None:
            last = start if self.branch.round is None else self.branch.round
            rounds.append(t + 1 if last is None else last + 1)
        if self.merge.handover.every is not None and not isinstance(self.merge.start, Never):
            rounds.append(t + 1 if start is None else start)
        return max(rounds) if max(rounds) <= t else None
