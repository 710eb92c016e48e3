"""Ctrl-C, SIGTERM and SIGHUP, a terminal that is closed: the wish to save and stop."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
ENDING = (signal.SIGTERM, *([] if HANGUP is None else [HANGUP]))
ALL = (signal.SIGINT, *ENDING)


@contextmanager
def handled(
    heard: Callable[[str], None], numbers: Sequence[signal.Signals] = ALL
) -> Iterator[None]:
    """Tell of signals by their names while the block runs, in place of what they usually do.

    Outside of the main thread nothing is changed: the caller has the signals. What is shown after
    a terminal was closed goes nowhere: to write to it would be an error.
    """
    shown = [stream for stream in (1, 2) if os.isatty(stream)]

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        if number == HANGUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in shown:
                os.dup2(nowhere, stream)
            os.close(nowhere)
        heard(signal.Signals(number).name)

    try:
        # nohup has a command go on when its terminal is closed.
        left = [s for s in numbers if s != HANGUP or signal.getsignal(s) != signal.SIG_IGN]
        old = {s: signal.signal(s, hear) for s in left}
    except ValueError:  # not in the main thread
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def interrupting() -> AbstractContextManager[None]:
    """End the block as Ctrl-C does, by a KeyboardInterrupt, on SIGTERM and SIGHUP too."""

    def interrupt(name: str) -> None:
        del name
        raise KeyboardInterrupt

    return handled(interrupt, ENDING)
