"""The callbacks of a training."""

from collections.abc import Callable
from dataclasses import dataclass

from equipoise.errors import RunError


class Interrupted(RunError):
    """The training was stopped by the user; its state is saved."""


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(kw_only=True)
class Watch:
    """The callbacks of the training loop.

    Arguments:
        step: Called after each step with the number of its images; for a round that is rolled
            back, with minus the number of all its images.
        announce: Called with a sentence about an important event.
        warn: Called with a sentence about a problem.
        save: Called when the state should be saved: with True after a round, else False.
        stop: Called after each step; returns whether to save and stop.
        save_due: Called after each step; returns whether to save within the round.
    """

    step: Callable[[int], None] = _nothing
    announce: Callable[[str], None] = _nothing
    warn: Callable[[str], None] = _nothing
    save: Callable[[bool], None] = _nothing
    stop: Callable[[], bool] = lambda: False
    save_due: Callable[[], bool] = lambda: False
