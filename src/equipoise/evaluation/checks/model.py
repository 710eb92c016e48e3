"""What all checks share: a model that is looked at and left as it was."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
from torch import Tensor, nn

from equipoise.draws import KeyedDraws
from equipoise.evaluation.checks.finding import finding
from equipoise.evaluation.judge import Judge
from equipoise.execution.form import Fast
from equipoise.execution.outputs import ask
from equipoise.execution.passes import seeded
from equipoise.losses import margin
from equipoise.store.finding import Finding


def exact_of(model: nn.Module) -> nn.Module:
    """Return the model behind its search form, or the model itself."""
    return model.exact if isinstance(model, Fast) else model


def logits_of(model: nn.Module, x: Tensor, *, batch_size: int = 250, passes: int = 1) -> Tensor:
    """Return the logits of inputs with shape (N, ...), in the judge's arithmetic."""
    return Judge(exact_of(model), batch_size=batch_size, passes=passes).logits(x)


def correct_of(model: nn.Module, x: Tensor, y: Tensor, *, passes: int = 1) -> Tensor:
    """Tell which inputs are classified correctly, with shape (N,)."""
    return logits_of(model, x, passes=passes).argmax(1) == y


class Divided(nn.Module):
    """A model with its logits divided by a constant, which changes no answer.

    Arguments:
        inner: The model.
        divisor: The constant, above 0.
    """

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
    """Return the positions of a few allowed examples, drawn by their own bytes, in order.

    Arguments:
        x: All inputs, with shape (N, ...).
        allowed: Which of them may be taken, with shape (N,).
        size: How many at most.
        seed: The seed of the draw.
    """
    rows = allowed.nonzero()[:, 0]
    if len(rows) <= size:
        return rows
    key = KeyedDraws.of(x[rows], seed).child("sample").uniform(x[rows].flatten(1)[:, :1])[:, 0]
    return rows[key.argsort(stable=True)[:size]].sort().values


@contextmanager
def preserved(
    model: nn.Module, seed: int, device: torch.device
) -> Iterator[Callable[[], set[str]]]:
    """Use a model, and leave its tensors and the global random state as they were.

    Yields a function that names the tensors of the model that have changed so far.
    """
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    kept = {name: tensor.detach().clone() for name, tensor in held.items()}

    def changed() -> set[str]:
        return {name for name, tensor in held.items() if not _same(tensor, kept[name])}

    with seeded(seed, device):
        try:
            yield changed
        finally:
            with torch.no_grad():
                for name in changed():
                    held[name].copy_(kept[name])


def _same(a: Tensor, b: Tensor) -> bool:
    return bool(((a == b) | ((a != a) & (b != b))).all())


def attempt(
    check: str, run: Callable[[], Finding | Sequence[Finding]], unknown: str = ""
) -> list[Finding]:
    """Run a check; where it breaks off, that is the finding.

    Arguments:
        check: The name of the check.
        run: The check.
        unknown: What is then not known, in words.
    """
    try:
        found = run()
    except Exception as error:  # whatever a stranger's model raises
        message = f"the check broke off: {kind_of(error)}"
        remedy = unknown or "run the model on these inputs by hand to see the whole error"
        return [finding(check, "warning", message, remedy)]
    return [found] if isinstance(found, Finding) else list(found)


def kind_of(error: Exception) -> str:
    """Return an error in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
