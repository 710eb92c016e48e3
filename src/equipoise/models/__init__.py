"""The models by name, and their settings as in ``config.json``."""

__all__ = ["MODELS", "Classifier", "build", "house"]

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from equipoise.errors import UserError, nearest, short
from equipoise.models.core import Classifier
from equipoise.models.resnet import PreActResNet, ResNet, WideResNet
from equipoise.models.small_cnn import SmallCNN

MODELS: dict[str, tuple[Callable[..., Classifier], str]] = {
    "small-cnn": (SmallCNN, "two convolutions, two linear layers; for MNIST and a laptop"),
    "resnet-18": (ResNet, "ResNet-18 for small images, the paper's network"),
    "preact-resnet-18": (PreActResNet, "PreActResNet-18 for small images"),
    "wrn-28-10": (partial(WideResNet, depth=28), "WideResNet-28-10"),
    "wrn-34-10": (partial(WideResNet, depth=34), "WideResNet-34-10"),
}

SMALLEST, LARGEST = 8, 512
MOST_CHANNELS, MOST_CLASSES, WIDEST = 64, 100_000, 64
SETTINGS = ("channels", "size", "classes", "width", "mean", "std")
DEFAULT_CHANNELS = {name: 1 if name == "small-cnn" else 3 for name in MODELS}


def build(name: str, settings: Mapping[str, Any]) -> Classifier:
    """Return a new model.

    Arguments:
        name: A name of :data:`MODELS`.
        settings: ``channels``, ``size``, ``classes``, ``width``, ``mean`` and ``std``.

    Raises:
        UserError: If the name is unknown or the settings do not fit.
    """
    if name not in MODELS:
        raise UserError(nearest(str(name), MODELS, "model"))
    if unknown := [key for key in settings if key not in SETTINGS]:
        raise UserError("; ".join(nearest(key, SETTINGS, "setting of a model") for key in unknown))
    size = settings.get("size", (32, 32))
    whole = isinstance(size, list | tuple) and all(type(side) is int for side in size)
    if not whole or len(size) != 2 or not SMALLEST <= min(size) <= max(size) <= LARGEST:
        raise UserError(
            f"images must have {SMALLEST} to {LARGEST} pixels a side, got {short(size)}"
        )
    width = settings.get("width", 1)
    if not _is_number(width) or not 0 < width <= WIDEST:
        raise UserError(f"width must be positive and at most {WIDEST}, got {short(width)}")
    channels = settings.get("channels", DEFAULT_CHANNELS.get(name, 3))
    for key, count, most in (
        ("channels", channels, MOST_CHANNELS),
        ("classes", settings.get("classes", 10), MOST_CLASSES),
    ):
        if type(count) is not int or not 1 <= count <= most:
            raise UserError(f"{key} must be whole and in 1..{most}, got {short(count)}")
    moments = {key: settings.get(key, (0.5,) * channels) for key in ("mean", "std")}
    for key, values in moments.items():
        fits = isinstance(values, list | tuple) and len(values) == channels
        if not fits or not all(map(_is_number, values)):
            raise UserError(
                f"{key} must have a number for each of {channels} channels, got {short(values)}"
            )
    return MODELS[name][0](**{**settings, **moments, "channels": channels, "size": tuple(size)})


def house(name: str) -> bool:
    """Return whether a model belongs to the project, rather than to a file of the user."""
    make = MODELS[name][0] if name in MODELS else object
    return getattr(make, "func", make).__module__.startswith(f"{__name__}.")


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -math.inf < value < math.inf
