"""The judge: the only place that decides whether a point fools the model.

It runs the model in eval mode, in float32 (float64 for a float64 model), with autocast off, in any
case: the arithmetic of the search does not matter.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.execution.form import Fast, guest
from equipoise.execution.outputs import ask, own, said
from equipoise.execution.passes import seeded
from equipoise.losses import margin
from equipoise.threat import Threat

_FEW = 8  # inputs that show whether a model gives the same output again
_SAME = 1e-4  # of the largest logit: more than rounding
UNDECIDED = 1e-4  # margins within this share of the logits may change sign with the batch


@contextmanager
def _full_float32() -> Iterator[None]:
    """Switch off the short float32 products (TF32) that CUDA uses by default."""
    places: tuple[Any, ...] = (
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]  # made at run time
        torch.backends.cuda.matmul,
    )
    before = [place.fp32_precision for place in places]
    try:
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = precision


class Ruling(NamedTuple):
    """The verdicts on some points, each with shape (N,).

    An output that is not finite counts as misclassified, with a margin of -inf.
    """

    fooled: Tensor
    margin: Tensor  # the logit of the label minus the largest other; negative: misclassified
    answer: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Judge:
    """Decides which points fool one model.

    Arguments:
        model: The model, from inputs to logits.
        batch_size: The size of a batch.
        passes: The forward passes of a verdict, whose class probabilities are averaged: a random
            model is judged by its average, not by chance.
        seed: The seed of the model's own randomness, where there are several passes.
    """

    model: nn.Module
    batch_size: int = 500
    passes: int = 1
    seed: int = 0

    def logits(self, x: Tensor) -> Tensor:
        """Return logits of inputs with shape (N, ...); with several passes log-probabilities."""
        size = self.batch_size
        parts = (x[first : first + size] for first in range(0, max(len(x), 1), size))
        exact = torch.autocast(x.device.type, enabled=False)
        with guest(self.model), torch.no_grad(), exact, _full_float32():
            if self.passes == 1:
                return torch.cat([ask(self.model, part) for part in parts])
            with seeded(self.seed, x.device):
                return torch.cat([self._averaged(part) for part in parts])

    def _averaged(self, x: Tensor) -> Tensor:
        """Return the logarithm of the class probabilities averaged over the passes, (B, K)."""
        total = sum(ask(self.model, x).double().softmax(1) for _ in range(self.passes))
        return (torch.as_tensor(total) / self.passes).log().to(x.dtype)

    def repeats(self, x: Tensor) -> bool:
        """Return whether one pass decides, and a second pass gives the same logits.

        The second pass is in two parts: it shows also whether logits depend on the batch.
        """
        if self.passes > 1:
            return False
        few = x[:_FEW]
        try:
            first = self.logits(few)
            second = torch.cat([self.logits(part) for part in few.tensor_split(2) if len(part)])
        except Exception:  # a model may raise anything
            return False
        return bool(((first - second).abs() <= _SAME * first.abs().amax()).all())

    def taken(self, x: Tensor) -> str:
        """Return which part of an output that is no tensor is used as logits; else nothing."""
        if own(self.model):
            return ""
        with guest(self.model), torch.no_grad(), seeded(self.seed, x.device), suppress(Exception):
            return said(self.model, x)
        return ""  # the model fails on a single input, but not on a batch

    def admit(self, x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
        """Return which points are finite and within the threat, with shape (N,)."""
        parts = torch.split(x_adv, self.batch_size)
        finite = torch.cat([torch.isfinite(part.flatten(1)).all(1) for part in parts])
        return finite & threat.contains(x, x_adv)

    def rule(self, x_adv: Tensor, y: Tensor) -> Ruling:
        """Decide on points with shape (N, ...) and labels with shape (N,)."""
        logits = self.logits(x_adv)
        finite = torch.isfinite(logits).all(1)
        margins = torch.where(finite, -margin(logits, y).double(), -torch.inf)
        answer = logits.argmax(1)
        return Ruling(~finite | (answer != y), margins, answer, finite)


def exact_of(model: nn.Module) -> nn.Module:
    """Return the model behind its search form, or the model itself."""
    return model.exact if isinstance(model, Fast) else model


def logits_of(model: nn.Module, x: Tensor, *, batch_size: int = 250, passes: int = 1) -> Tensor:
    """Return the logits of inputs with shape (N, ...), in the judge's arithmetic."""
    return Judge(exact_of(model), batch_size=batch_size, passes=passes).logits(x)


def correct_of(model: nn.Module, x: Tensor, y: Tensor, *, passes: int = 1) -> Tensor:
    """Return which inputs are classified correctly, with shape (N,)."""
    return logits_of(model, x, passes=passes).argmax(1) == y


def misfit(logits: Tensor, y: Tensor, classes: int | None) -> str:
    """Return why outputs on clean inputs cannot be logits for their labels; empty: they can."""
    if logits.ndim != 2 or len(logits) != len(y):
        return f"expected logits of shape ({len(y)}, K), got {tuple(logits.shape)}"
    k = logits.shape[1]
    if k < 2:
        return "the model has one output; a classifier needs at least two logits"
    if classes is not None and k != classes:
        return f"the model returns {k} classes, the data has {classes}"
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < k:
        return (
            f"labels must lie in 0..{k - 1}, as the model returns {k} classes; "
            f"got {int(y.min())}..{int(y.max())}"
        )
    if broken := int((~torch.isfinite(logits).all(1)).sum()):
        return (
            f"the model returns NaN or infinite values on {broken} of {len(y)} clean inputs; "
            "check its weights and its normalisation"
        )
    return ""


def ties(logits: Tensor) -> Tensor:
    """Return where the two largest logits differ by less than rounding, with shape (N,)."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    large = logits.abs().amax(1).clamp_min(1e-30)
    return (torch.isfinite(large) & (first - second <= UNDECIDED * large)).cpu()
