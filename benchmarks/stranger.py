"""A ResNet-18 as a stranger writes it: what people bring, not a network of the house.

References:
    | Deep Residual Learning for Image Recognition (He et al., 2016)
    | https://arxiv.org/abs/1512.03385
"""

import torch
from torch import Tensor, nn

STRANGER = "stranger-resnet-18"
WIDTH = 64  # features of the first stage


class BasicBlock(nn.Module):
    """Two convolutions and a way around them.

    Arguments:
        before: The channels that come in.
        after: The channels that go out.
        stride: The stride of the first convolution.
    """

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            shortcut = nn.Conv2d(before, after, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """Return features for features with shape (B, C, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        result: Tensor = self.relu(out)
        return result


class ResNet18(nn.Module):
    """Four stages of two blocks, for images of 32 pixels a side: no pooling at the beginning.

    Arguments:
        channels: The channels of an image.
        classes: The number of classes.
        width: The factor on the number of features, which is 64 in the first stage.
    """

    def __init__(self, channels: int = 3, classes: int = 10, width: float = 1.0) -> None:
        super().__init__()
        first = max(1, round(WIDTH * width))
        self.conv1 = nn.Conv2d(channels, first, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = _stage(first, first, 1)
        self.layer2 = _stage(first, 2 * first, 2)
        self.layer3 = _stage(2 * first, 4 * first, 2)
        self.layer4 = _stage(4 * first, 8 * first, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8 * first, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits for images with shape (B, C, H, W)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _stage(before: int, after: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(before, after, stride), BasicBlock(after, after, 1))
