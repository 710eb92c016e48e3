"""Residual networks for small images: ResNet, PreActResNet and WideResNet.

The parameters have the usual names (conv1, bn1, layer1 ..., shortcut, linear), so that published
weights can be loaded. The stem is one 3x3 convolution without pooling, and the last feature map
is averaged: images from 8 to 224 pixels of side work.

References:
    | Deep Residual Learning for Image Recognition (He et al., 2016)
    | https://arxiv.org/abs/1512.03385
    | Identity Mappings in Deep Residual Networks (He et al., 2016)
    | https://arxiv.org/abs/1603.05027
    | Wide Residual Networks (Zagoruyko and Komodakis, 2016)
    | https://arxiv.org/abs/1605.07146
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from equipoise.models.core import Classifier, Normalize


def _conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Convolution, norm, ReLU, convolution, norm; added to the shortcut; ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            project = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the next block."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class PreActBlock(nn.Module):
    """Norm, ReLU, convolution, norm, ReLU, convolution; added to the shortcut."""

    name = "shortcut"
    wrap: Callable[[nn.Module], nn.Module] = nn.Sequential

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv3(outputs, outputs)
        project = None
        if stride != 1 or inputs != outputs:
            project = self.wrap(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))
        self.add_module(self.name, project)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of the next block."""
        out, project = F.relu(self.bn1(x)), self._modules[self.name]
        shortcut = x if project is None else project(out)
        added: Tensor = self.conv2(F.relu(self.bn2(self.conv1(out)))) + shortcut
        return added


def _stage(
    block: type[nn.Module], inputs: int, outputs: int, count: int, stride: int
) -> nn.Module:
    sizes = [inputs, *[outputs] * count]
    strides = [stride, *[1] * (count - 1)]
    return nn.Sequential(*map(block, sizes[:-1], sizes[1:], strides))


class ResNet(Classifier):
    """ResNet-18 for small images, with four stages of two basic blocks.

    Arguments:
        channels: The channels of an image.
        size: Unused: all sizes from 8 pixels work.
        classes: The number of classes K.
        width: A factor on the number of features, 64 in the first stage.
        mean: Subtracted from each channel first.
        std: Divides each channel first.
    """

    block: type[nn.Module] = BasicBlock

    def __init__(
        self,
        *,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        classes: int = 10,
        width: float = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        del size
        w = max(1, round(64 * width))
        self.normalize = Normalize(mean, std)
        self.conv1 = _conv3(channels, w)
        self.bn1 = nn.BatchNorm2d(w if self.block is BasicBlock else 8 * w)
        self.layer1 = _stage(self.block, w, w, 2, 1)
        self.layer2 = _stage(self.block, w, 2 * w, 2, 2)
        self.layer3 = _stage(self.block, 2 * w, 4 * w, 2, 2)
        self.layer4 = _stage(self.block, 4 * w, 8 * w, 2, 2)
        self.linear = nn.Linear(8 * w, classes)

    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""
        h = F.relu(self.bn1(h))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        out: Tensor = self.linear(h.mean((2, 3)))
        return out


class PreActResNet(ResNet):
    """PreActResNet-18 for small images: norm and ReLU come before each convolution.

    The arguments are those of :class:`ResNet`. As in most code for robust training, a last norm
    and ReLU (``bn1``) come before the average.
    """

    block = PreActBlock

    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        out: Tensor = self.linear(F.relu(self.bn1(h)).mean((2, 3)))
        return out


class _WideBlock(PreActBlock):
    """A pre-activation block with the usual parameter names of a WideResNet."""

    name = "convShortcut"
    wrap = staticmethod(lambda conv: conv)


def _wide_stage(count: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return a stage of a WideResNet, with its usual parameter name ``layer``."""
    return nn.Sequential(OrderedDict(layer=_stage(_WideBlock, inputs, outputs, count, stride)))


class WideResNet(Classifier):
    """WideResNet-``depth``-``factor``; 28-10 and 34-10 are usual.

    Arguments:
        depth: The depth, 6 n + 4.
        factor: The widening factor; the other arguments are those of :class:`ResNet`.
    """

    def __init__(
        self,
        *,
        depth: int = 28,
        factor: int = 10,
        channels: int = 3,
        size: tuple[int, int] = (32, 32),
        classes: int = 10,
        width: float = 1,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__()
        del size
        assert (depth - 4) % 6 == 0
        count = (depth - 4) // 6
        w = [16, *[max(1, round(base * factor * width)) for base in (16, 32, 64)]]
        self.normalize = Normalize(mean, std)
        self.conv1 = _conv3(channels, w[0])
        self.block1 = _wide_stage(count, w[0], w[1], 1)
        self.block2 = _wide_stage(count, w[1], w[2], 2)
        self.block3 = _wide_stage(count, w[2], w[3], 2)
        self.bn1 = nn.BatchNorm2d(w[3])
        self.fc = nn.Linear(w[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def trunk(self, h: Tensor) -> Tensor:
        """Return the logits for an output of the stem."""
        h = self.block3(self.block2(self.block1(h)))
        out: Tensor = self.fc(F.relu(self.bn1(h)).mean((2, 3)))
        return out
