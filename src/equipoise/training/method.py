"""A method: named learners and the rule that merges them into one model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from equipoise.errors import UserError
from equipoise.measures.regime import Course, Regime, effective, paths
from equipoise.objectives.core import Knots, Objective
from equipoise.objectives.robust import Robust
from equipoise.training.merge import Merge
from equipoise.training.start import Fixed, Never, Verdict


def check_leader(name: str, objective: Objective) -> None:
    """Raise a UserError if another learner cannot be trained on a learner's adversarial inputs."""
    if not isinstance(objective, Robust) or not objective.searching:
        raise UserError(f"{name} has no adversarial inputs that another learner could follow")
    if objective.cutmix or objective.erasing:
        raise UserError(
            f"{name} changes its images by cutmix or erasing: the learner that follows it would "
            "get the unchanged images with these adversarial inputs"
        )


def check_weights(weights: Mapping[str, Knots]) -> None:
    """Raise a UserError if learners' weights are negative or do not sum to one somewhere."""
    places = {place for knots in weights.values() for place in knots.places}
    just_left = {place - 1e-9 for place in places if place > 0}  # where values may jump
    for place in sorted(places | just_left):
        values = [knots(place) for knots in weights.values()]
        if abs(sum(values) - 1) > 1e-6 or min(values) < 0:
            raise UserError(f"the learners' weights must be >= 0 and sum to 1, got {values}")


