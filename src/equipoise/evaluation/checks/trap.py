"""A model with a trap: whether a search keeps a misclassified point that it met on its way."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.losses import margin
from equipoise.threat import Threat

_SURE, _NEXT, _OTHERS = 0.0, -2.0, -6.0  # logits of the label, the next class and all others
_INSIDE = 2.5  # what the next class gains in the trap


class Trap(nn.Module):
    r"""Misclassifies one example on the way to the border of its ball, and not at the border.

    The loss grows with the progress :math:`t = \langle w, v - x \rangle / s` of a point v along
    a direction w that leads away from the nearer end of the range; s is the most that the ball
    allows. Only where t lies in the window the next class leads.

    Arguments:
        x: The example, with shape (1, ...).
        y: Its label, with shape (1,).
        classes: The number of classes.
        threat: What attacks are allowed.
        window: The values of t between which points are misclassified.
    """

    def __init__(
        self, x: Tensor, y: Tensor, classes: int, threat: Threat, window: tuple[float, float]
    ) -> None:
        super().__init__()
        self.x, self.window = x, window
        middle = (threat.low + threat.high) / 2
        away = torch.where(x < middle, 1.0, -1.0).to(x.dtype)
        dual = {"linf": "l1", "l2": "l2", "l1": "linf"}[threat.norm]
        self.w = away / (threat.eps * Threat.lengths(away, dual))  # type: ignore[arg-type]
        label = int(y)
        logits = torch.full((classes,), _OTHERS, dtype=x.dtype, device=x.device)
        logits[label], logits[(label + 1) % classes] = _SURE, _NEXT
        self.logits = logits
        self.next = torch.arange(classes, device=x.device) == (label + 1) % classes

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for points with shape (B, ...)."""
        t = (self.w * (x - self.x)).flatten(1).sum(1)
        inside = (t >= self.window[0]) & (t <= self.window[1])
        lead = t + _INSIDE * inside
        return self.logits + lead[:, None] * self.next


@contextmanager
def watched(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect what goes through a model, and what comes out."""
    seen: list[tuple[Tensor, Tensor]] = []

    def hook(_: nn.Module, inputs: tuple[Any, ...], out: Any) -> None:
        seen.append((inputs[0].detach(), out.detach()))

    handle = model.register_forward_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def fell(seen: list[tuple[Tensor, Tensor]], x: Tensor, y: Tensor, threat: Threat) -> bool:
    """Tell whether a search met an allowed point that is misclassified.

    Arguments:
        seen: What went through the model, and what came out.
        x: The example, with shape (1, ...).
        y: Its label, with shape (1,).
        threat: What the search was allowed.
    """
    return any(
        bool(((margin(out, y.expand(len(out))) > 0) & threat.contains(x.expand_as(v), v)).any())
        for v, out in seen
    )
