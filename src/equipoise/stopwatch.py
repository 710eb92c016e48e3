"""The time of the parts of a training, measured without waiting for the device; and memory."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Stopwatch:
    """Sums the seconds of named parts; the time of an inner part is not part of the outer one.

    On a CPU these are seconds of the clock. On CUDA they are the seconds between two events on the
    device's queue, which are read only with the sums.

    Arguments:
        device: The device of the computation.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._sums: dict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, Any, Any, str | None]] = []  # name, start, end, outer part
        self._names: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time of the block to the part ``name``."""
        outer = self._names[-1] if self._names else None
        self._names.append(name)
        began = self._mark()
        try:
            yield
        finally:
            self._names.pop()
            self._spans.append((name, began, self._mark(), outer))
            if not self._cuda:
                self._add_spans()

    def inner(self, name: str) -> AbstractContextManager[None]:
        """Add the time of the block to a part, if it is inside another part."""
        return self.part(name) if self._names else nullcontext()

    def sums(self) -> dict[str, float]:
        """Return the seconds of each part so far."""
        if self._cuda and self._spans:
            torch.cuda.synchronize()
        self._add_spans()
        return dict(self._sums)

    def restart(self, sums: dict[str, float] | None = None) -> None:
        """Start again from zero, or from the given sums."""
        self._spans.clear()
        self._sums.clear()
        self._sums.update(sums or {})

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _add_spans(self) -> None:
        for name, began, ended, outer in self._spans:
            seconds = began.elapsed_time(ended) / 1000 if self._cuda else ended - began
            self._sums[name] += seconds
            if outer is not None:
                self._sums[outer] -= seconds
        self._spans.clear()


def peak_memory() -> int:
    """Return the peak memory of this process, in bytes; 0 if the system does not report it."""
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