@dataclass(frozen=True, kw_only=True)
class Method:
    """Named learners and the rule that merges them.

    Arguments:
        learners: The objectives of the learners by name, each bound to its threat.
        knots: For each merged learner its weight over the progress; the weights sum to 1.
        merge: The rule.
        trunk: The learner that trains alone until t'; then the others start from its weights and
            momentum, and a trunk without a weight ends. None: all learners train from the start.
        restart: Whether the schedules of the branches run from their first value at t' to their
            last at the end; else they continue at the progress of the training.
    """

    learners: Mapping[str, Objective]
    knots: Mapping[str, Knots]
    merge: Merge
    trunk: str | None = None
    restart: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.knots) - set(self.learners)
        if unknown:
            raise UserError(f"weights for learners that do not exist: {sorted(unknown)}")
        check_weights(self.knots)
        if self.trunk is not None and self.trunk not in self.learners:
            raise UserError(f"the trunk {self.trunk!r} is not one of the learners")
        before: dict[str, Objective] = {}
        for name, objective in self.learners.items():
            if objective.follows is not None:
                if objective.follows not in before:
                    raise UserError(
                        f"{name} follows {objective.follows!r}, which is no learner before it"
                    )
                check_leader(objective.follows, before[objective.follows])
            before[name] = objective

    @property
    def carrier(self) -> str:
        """Return the learner whose share holds the initial weights: the largest at the start."""
        return self.trunk or max(self.knots, key=lambda name: self.knots[name](0.0))

    @property
    def averaged_once(self) -> bool:
        """Return whether the global model is just the weighted sum of the running averages.

        That is so for learners with a common trunk. Otherwise merged averages are averaged again,
        as in the Generalist code.
        """
        return self.trunk is not None and self.merge.source == "average"

    def leader(self, name: str, first: str) -> str | None:
        """Return the learner whose batches another one gets; None: it draws its own.

        Arguments:
            name: The learner.
            first: The learner that trains first.
        """
        shared = first if self.merge.batches == "shared" and name != first else None
        return self.learners[name].follows or shared

    def kept(self, t: int, step: int, steps: int, start: int | None) -> float | None:
        """Return how much of itself the global model keeps after a step; None: it stays as it is.

        The arguments are those of :meth:`Merge.kept`.
        """
        return 0.0 if self.averaged_once else self.merge.kept(t, step, steps, start)

    def alone(self, t: int, start: int | None) -> str | None:
        """Return the trunk if it is the only learner in round ``t``, with t' = start."""
        return self.trunk if start is None or t <= start else None

    def active(self, t: int, start: int | None) -> list[str]:
        """Return the names of the learners that train in round ``t``, with t' = start."""
        trunk = self.alone(t, start)
        if trunk is not None:
            return [trunk]
        return [name for name in self.learners if name != self.trunk or name in self.knots]

    def weights(self, t: int, rounds: int, start: int | None) -> dict[str, float]:
        """Return the weight of each learner in round ``t``."""
        trunk = self.alone(t, start)
        if trunk is not None:
            return {trunk: 1.0}
        progress = self.merge.progress(t, rounds, start)
        return {name: knots(progress) for name, knots in self.knots.items()}

    def verdict(self, history: Sequence[Mapping[str, Any]], rounds: int) -> Verdict:
        """Apply the rule for t' to each learner that is merged.

        Arguments:
            history: The records of the rounds so far.
            rounds: How many rounds the training has in all.
        """
        rule = self.merge.start
        losses: dict[str, list[float]] = {}
        for name in self.knots:
            key = "loss" if rule.losses == "train" else self.learners[name].monitor
            present = (record["learners"] for record in history)
            losses[name] = [learners[name][key] for learners in present if name in learners]
        return rule(losses, rounds)

    def cost(self, rounds: int) -> float:
        """Return the gradient evaluations that an image takes a round, at most.

        With a trunk it is a mean over the rounds.

        Arguments:
            rounds: How many rounds the training has in all.
        """
        last = 0 if self.trunk is None else min(rounds, self.merge.start.latest(rounds))
        parts = (last, self.active(last, last)), (rounds - last, self.active(last + 1, last))
        spent = (n * sum(self.learners[k].cost for k in names) for n, names in parts)
        return sum(spent) / rounds

    def said(self, verdict: Verdict, t: int) -> list[str]:
        """Return a sentence for each learner that became stable in round ``t``, and for t'."""
        then = "hand-overs may begin" if self.trunk is None else "the branches may start"
        lines = verdict.sentences(t, then)
        return lines[-1:] if isinstance(self.merge.start, Fixed) else lines

    def regime(
        self, rounds: int, steps: int, start: int | None, history: Sequence[Mapping[str, Any]] = ()
    ) -> Regime:
        """Return the numbers that say in which regime the learners are merged.

        Arguments:
            rounds: How many rounds the training has in all.
            steps: The steps of a round.
            start: t'.
            history: The records of its rounds, which may have ended early; empty: before it.
        """
        handed = {record["round"] for record in history if record["handover"]}
        courses = []
        for t in range(1, (len(history) or rounds) + 1):
            due = self.due(t, "step", start) or (t < rounds and self.due(t, "round", start))
            due = t in handed if history else due
            of_round = self.weights(t, rounds, start), self._updates(t, steps, start)
            courses.append(Course(*of_round, self.merge.granularity if due else None))
        since = start / rounds if self.trunk and self.restart and start else 0.0
        merged = {name: self.learners[name] for name in self.knots}
        found = {
            name: paths(courses, rounds, steps, objective.schedule, objective.step_size, since)
            for name, objective in merged.items()
        }
        spaced = self.merge.every is not None and self.merge.averages
        return Regime(
            path={name: path for name, (path, _, _) in found.items()},
            free_steps=max(free for _, _, free in found.values()),
            cycles={name: cycles for name, (_, cycles, _) in found.items()},
            spacing=(self.merge.every or 0) / self.merge.horizon if spaced else None,
            gamma=effective(courses, self.merge.source == "average"),
            weight_decay={name: objective.weight_decay for name, objective in merged.items()},
        )

    def _updates(self, t: int, steps: int, start: int | None) -> list[tuple[float, float, int]]:
        """Return the updates of the averages in a round, those that are alike together."""

        def update(step: int) -> tuple[float, float]:
            kept = self.kept(t, step, steps, start)
            memory = self.merge.memory((t - 1) * steps + step, steps)
            return memory, 1.0 if kept is None else kept

        if self.merge.average_every == "step" and update(0) == update(steps - 1):
            return [(*update(0), steps)]  # the warm-up has ended: no step is different
        return [(*u, len(list(alike))) for u, alike in groupby(map(update, range(steps)))]

    def due(self, t: int, granularity: Literal["round", "step"], start: int | None) -> bool:
        """Return whether round ``t`` hands over after each such part, with t' = start."""
        return self.merge.granularity == granularity and self.merge.due(t, start)

    def settled(self, t: int, start: int | None) -> int | None:
        """Return the round from which on rounds are comparable; None: not reached yet.

        It is t' if branches start there or learners get the global weights, else 0.

        Arguments:
            t: The number of rounds done.
            start: t'.
        """
        hands_over = self.merge.every is not None and not isinstance(self.merge.start, Never)
        if self.trunk is None and not hands_over:
            return 0
        first = t + 1 if start is None else start + (self.trunk is not None)
        return first if first <= t else None
