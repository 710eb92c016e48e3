r"""Losses on logits, one value per example: (B, K) and (B,) to (B,).

Attacks maximise them and learners minimise their mean; no example's value depends on another's.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

Loss = Callable[[Tensor, Tensor], Tensor]

_TINY = 1e-12


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`-\log \mathrm{softmax}(z)_y`.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K).
        y: The labels, with shape (B,).
    """
    return F.cross_entropy(logits, y, reduction="none")


def kl(logits: Tensor, other: Tensor) -> Tensor:
    r"""Return :math:`\mathrm{KL}(p \,\|\, q) = \sum_k p_k \log (p_k / q_k)`.

    Here :math:`p = \mathrm{softmax}(z)` and :math:`q = \mathrm{softmax}(z')`; the gradient flows
    into both.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K).
        other: The logits :math:`z'`, with shape (B, K).
    """
    own = logits.log_softmax(1)
    return F.kl_div(other.log_softmax(1), own, reduction="none", log_target=True).sum(1)


def boost(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`-\log(1.0001 - \max_{k \ne y} p_k)` for the softmax :math:`p`.

    Added to the cross-entropy it is the boosted cross-entropy.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K), K >= 2.
        y: The labels, with shape (B,).

    References:
        | Improving Adversarial Robustness Requires Revisiting Misclassified Examples
        | (Wang et al., 2020), Eq. (9), with the constant of its code
        | https://openreview.net/forum?id=rklOg6EFwS
    """
    is_label = torch.arange(logits.shape[1], device=y.device) == y[:, None]
    largest = logits.softmax(1).masked_fill(is_label, 0).amax(dim=1)
    return -torch.log(1.0001 - largest)


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


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return the difference of logits ratio.

    It is :math:`-(z_y - \max_{i \ne y} z_i) / (z_{\pi_1} - z_{\pi_3})`, where :math:`\pi` sorts
    the logits in descending order. It does not change with their scale or an added constant.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K), K >= 3.
        y: The labels, with shape (B,).

    References:
        | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
        | Parameter-free Attacks (Croce and Hein, 2020), Eq. (6)
        | https://arxiv.org/abs/2003.01690
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(_TINY)


def dlr_targeted(logits: Tensor, y: Tensor, y_target: Tensor) -> Tensor:
    r"""Return :math:`-(z_y - z_t) / (z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2)`.

    Arguments:
        logits: The logits :math:`z`, with shape (B, K), K >= 4.
        y: The labels, with shape (B,).
        y_target: The target classes :math:`t`, with shape (B,).

    References:
        Croce and Hein (2020), Eq. (7), as for :func:`dlr`.
    """
    top = logits.topk(4, dim=1).values
    wanted, own = (logits.gather(1, label[:, None])[:, 0] for label in (y_target, y))
    return (wanted - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_TINY)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}
