"""The models by name, and how a model is described in ``config.json``."""

__all__ = ["MODELS", "Classifier", "build", "house"]

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from equipoise.errors import UserError, nearest
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

SMALLEST, LARGEST = 8, 224
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
        raise UserError(nearest(name, MODELS, "model"))
    size = tuple(settings.get("size", (32, 32)))
    if not all(SMALLEST <= side <= LARGEST for side in size):
        raise UserError(f"images must have {SMALLEST} to {LARGEST} pixels a side, got {size}")
    if not settings.get("width", 1) > 0:
        raise UserError(f"width must be positive, got {settings['width']}")
    strangers = [
        nearest(key, SETTINGS, "setting of a model") for key in settings if key not in SETTINGS
    ]
    if strangers:
        raise UserError("; ".join(strangers))
    channels = settings.get("channels", DEFAULT_CHANNELS.get(name, 3))
    for key in ("mean", "std"):
        values = settings.get(key, (0.5,) * channels)
        if len(values) != channels:
            raise UserError(
                f"{key} must have a value for each of {channels} channels, got {values}"
            )
        settings = {**settings, key: values}
    return MODELS[name][0](**{**settings, "channels": channels, "size": size})


def house(name: str) -> bool:
    """Tell whether the model of a name is one of the project's own, and not one that was added."""
    make = MODELS[name][0]
    return getattr(make, "func", make).__module__.startswith(f"{__name__}.")
