r"""How far an adversarial example is from its image: one value an example, in float64.

All take images :math:`x` and their adversarial examples :math:`x'`, in [0, 1] and with shape
(B, C, H, W), and return values with shape (B,); the value of an example does not depend on the
other examples. They raise a ``UserError`` if the shapes differ or are not (B, C, H, W).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from equipoise.errors import UserError

_WINDOW = 11
_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


def ssim(x: Tensor, x_adv: Tensor) -> Tensor:
    r"""Return the structural similarity, in [-1, 1]; of equal images it is exactly 1.

    .. math::
        \frac{(2 \mu \mu' + C_1) (2 \sigma_{xx'} + C_2)}
             {(\mu^2 + \mu'^2 + C_1) (\sigma^2 + \sigma'^2 + C_2)}

    Means, variances and the covariance are those of a Gaussian window of 11 x 11 pixels with a
    standard deviation of 1.5 pixels; :math:`C_1 = 0.01^2` and :math:`C_2 = 0.03^2`. The value is
    the mean over all places at which the window lies inside the image, and over the channels. On
    an image that is smaller than the window, the window is the largest odd one that fits
    (7 x 7 for digits of 8 x 8), with the same standard deviation.

    Example:
        >>> image = torch.rand(2, 1, 16, 16)
        >>> ssim(image, image)
        tensor([1., 1.], dtype=torch.float64)

    References:
        | Image Quality Assessment: From Error Visibility to Structural Similarity
        | (Wang et al., 2004)
        | https://doi.org/10.1109/TIP.2003.819861
    """
    x, x_adv = _pair(x, x_adv)
    if len(x) == 0:
        return x.new_zeros(0)
    window = _window(min(_WINDOW, *x.shape[-2:]), x)
    mean, mean_adv = _smooth(x, window), _smooth(x_adv, window)
    variance = _smooth(x * x, window) - mean * mean
    variance_adv = _smooth(x_adv * x_adv, window) - mean_adv * mean_adv
    covariance = _smooth(x * x_adv, window) - mean * mean_adv
    light = (2 * mean * mean_adv + _C1) / (mean * mean + mean_adv * mean_adv + _C1)
    structure = (2 * covariance + _C2) / (variance + variance_adv + _C2)
    return (light * structure).flatten(1).mean(1)


def mse(x: Tensor, x_adv: Tensor) -> Tensor:
    r"""Return the mean square of the change of :math:`d` values, :math:`\|x' - x\|_2^2 / d`."""
    x, x_adv = _pair(x, x_adv)
    return (x_adv - x).square().flatten(1).mean(1)


def ald2(x: Tensor, x_adv: Tensor) -> Tensor:
    r"""Return the change as a part of the image, :math:`\|x' - x\|_2 / \|x\|_2`.

    A black image has the length 0: its value is 0 if it is unchanged, else 1.

    References:
        | DEEPSEC: A Uniform Platform for Security Analysis of Deep Learning Model (Ling et al.,
        | 2019), which names the mean of it over successful examples "average L_p distortion"
        | https://doi.org/10.1109/SP.2019.00023
    """
    x, x_adv = _pair(x, x_adv)
    change = (x_adv - x).flatten(1).norm(dim=1)
    length = x.flatten(1).norm(dim=1)
    black = length == 0
    part = change / torch.where(black, 1.0, length)
    return torch.where(black, (change > 0).to(change.dtype), part)


def psnr(x: Tensor, x_adv: Tensor) -> Tensor:
    r"""Return the ratio of the largest value to the change, :math:`10 \log_{10} (1 / MSE)`, in dB.

    For equal images it is infinite.
    """
    return -10 * mse(x, x_adv).log10()


# By the names that `equipoise.measures.cmmr.measure` takes them under.
MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ssim": ssim,
    "mse": mse,
    "ald2": ald2,
    "psnr": psnr,
}


TOGETHER = 1 << 23  # values that are measured at a time at most


def measured(x: Tensor, x_adv: Tensor, batch_size: int = 500) -> dict[str, Tensor]:
    """Return the values of all measures by their names, in batches.

    Arguments:
        x: The images.
        x_adv: The adversarial examples.
        batch_size: The number of images measured together; it changes the memory, not the values.
    """
    batch_size = min(batch_size, max(1, TOGETHER // max(1, x[:1].numel())))
    batches = [slice(start, start + batch_size) for start in range(0, len(x), batch_size)]
    return {
        name: torch.cat([measure(x[rows], x_adv[rows]) for rows in batches or [slice(0)]])
        for name, measure in MEASURES.items()
    }


def _pair(x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    if x.shape != x_adv.shape or x.ndim != 4:
        raise UserError(
            "expected two batches of images of one shape (B, C, H, W), "
            f"got {tuple(x.shape)} and {tuple(x_adv.shape)}"
        )
    return x.detach().double(), x_adv.detach().double()


def _window(fits: int, like: Tensor) -> Tensor:
    size = fits if fits % 2 else fits - 1
    places = torch.arange(size, dtype=like.dtype, device=like.device) - size // 2
    weights = torch.exp(-(places**2) / (2 * _SIGMA**2))
    return weights / weights.sum()


def _smooth(images: Tensor, window: Tensor) -> Tensor:
    """Return the weighted means at all places where the window fits: it is separable."""
    planes = images.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))
    return planes.view(*images.shape[:2], *planes.shape[-2:])
