r"""Losses on logits, one value per example: (B, K) and (B,) to (B,).

Attacks maximise them and learners minimise their mean; no example's value depends on another's.
"""

__all__ = ["LOSSES", "Loss", "cross_entropy", "margin"]

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`-\log \mathrm{softmax}(z)_y`.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K).
        y: The labels, with shape (B,).
    """
    return F.cross_entropy(logits, y, reduction="none")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`\max_{i \ne y} z_i - z_y`: positive where the example is misclassified.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K), K >= 2.
        y: The labels, with shape (B,).

    References:
        | Towards Evaluating the Robustness of Neural Networks (Carlini and Wagner, 2017)
        | https://arxiv.org/abs/1608.04644
    """
    wanted = logits.gather(1, y[:, None])[:, 0]
    is_label = torch.arange(logits.shape[1], device=y.device) == y[:, None]
    return logits.masked_fill(is_label, -torch.inf).amax(dim=1) - wanted


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}
