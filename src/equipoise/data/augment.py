"""Random changes of training images beyond :func:`equipoise.data.crop_flip`, for a whole batch.

Each image has its own draws, from a generator.

Reference: Going Deeper with Convolutions (Szegedy et al., 2015), arXiv:1409.4842, for the random
resized crop; the colour jitter is that of torchvision without hue, in a fixed order.
"""

from math import log

import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)
from torch import Tensor

RATIO = 4 / 3  # of the sides of a random crop, at most
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R 601)


def resized_crop(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Cut a random part out of each image and scale it to the size of the image.

    Arguments:
        x: ``float32`` images, with shape (B, C, H, W).
        scale: The least share of the area that is kept; the most is 1.
        generator: Gives for each image the area, the ratio of the sides, and the place.

    Returns:
        Images of the shape of ``x``, interpolated bilinearly.
    """
    area, ratio, down, right = _uniform(4, x, generator)
    area = scale + (1 - scale) * area
    ratio = ((2 * ratio - 1) * log(RATIO)).exp()
    height = (area / ratio).sqrt().clamp_max(1)
    width = (area * ratio).sqrt().clamp_max(1)
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = width, height
    theta[:, 0, 2], theta[:, 1, 2] = (2 * right - 1) * (1 - width), (2 * down - 1) * (1 - height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def jitter(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Change brightness, contrast and (of three channels) saturation of each image at random.

    Arguments:
        x: ``float32`` images in [0, 1], with shape (B, C, H, W).
        strength: The factors lie between 1 - strength and 1 + strength.
        generator: Gives the three factors of each image.

    Returns:
        Images in [0, 1], of the shape of ``x``.
    """
    factors = 1 + strength * (2 * _uniform(3, x, generator) - 1)
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind()
    x = (x * brightness).clamp(0, 1)
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    x = (mean + contrast * (x - mean)).clamp(0, 1)
    if x.shape[1] != len(GREY):
        return x
    grey = _grey(x)
    return (grey + saturation * (x - grey)).clamp(0, 1)


def _grey(x: Tensor) -> Tensor:
    """Return the brightness of each pixel, with shape (B, 1, H, W)."""
    if x.shape[1] != len(GREY):
        return x.mean(1, keepdim=True)
    weights = torch.tensor(GREY, device=x.device)[None, :, None, None]
    return (x * weights).sum(1, keepdim=True)


def _uniform(count: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Return numbers in [0, 1), of shape (count, B), drawn on the generator's device."""
    return torch.rand(count, len(x), generator=generator, device=generator.device).to(x.device)
