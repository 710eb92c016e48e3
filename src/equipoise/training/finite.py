"""Whether learners are still numbers: checked before anything of them is saved."""

__all__ = ["broken", "check"]

from collections.abc import Collection

from equipoise.errors import RunError
from equipoise.training.learner import NEVER, Learner


def check(learners: Collection[Learner], where: str, *, weights: bool) -> None:
    """Raise a RunError if a loss of the round, or on demand a weight, is not finite.

    Arguments:
        learners: The learners.
        where: The round, in words.
        weights: Whether to look at weights, too.
    """
    first = min(learners, key=lambda learner: learner.broken_step)
    if first.broken_step < NEVER:
        raise broken(first, "loss is", where)
    for learner in learners:
        if weights and not learner.finite:
            raise broken(learner, "weights are", where)


def broken(learner: Learner, what: str, where: str) -> RunError:
    """Return the error that names the learner and the remedy."""
    name = learner.name if learner.name in ("clean", "robust") else f"more.{learner.name}"
    lr = learner.objective.lr / 3
    return RunError(
        f"the {what} not finite for the {learner.name} learner in {where}; what was saved before "
        f"is kept. Lower its learning rate in a new run: {name}.lr={lr:.2g}"
    )
