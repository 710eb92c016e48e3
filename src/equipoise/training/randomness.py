"""The global random state during a training: separate from the caller's, and saved."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

State = tuple[Tensor, list[Tensor]]


class GlobalRandom:
    """The random state for models and libraries that take no generator.

    Arguments:
        device: The device of the training.
        seed: The seed at the beginning.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.devices = [device.index or 0] if device.type == "cuda" else []
        self.seed = seed
        self._kept: State | None = None  # None: running, or not yet started

    @contextmanager
    def running(self) -> Iterator[None]:
        """Use the state while the block runs, then restore the caller's."""
        with torch.random.fork_rng(self.devices):
            self._restore()
            try:
                yield
            finally:
                self._kept = self._now()

    def state(self) -> State:
        """Return the state, to be saved."""
        return self._kept or self._now()

    def load(self, state: State) -> None:
        """Restore a saved state."""
        self._kept = (state[0], list(state[1]))

    def _now(self) -> State:
        return torch.get_rng_state(), [torch.cuda.get_rng_state(i) for i in self.devices]

    def _restore(self) -> None:
        if self._kept is None:
            torch.manual_seed(self.seed)
            return
        torch.set_rng_state(self._kept[0].cpu())
        for index, rng in zip(self.devices, self._kept[1], strict=True):
            torch.cuda.set_rng_state(rng.cpu(), index)
        self._kept = None
