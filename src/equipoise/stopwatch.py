"""How long the parts of a training take, without waiting for the device in between; and memory."""

__all__ = ["Stopwatch", "peak_memory"]

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class Stopwatch:
    """Sums the seconds of named parts; a part within a part counts for itself alone.

    On a CPU these are seconds of the clock. On CUDA they are the seconds between two events on
    the device's queue, which are asked for only when the sums are.

    Arguments:
        device: Where the parts are computed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._sums: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event, str | None]] = []
        self._names: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done inside as a part of that name."""
        outer = self._names[-1] if self._names else None
        self._names.append(name)
        began = self._mark()
        try:
            yield
        finally:
            self._names.pop()
            self._note(name, began, self._mark(), outer)

    def inner(self, name: str) -> AbstractContextManager[None]:
        """Count what is done inside as such a part, if it is done within another."""
        return self.part(name) if self._names else nullcontext()

    def sums(self) -> dict[str, float]:
        """Return the seconds of each part so far."""
        if self._events:
            torch.cuda.synchronize()
        for name, began, ended, outer in self._events:
            self._add(name, began.elapsed_time(ended) / 1000, outer)
        self._events.clear()
        return dict(self._sums)

    def restart(self, sums: dict[str, float] | None = None) -> None:
        """Forget everything, or go on from some sums."""
        self._events.clear()
        self._sums.clear()
        self._sums.update(sums or {})

    def _mark(self) -> "float | torch.cuda.Event":
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _note(
        self,
        name: str,
        began: "float | torch.cuda.Event",
        ended: "float | torch.cuda.Event",
        outer: str | None,
    ) -> None:
        if isinstance(began, float) and isinstance(ended, float):
            self._add(name, ended - began, outer)
        elif not isinstance(began, float) and not isinstance(ended, float):
            self._events.append((name, began, ended, outer))

    def _add(self, name: str, seconds: float, outer: str | None) -> None:
        self._sums[name] += seconds
        if outer is not None:
            self._sums[outer] -= seconds


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes; 0 where no system tells."""
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
