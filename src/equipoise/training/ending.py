"""When a training ends, which round is the best, and what a longer training goes on from.

A finished training may be given more rounds. Its learning rate then begins anew for these rounds,
and gamma keeps the value that it had at the end. The records of the rounds say for how many
rounds the training was planned at that time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

History = Sequence[Mapping[str, Any]]
Value = Callable[[dict[str, float]], float]


def before(history: History, rounds: int) -> int:
    """Return how many rounds there were before the training was made this long; else 0."""
    return sum(record["rounds"] != rounds for record in history)


def planned(history: History, rounds: int, start: int | None) -> int:
    """Return the number of rounds over which gamma is scheduled.

    It is that of the first plan, also if the training was made longer after it had ended, unless
    t' was found only in the added rounds.
    """
    first = int(history[0]["rounds"]) if history else rounds
    return first if start is None or start < first else rounds


def best(history: History, value: Value, learners: set[str]) -> float:
    """Return the largest value of the rounds in which these learners trained."""
    records = (record for record in history if set(record["learners"]) == learners)
    return max((value(record["global"]) for record in records), default=-math.inf)


def stopped_early(
    history: History, rounds: int, value: Value, patience: int | None, settled: int | None
) -> bool:
    """Return whether a training ended after ``patience`` rounds without improvement.

    Arguments:
        history: The records of its rounds.
        rounds: How many it was to have.
        value: From the metrics of the global model to the number that is best when largest.
        patience: The rounds; None: it never ends early.
        settled: The round from which on rounds are comparable; None: it is not reached.
    """
    t = len(history)
    if patience is None or settled is None or t >= rounds:
        return False
    values = [value(record["global"]) for record in history]
    highest = values.index(max(values)) + 1 if t else 0
    return t - max(highest, settled, before(history, rounds)) >= patience
