"""Ctrl-C and SIGTERM: the wish to save and stop."""

__all__ = ["handled"]

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

BOTH = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled(
    heard: Callable[[str], None], numbers: Sequence[signal.Signals] = BOTH
) -> Iterator[None]:
    """Tell of signals by their names while the block runs, in place of what they usually do.

    Outside of the main thread nothing is changed: the caller has the signals.
    """

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        heard(signal.Signals(number).name)

    try:
        old = {s: signal.signal(s, hear) for s in numbers}
    except ValueError:  # not in the main thread
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
