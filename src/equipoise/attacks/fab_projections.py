r"""The nearest point on a hyperplane within the range of the input, for three norms.

Given a point :math:`p` and an affine function with gradient :math:`w` and value :math:`v` at
:math:`p`, the functions return the smallest :math:`\delta` with

.. math:: \langle w, \delta \rangle = -v, \qquad low \le p + \delta \le high.

Every coordinate moves to the side on which :math:`|v|` falls, by :math:`m_i \ge 0` up to the
room :math:`r_i` to the border, so that :math:`\sum_i |w_i| m_i = |v|` is to be met:

Linf    :math:`m_i = \min(t, r_i)`
L2      :math:`m_i = \min(t |w_i|, r_i)`
L1      a fractional knapsack: the largest :math:`|w_i|` first, each up to its room

For Linf and L2 the sum is concave and piecewise linear in :math:`t`, so that Newton's steps from
below never overshoot and reach the exact solution after a few steps. For L1 as many of the largest
coordinates are selected as are needed. If the range does not reach the hyperplane, the result is
its nearest point: every coordinate with a weight moves to the border.
"""

import torch
from torch import Tensor

from equipoise.threat import Norm

_FIRST, _GROWTH = 64, 8  # the coordinates the L1 projection sorts at first, and the factor then


def project(
    points: Tensor, w: Tensor, value: Tensor, norm: Norm, *, low: float = 0.0, high: float = 1.0
) -> Tensor:
    """Return the smallest move onto a hyperplane within the range.

    Arguments:
        points: The points, within the range, with shape (..., D).
        w: The gradients of the affine functions; broadcasts to the shape of ``points``.
        value: The values of the affine functions at the points, with shape (...).
        norm: The norm of the move: ``"linf"``, ``"l2"`` or ``"l1"``.
        low: The smallest value of an input.
        high: The largest value of an input.

    Returns:
        The moves, with shape (..., D); zero in the coordinates where ``w`` is zero.
    """
    way = w.sign() * torch.where(value < 0, 1.0, -1.0).to(w.dtype)[..., None]
    # A value within the range for ways of zero, whose coordinates do not move.
    border = (way * ((high - low) / 2)).add_((high + low) / 2)
    room = border.sub_(points).abs_()
    size = w.abs()
    largest = size.amax(-1, keepdim=True).clamp_min(torch.finfo(w.dtype).tiny)
    size = size / largest  # products stay in range, whatever the scale of the logits
    need = (value.abs()[..., None] / largest).clamp_max(torch.finfo(w.dtype).max)
    moved = {"linf": _fit_linf, "l2": _fit_l2, "l1": _fit_l1}[norm](size, room, need)
    return way.mul_(moved)


def _fit_linf(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Return min(t, room) with sum(size * moved) = need, for tensors (..., D) and (..., 1)."""
    t = _per(need, size.sum(-1, keepdim=True))
    part = torch.empty_like(room)
    for _ in range(size.shape[-1] + 1):
        lacking = need - torch.minimum(room, t, out=part).mul_(size).sum(-1, keepdim=True)
        slope = torch.gt(room, t, out=part).mul_(size).sum(-1, keepdim=True)
        if _met(lacking, slope, need):
            break
        t = (t + _per(lacking.clamp_min(0), slope)).clamp_max(torch.finfo(t.dtype).max)
    return torch.minimum(room, t, out=part)


def _fit_l2(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Return min(t size, room) with sum(size * moved) = need."""
    square = size.square()
    t = _per(need, square.sum(-1, keepdim=True))
    part = torch.empty_like(room)
    for _ in range(size.shape[-1] + 1):
        full = t * size
        lacking = need - torch.minimum(room, full, out=part).mul_(size).sum(-1, keepdim=True)
        slope = torch.gt(room, full, out=part).mul_(square).sum(-1, keepdim=True)
        if _met(lacking, slope, need):
            break
        t = (t + _per(lacking.clamp_min(0), slope)).clamp_max(torch.finfo(t.dtype).max)
    return torch.minimum(room, t * size, out=part)


def _fit_l1(size: Tensor, room: Tensor, need: Tensor) -> Tensor:
    """Return the solution of the knapsack: the largest sizes first, up to their room."""
    size = size * room.sign()  # coordinates without room are not among the largest
    shape, width = size.shape, size.shape[-1]
    need = need.expand(*shape[:-1], 1).reshape(-1, 1)
    return _filled(size.view(-1, width), room.reshape(-1, width), need, _FIRST).view(shape)


def _filled(size: Tensor, room: Tensor, need: Tensor, count: int) -> Tensor:
    """Return the same for (B, D) from the ``count`` largest, and from more if needed."""
    top, chosen = size.topk(min(count, size.shape[1]), dim=1)
    rooms = room.gather(1, chosen)
    worth = top * rooms
    spent = worth.cumsum(1)
    taken = torch.minimum(_per((need - spent + worth).clamp_min(0), top), rooms)
    moved = torch.zeros_like(room).scatter_(1, chosen, taken)
    if count < size.shape[1]:
        short = ((spent[:, -1:] < need) & (top[:, -1:] > 0)).nonzero()[:, 0]
        if len(short):
            more = _GROWTH * count
            moved[short] = _filled(size[short], room[short], need[short], more)
    return moved


def _met(lacking: Tensor, slope: Tensor, need: Tensor) -> bool:
    """Return whether every row has reached its sum, or can move no further."""
    close = 8 * torch.finfo(need.dtype).eps * need
    return not bool(((lacking > close) & (slope > 0)).any())


def _per(amount: Tensor, slope: Tensor) -> Tensor:
    """Divide; where the slope is zero the quotient is the largest number."""
    limits = torch.finfo(amount.dtype)
    return (amount / slope.clamp_min(limits.tiny)).clamp_max(limits.max)
