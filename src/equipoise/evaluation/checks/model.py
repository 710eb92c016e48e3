"""What all checks share: the logits of a model, some of its examples, and its state kept."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from equipoise.draws import KeyedDraws
from equipoise.evaluation.judge import logits_of
from equipoise.execution.outputs import ask
from equipoise.execution.passes import seeded
from equipoise.losses import margin


class Divided(nn.Module):
    """A model with its logits divided by a constant above 0, which changes no prediction."""

    def __init__(self, inner: nn.Module, divisor: float) -> None:
        super().__init__()
        self.inner, self.divisor = inner, divisor

    @classmethod
    def to_one(cls, model: nn.Module, x: Tensor, y: Tensor) -> Self:
        """Return the model with a median margin of one on some inputs: softmax is then soft."""
        gap = float(margin(logits_of(model, x), y).abs().double().median())
        return cls(model, max(gap, 1e-12))

    def forward(self, x: Tensor) -> Tensor:
        """Return smaller logits for inputs with shape (B, ...)."""
        return ask(self.inner, x) / self.divisor


def sampled(x: Tensor, allowed: Tensor, size: int, seed: int) -> Tensor:
    """Return the rows of at most ``size`` allowed examples, in order, drawn by their bytes."""
    rows = allowed.nonzero()[:, 0]
    if len(rows) <= size:
        return rows
    key = KeyedDraws.of(x[rows], seed).child("sample").uniform(x[rows].flatten(1)[:, :1])[:, 0]
    return rows[key.argsort(stable=True)[:size]].sort().values


@contextmanager
def preserved(
    model: nn.Module, seed: int, device: torch.device
) -> Iterator[Callable[[], set[str]]]:
    """Use a model, and restore its tensors and the global random state at the end.

    Yields a function that names the tensors of the model that have changed so far.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def changed() -> set[str]:
        return {name for name, tensor in tensors.items() if not _same(tensor, copies[name])}

    with seeded(seed, device):
        try:
            yield changed
        finally:
            with torch.no_grad():
                for name in changed():
                    tensors[name].copy_(copies[name])


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())
