"""What a training tells its surroundings, and what it asks them."""

__all__ = ["Interrupted", "Watch"]

from collections.abc import Callable
from dataclasses import dataclass

from equipoise.errors import RunError


class Interrupted(RunError):
    """The training was asked to stop, and its state is saved."""


def _nothing(*_: object) -> None:
    """Do nothing."""


@dataclass(kw_only=True)
class Watch:
    """What the loop tells its surroundings, and what it asks them.

    Arguments:
        step: Called after each step with the number of images of the step; when a round is
            taken back, with all its images, negative.
        announce: Called with a sentence when something happens that a user must know.
        warn: Called with a sentence when something went wrong.
        save: Called with ``finished_round`` when the state should be saved.
        stop: Asked after each step whether to save and stop.
        save_due: Asked after each step whether to save within the round.
    """

    step: Callable[[int], None] = _nothing
    announce: Callable[[str], None] = _nothing
    warn: Callable[[str], None] = _nothing
    save: Callable[[bool], None] = _nothing
    stop: Callable[[], bool] = lambda: False
    save_due: Callable[[], bool] = lambda: False
