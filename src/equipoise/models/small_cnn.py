"""A network of two convolutions for small grey images: minutes of training on a laptop."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.models.core import Classifier, MapLinear, Normalize

LARGEST_SIDE = 8  # features of larger images are averaged down to this side


class SmallCNN(Classifier):
    """Two strided 4x4 convolutions and two linear layers, with BatchNorm.

    The shape is that of the small network of Wong and Kolter (2018), with BatchNorm added; at
    28x28 pixels and width 1 it has 0.2 million parameters. The arguments are those of
    :class:`equipoise.models.resnet.ResNet`, with the ``size`` (H, W) of an image.
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        size: tuple[int, int] = (28, 28),
        classes: int = 10,
        width: float = 1,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
    ) -> None:
        super().__init__()
        features = max(1, round(16 * width))
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(channels, features, 4, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, 2 * features, 4, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * features)
        self.side = (min(size[0] // 4, LARGEST_SIDE), min(size[1] // 4, LARGEST_SIDE))
        hidden = max(1, round(128 * width))
        self.fc1 = MapLinear(2 * features, self.side, hidden)
        self.linear = nn.Linear(hidden, classes)

    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""
        h = F.relu(self.bn1(h), inplace=not h.requires_grad)  # allocating memory is slow
        h = F.relu(self.bn2(self.conv2(h)), inplace=True)
        if h.shape[2:] != self.side:
            h = F.adaptive_avg_pool2d(h, self.side)
        out: Tensor = self.linear(F.relu(self.fc1(h), inplace=True))
        return out
