r"""Losses on logits :math:`z` of shape (B, K) and labels :math:`y` of shape (B,).

They return a value for each example, of shape (B,), which does not depend on other examples.
Attacks maximise it, and learners minimise its mean.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the usual name

Loss = Callable[[Tensor, Tensor], Tensor]

_TINY = 1e-12


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`-\log \mathrm{softmax}(z)_y`."""
    return F.cross_entropy(logits, y, reduction="none")


def kl(logits: Tensor, other: Tensor) -> Tensor:
    r"""Return :math:`\mathrm{KL}(p \,\|\, q) = \sum_k p_k \log (p_k / q_k)`.

    Here :math:`p = \mathrm{softmax}(z)` and :math:`q = \mathrm{softmax}(z')` for the ``other``
    logits :math:`z'` of shape (B, K); the gradient flows into both.
    """
    own = logits.log_softmax(1)
    return F.kl_div(other.log_softmax(1), own, reduction="none", log_target=True).sum(1)


def boost(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`-\log(1.0001 - \max_{k \ne y} p_k)` for the softmax :math:`p`.

    Added to the cross-entropy it is the boosted cross-entropy. K must be at least 2.

    References:
        | Improving Adversarial Robustness Requires Revisiting Misclassified Examples
        | (Wang et al., 2020), Eq. (9), with the constant of its code
        | https://openreview.net/forum?id=rklOg6EFwS
    """
    is_label = torch.arange(logits.shape[1], device=y.device) == y[:, None]
    largest = logits.softmax(1).masked_fill(is_label, 0).amax(dim=1)
    return -torch.log(1.0001 - largest)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""Return :math:`\max_{i \ne y} z_i - z_y`, K >= 2: positive if an example is misclassified.

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
    the logits in descending order, K >= 3. Their scale or an added constant does not change it.

    References:
        | Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
        | Parameter-free Attacks (Croce and Hein, 2020), Eq. (6)
        | https://arxiv.org/abs/2003.01690
    """
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2]).clamp_min(_TINY)


def dlr_targeted(logits: Tensor, y: Tensor, y_target: Tensor) -> Tensor:
    r"""Return :math:`-(z_y - z_t) / (z_{\pi_1} - (z_{\pi_3} + z_{\pi_4}) / 2)`, K >= 4.

    ``y_target`` has the target classes :math:`t`, with shape (B,).

    References:
        Croce and Hein (2020), Eq. (7), as for :func:`dlr`.
    """
    top = logits.topk(4, dim=1).values
    wanted, own = (logits.gather(1, label[:, None])[:, 0] for label in (y_target, y))
    return (wanted - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp_min(_TINY)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin}
