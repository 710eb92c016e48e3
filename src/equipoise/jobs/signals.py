"""Ctrl-C, SIGTERM, SIGHUP (a closed terminal) and SIGUSR1: requests to save and stop.

SLURM can send SIGUSR1 some time before it ends a job: ``sbatch --signal=USR1@90``.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
WARNING = getattr(signal, "SIGUSR1", None)
ENDING = (signal.SIGTERM, *(number for number in (HANGUP, WARNING) if number is not None))
ALL = (signal.SIGINT, *ENDING)

HEARD: set[str] = set()
"""The names of the signals that were heard in this process."""


@contextmanager
def handled(
    heard: Callable[[str], None], numbers: Sequence[signal.Signals] = ALL
) -> Iterator[None]:
    """Call a function with the names of signals while the block runs, in place of their action.

    Outside of the main thread nothing is changed. Output after the terminal was closed is
    discarded, as writing to it would be an error.
    """
    shown = [stream for stream in (1, 2) if os.isatty(stream)]

    def hear(number: int, frame: FrameType | None) -> None:
        del frame
        if number == HANGUP:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream in shown:
                os.dup2(nowhere, stream)
            os.close(nowhere)
        HEARD.add(signal.Signals(number).name)
        heard(signal.Signals(number).name)

    try:
        # nohup makes a command continue when its terminal is closed.
        used = [s for s in numbers if s != HANGUP or signal.getsignal(s) != signal.SIG_IGN]
        old = {s: signal.signal(s, hear) for s in used}
    except ValueError:  # not in the main thread
        old = {}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def interrupting() -> AbstractContextManager[None]:
    """End the block as Ctrl-C does, by a KeyboardInterrupt, on SIGTERM and others too."""

    def interrupt(name: str) -> None:
        del name
        raise KeyboardInterrupt

    return handled(interrupt, ENDING)
