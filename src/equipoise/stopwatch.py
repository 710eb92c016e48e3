"""How long the parts of a training take, without waiting for the device in between; and memory."""

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


class Stopwatch:
    """Sums the seconds of named parts; a part within a part counts for itself alone.

    On a CPU these are seconds of the clock. On CUDA they are the seconds between two events on
    the device's queue, which are read only when the sums are.

    Arguments:
        device: Where the parts are computed.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._cuda = torch.device(device).type == "cuda"
        self._sums: dict[str, float] = defaultdict(float)
        self._spans: list[tuple[str, Any, Any, str | None]] = []  # name, start, end, outer part
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
            self._spans.append((name, began, self._mark(), outer))
            if not self._cuda:
                self._add_spans()

    def inner(self, name: str) -> AbstractContextManager[None]:
        """Count what is done inside as such a part, if it is done within another."""
        return self.part(name) if self._names else nullcontext()

    def sums(self) -> dict[str, float]:
        """Return the seconds of each part so far."""
        if self._cuda and self._spans:
            torch.cuda.synchronize()
        self._add_spans()
        return dict(self._sums)

    def restart(self, sums: dict[str, float] | None = None) -> None:
        """Forget everything, or go on from some sums."""
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
    """Return the most memory that this process has held, in bytes; 0 if not reported."""
    try:
        import resource
    except ImportError:  # not on this system
        return 0
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
