r"""In which regime learners were merged: numbers that follow from the schedules alone. No torch.

Two trainings with the same settings may differ in what the merge does: with few steps between two
hand-overs the learners never leave one another, and an average that looks far back still holds the
learners of long ago. Four numbers say so:

* the path while gamma < 1: the sum of the learning rates over the free steps of these rounds. A
  step is free if the learners keep what they learn in it, that is, not in a round that hands over
  after every step;
* the path of each cycle: the same sum between two hand-overs, and from the last one to the end;
* the spacing: c in averaging horizons :math:`1 / ((1 - \alpha') S)`;
* the effective gamma: how much of the final global model are weights that the robust learner had
  at some step. With the mass :math:`a_i` of a learner's weights in its running average, and
  :math:`p_i` in the global model, every update is

  .. math:: a_i \leftarrow d \, a_i + 1 - d, \qquad
            p_i \leftarrow d' p_i + (1 - d') \gamma_i a_i,

  where :math:`a_i = 1` if weights are merged rather than averages, and :math:`\gamma_i` is the
  weight of the learner. The effective weight is :math:`p_i / \sum_j p_j`. It lags behind gamma.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self


class Course(NamedTuple):
    """What the merge does in one round.

    Arguments:
        weights: The weight of each learner; they sum to 1.
        updates: For the updates of the averages in this round, in order: the decay of the running
            averages, that of the global model, and how many in a row are the same.
        handed: Whether the learners are handed the global weights at the end of the round, or
            after each step of it; None: not at all.
    """

    weights: Mapping[str, float]
    updates: Sequence[tuple[float, float, int]]
    handed: str | None = None


@dataclass(frozen=True, kw_only=True)
class Regime:
    """The numbers of a training; a path is a sum of learning rates.

    Arguments:
        path: For each learner the path over the free steps of the rounds with gamma < 1.
        free_steps: The number of these steps.
        cycles: For each learner the path of each cycle, from the first hand-over on.
        spacing: The rounds between two hand-overs in averaging horizons; None without hand-overs
            or without an average.
        gamma: The effective weight of each learner in the final global model.
        weight_decay: That of each learner's SGD.
    """

    path: Mapping[str, float]
    free_steps: int
    cycles: Mapping[str, Sequence[float]]
    spacing: float | None
    gamma: Mapping[str, float]
    weight_decay: Mapping[str, float]

    def content(self) -> dict[str, Any]:
        """Return the numbers as ``summary.json`` has them."""
        return asdict(self)

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the numbers from such a content."""
        return cls(**content)

    def lines(self) -> list[str]:
        """Return the numbers in words, a line each."""
        steps = f"sum of the learning rate over {self.free_steps:,} free steps"
        lines = [f"path while gamma < 1: {_each(self.path)} ({steps})"]
        if any(self.cycles.values()):
            first = {name: path[0] for name, path in self.cycles.items() if path}
            last = {name: path[-1] for name, path in self.cycles.items() if path}
            count = max(map(len, self.cycles.values()))
            lines.append(
                f"path between two hand-overs: {_each(first)} first, {_each(last)} last of {count}"
            )
        if self.spacing is not None:
            lines.append(f"c is {self.spacing:.3g} averaging horizons")
        robust = f"effective gamma of the final model: {self.gamma.get('robust', 0.0):.3g}"
        return [*lines, robust, f"weight decay: {_each(self.weight_decay)}"]


def _each(values: Mapping[str, float]) -> str:
    """Return one number if all learners have it, else that of each."""
    texts = {name: f"{value:.3g}" for name, value in values.items()}
    if len({*texts.values()}) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{text} {name}" for name, text in texts.items())


def paths(
    courses: Sequence[Course],
    rounds: int,
    steps: int,
    schedule: Callable[[float], float],
    lr: float = 1.0,
    since: float = 0.0,
) -> tuple[float, list[float], int]:
    """Return the path of a learner while gamma < 1, that of each cycle, and the free steps.

    Arguments:
        courses: Every round of the training, up to its end.
        rounds: How many rounds its schedules are for.
        steps: The steps of a round.
        schedule: From the progress in [0, 1) to the factor on the learning rate.
        lr: The learning rate.
        since: The progress at which the schedule begins.
    """
    whole, free, cycle, begun = 0.0, 0, 0.0, False
    cycles: list[float] = []
    for t, course in enumerate(courses):
        below = course.weights.get("robust", 1.0) < 1
        if course.handed != "step" and (begun or below):
            progress = ((t + s / steps) / rounds for s in range(steps))
            factors = (schedule(max(0.0, at - since) / (1 - since)) for at in progress)
            length = lr * sum(factors)
            cycle += length
            if below:
                whole, free = whole + length, free + steps
        if course.handed is not None:
            if begun and cycle:
                cycles.append(cycle)
            cycle, begun = 0.0, True
    return whole, cycles + [cycle] * (begun and cycle > 0), free


def effective(courses: Sequence[Course], average: bool) -> dict[str, float]:
    """Return how much of the final global model are weights of each learner.

    Arguments:
        courses: Every round of the training.
        average: Whether running averages are merged rather than weights.
    """
    mass = 0.0 if average else 1.0  # of a learner's weights in what is merged of it
    parts: dict[str, float] = {}
    for course in courses:
        for decay, kept, count in course.updates:
            # The sum of a run of updates with the same decays, written out.
            if average:
                lost = (1 - mass) * _lag(decay, kept, count)
                mass = 1 - (1 - mass) * decay**count
            else:
                lost = 0.0
            share = kept**count
            parts = {name: share * part for name, part in parts.items()}
            for name, weight in course.weights.items():
                parts[name] = parts.get(name, 0.0) + weight * (1 - share - lost)
    whole = sum(parts.values()) or 1.0
    return {name: parts[name] / whole for name in courses[-1].weights}


def _lag(decay: float, kept: float, count: int) -> float:
    r"""Return :math:`(1 - d') \sum_{j=1}^{n} d'^{n-j} d^j`."""
    if decay == kept:
        return (1 - kept) * count * decay**count
    if kept == 0:
        return decay**count
    return (1 - kept) * decay * (decay**count - kept**count) / (decay - kept)
