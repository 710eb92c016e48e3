r"""Corruptions of images: noise, blur, JPEG, brightness and contrast at five severities.

They are no attack: nothing is searched for, and no corruption depends on the model. With
:class:`equipoise.draws.KeyedDraws` a corrupted image depends on seed and image alone, and is the
same in every batch; in training the generator of the learner gives the noise. The result is
rounded to 8 bits, as in a file of images, halves up.

The severities are those of CIFAR-10-C, which are meant for images of 32x32 pixels; those of
ImageNet-C are stronger. CIFAR-10-C cuts values to 8 bits where they are rounded here, and is
computed in the same way otherwise.

References:
    | Benchmarking Neural Network Robustness to Common Corruptions and Perturbations
    | (Hendrycks and Dietterich, 2019), https://arxiv.org/abs/1903.12261
    | Constants: https://github.com/hendrycks/robustness, ``make_cifar_c.py``
"""

import math
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from equipoise.draws import Draws, normal
from equipoise.errors import UserError, nearest, short

STRENGTHS = {
    "gaussian-noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, of images in [0, 1]
    "gaussian-blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation of the kernel, in pixels
    "jpeg": (80, 65, 58, 50, 40),  # quality
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),  # added to the value (the largest channel)
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance from the channel's mean
}
"""The strength of each kind at severities 1 to 5."""

SEVERITIES = (1, 2, 3, 4, 5)
_CUT = 4.0  # standard deviations at which the blur's kernel ends
_HALF = 0.5 + 1e-4  # more than rounding of float32 images: x + 0.1 has a half at every pixel


def corrupted(x: Tensor, kind: str, severity: int, draws: Draws) -> Tensor:
    """Return corrupted images: multiples of 1/255 with shape, dtype and device of ``x``.

    Example:
        >>> from equipoise.draws import KeyedDraws
        >>> x = torch.full((2, 1, 4, 4), 0.5)
        >>> bright = corrupted(x, "brightness", 5, KeyedDraws.of(x))
        >>> round(float(255 * bright.max()))
        204

    Arguments:
        x: Images in [0, 1], with shape (B, C, H, W) and one or three channels.
        kind: A name of :data:`STRENGTHS`.
        severity: 1 to 5.
        draws: The randomness, of which only the noise makes use; on the device of ``x``.

    Raises:
        UserError: If they are no such images, or there is no such corruption.
    """
    check_images(x)
    if kind not in STRENGTHS:
        raise UserError(nearest(str(kind), STRENGTHS, "corruption"))
    if severity not in SEVERITIES:
        raise UserError(f"the severity of a corruption must be 1 to 5, got {short(severity)}")
    if not len(x):
        return x
    strength, exact = STRENGTHS[kind][severity - 1], x.double()
    if kind == "gaussian-noise":
        made = exact + strength * normal(draws.child(f"{kind}/{severity}"), exact)
    elif kind == "gaussian-blur":
        made = _blurred(exact, strength)
    elif kind == "jpeg":
        made = _compressed(exact, int(strength))
    elif kind == "brightness":
        made = _brighter(exact, strength)
    else:
        mean = exact.mean((2, 3), keepdim=True)
        made = (exact - mean) * strength + mean
    return (to_bytes(made).to(torch.float32) / 255).to(x.dtype)


def check_images(x: Tensor) -> None:
    """Raise a UserError for anything but images in [0, 1] with one or three channels."""
    if x.ndim != 4 or x.shape[1] not in (1, 3) or not all(x.shape[1:]):
        raise UserError(
            "corruptions are of images with shape (N, 1, H, W) or (N, 3, H, W), got "
            f"{tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise UserError(f"corruptions are of images in [0, 1], got {x.dtype}; divide by 255?")
    if x.numel() and not bool(((x >= 0) & (x <= 1)).all()):  # NaN is in no range
        least, most = float(x.min()), float(x.max())
        raise UserError(f"corruptions are of images in [0, 1], got [{least:.4g}, {most:.4g}]")


def to_bytes(x: Tensor) -> Tensor:
    """Return images in [0, 1] as ``uint8``, rounded, halves up; other values go to the ends."""
    return (x.clamp(0, 1) * 255 + _HALF).floor().clamp_max(255).to(torch.uint8)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Convolve images with a Gaussian kernel; the pixels at the border continue beyond it."""
    reach = int(_CUT * sigma + 0.5)
    kernel = [math.exp(-0.5 * (step / sigma) ** 2) for step in range(-reach, reach + 1)]
    for axis in (2, 3):
        size = x.shape[axis]
        places = torch.arange(-reach, size + reach, device=x.device).clamp(0, size - 1)
        wide, total = x.index_select(axis, places), torch.zeros_like(x)
        for first, weight in enumerate(kernel):
            total.add_(wide.narrow(axis, first, size), alpha=weight / sum(kernel))
        x = total
    return x


def _brighter(x: Tensor, more: float) -> Tensor:
    """Add to the value of images, which is their largest channel; hue and saturation stay."""
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp_max(1)
    scaled = x * (brighter / value.clamp_min(1e-12))
    return torch.where(value > 0, scaled, brighter.expand_as(x))


def _compressed(x: Tensor, quality: int) -> Tensor:
    """Write images as JPEG files in memory, and read them."""
    pixels = to_bytes(x).permute(0, 2, 3, 1).cpu().numpy()
    made = np.stack([_round_trip(image, quality) for image in pixels])
    return torch.from_numpy(made.reshape(pixels.shape)).permute(0, 3, 1, 2).to(x) / 255


def _round_trip(image: NDArray[np.uint8], quality: int) -> NDArray[Any]:
    file = BytesIO()
    Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(
        file, "JPEG", quality=quality
    )
    return np.asarray(Image.open(file))
