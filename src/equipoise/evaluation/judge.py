"""The judge: the only place where it is decided whether a point is fooled.

Attacks propose, the judge disposes. It runs the model in eval mode, in float32 (float64 for a
float64 model), with autocast off, whatever arithmetic the attack searched with.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from equipoise.attacks.core import averaged, guest
from equipoise.errors import UserError
from equipoise.execution.outputs import ask, own, said
from equipoise.execution.passes import seeded
from equipoise.losses import margin
from equipoise.threat import Threat

_FEW = 8  # inputs that show whether a model repeats its answers
_SAME = 1e-4  # of the largest logit: more than rounding


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
    """What the judge says of points, each with shape (N,).

    An output that is not finite is no correct answer: it counts as misclassified, with a margin
    of -inf.
    """

    fooled: Tensor
    margin: Tensor  # by how much the label leads, negative where it does not
    answer: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Judge:
    """Decides on points for one model.

    Arguments:
        model: The model, from inputs to logits.
        batch_size: How many points are looked at together.
        passes: The forward passes of a verdict. Of several the class probabilities are averaged:
            a model that is random is judged by its answer on average, not by a lucky one.
        seed: The seed of the model's own randomness, where it has several passes.
    """

    model: nn.Module
    batch_size: int = 500
    passes: int = 1
    seed: int = 0

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of inputs with shape (N, ...); of several passes log-probabilities."""
        size = self.batch_size
        parts = (x[first : first + size] for first in range(0, max(len(x), 1), size))
        exact = torch.autocast(x.device.type, enabled=False)
        with guest(self.model), torch.no_grad(), exact, _full_float32():
            if self.passes == 1:
                return torch.cat([ask(self.model, part) for part in parts])
            with seeded(self.seed, x.device):
                return torch.cat([averaged(self.model, part, self.passes) for part in parts])

    def repeats(self, x: Tensor) -> bool:
        """Tell whether one pass decides, and a second over the same inputs agrees with it.

        The second is in two parts: a model whose answer depends on the rest of the batch, or that
        takes no other batch, does not repeat itself.
        """
        if self.passes > 1:
            return False
        few = x[:_FEW]
        try:
            first = self.logits(few)
            second = torch.cat([self.logits(part) for part in few.tensor_split(2) if len(part)])
        except Exception:  # whatever a stranger's model raises
            return False
        return bool(((first - second).abs() <= _SAME * first.abs().amax()).all())

    def taken(self, x: Tensor) -> str:
        """Say what of the model's output is taken for its logits, where it is no tensor.

        Arguments:
            x: One input, with shape (1, ...).
        """
        if own(self.model):
            return ""
        with guest(self.model), torch.no_grad(), seeded(self.seed, x.device), suppress(Exception):
            return said(self.model, x)
        return ""  # a model that fails on a single input answered a batch

    def admit(self, x: Tensor, x_adv: Tensor, threat: Threat) -> Tensor:
        """Tell which points an attack was allowed to propose, with shape (N,)."""
        return torch.isfinite(x_adv.flatten(1)).all(1) & threat.contains(x, x_adv)

    def rule(self, x_adv: Tensor, y: Tensor) -> Ruling:
        """Decide on points with shape (N, ...) and labels with shape (N,)."""
        logits = self.logits(x_adv)
        finite = torch.isfinite(logits).all(1)
        margins = torch.where(finite, -margin(logits, y).double(), -torch.inf)
        answer = logits.argmax(1)
        return Ruling(~finite | (answer != y), margins, answer, finite)

    def check(self, logits: Tensor, y: Tensor, classes: int | None) -> None:
        """Raise a UserError for outputs that cannot be the logits of a classifier.

        Arguments:
            logits: The outputs on clean inputs.
            y: The labels.
            classes: The number of classes, where it is known.
        """
        if problem := misfit(logits, y, classes):
            raise UserError(problem)
        if not bool(torch.isfinite(logits).all()):
            rows = int((~torch.isfinite(logits).all(1)).sum())
            raise UserError(
                f"the model returns NaN or infinite values on {rows} of {len(y)} clean inputs; "
                "check its weights and its normalisation"
            )


def misfit(logits: Tensor, y: Tensor, classes: int | None) -> str:
    """Return why outputs cannot be the logits for some labels; empty: they can be."""
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
    return ""
