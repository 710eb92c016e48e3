"""Labels of a batch as they are trained on: hard, smoothed, or mixed from two images."""

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from equipoise.losses import boost, cross_entropy


@dataclass(frozen=True)
class Labels:
    r"""The labels of a batch.

    With smoothing :math:`s` and the label of another image in the part :math:`1 - a` of a mixed
    one, the target is :math:`(1 - s)(a\, e_y + (1 - a)\, e_{y'}) + s / K`.

    Arguments:
        y: The labels, with shape (B,); of a mixed image that of its larger part.
        other: The labels of the smaller parts, with shape (B,); None for whole images.
        share: The part :math:`a` that ``y`` has, with shape (B,).
        smoothing: The part :math:`s` that is spread evenly over all classes.
    """

    y: Tensor
    other: Tensor | None = None
    share: Tensor | None = None
    smoothing: float = 0.0

    def sharp(self) -> "Labels":
        """Return the labels without smoothing, which attacks use."""
        return replace(self, smoothing=0.0)

    def take(self, index: Tensor) -> "Labels":
        """Return the labels at some positions."""
        other = None if self.other is None else self.other[index]
        share = None if self.share is None else self.share[index]
        return Labels(self.y[index], other, share, self.smoothing)

    def target(self, classes: int) -> Tensor:
        """Return the labels as probabilities, with shape (B, K)."""
        target = F.one_hot(self.y, classes).float()
        if self.other is not None and self.share is not None:
            share = self.share[:, None].float()
            target = share * target + (1 - share) * F.one_hot(self.other, classes)
        return (1 - self.smoothing) * target + self.smoothing / classes

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the cross-entropies of logits of shape (B, K), with shape (B,)."""
        if self.other is None and self.smoothing == 0:
            return cross_entropy(logits, self.y)
        return cross_entropy(logits, self.target(logits.shape[1]).to(logits.dtype))

    def boosted(self, logits: Tensor) -> Tensor:
        """Return the boosted cross-entropies: see :mod:`equipoise.losses`."""
        return self.cross_entropy(logits) + boost(logits, self.y)
