"""Models of timm, transformers and torchvision, by name; only their own code is run.

``timm:NAME`` and ``torchvision:NAME`` are names of these libraries; ``hf:NAME`` is a model of
transformers: a name of the Hugging Face hub, or a folder of ``save_pretrained``. Weights are read
from the folder or the libraries' caches. :func:`download` alone uses the network.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
from torch import nn

from equipoise.errors import UserError, one_line
from equipoise.models.normalisation import Constants

PACKAGES = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision"}
"""The libraries by the text before the colon, and the packages that have them."""

RESCALED = 1 / 255  # what transformers multiplies bytes by, where it scales them to [0, 1]
_UNSAFE = ("auto_map", "attn_implementation", "experts_implementation", "quantization_config")


class Made(NamedTuple):
    """A model of a library.

    Arguments:
        network: The model, with its own head.
        constants: The normalisation that its library applies to images; None: unknown.
        config: What builds it again, without its weights, as plain values.
    """

    network: nn.Module
    constants: Constants | None
    config: dict[str, Any]


def library_of(model: str) -> str:
    """Return the library that a text like ``timm:resnet18`` names; empty: none."""
    name, colon, rest = model.partition(":")
    return name if colon and rest and name in PACKAGES else ""


def package_versions(model: str) -> dict[str, str]:
    """Return the version of the package that a model comes from; empty: it is not installed."""
    name, _, _ = model.partition(":")
    package = PACKAGES.get(name, name.partition(".")[0])
    try:
        return {package: version(package)}
    except PackageNotFoundError:
        return {}


def make(model: str, shape: tuple[int, int, int], *, pretrained: bool) -> Made:
    """Return a model of a library.

    Arguments:
        model: ``timm:NAME``, ``hf:NAME`` or ``torchvision:NAME``.
        shape: That of an image, (C, H, W).
        pretrained: Whether it gets the weights of its library, from the cache.

    Raises:
        UserError: If the package or the weights are not here, or there is no such model.
    """
    library, name = library_of(model), model.partition(":")[2]
    package = _package(library)
    with _offline(), _explained(model, pretrained):
        if library == "hf":
            return _of_transformers(package, _place(name), pretrained)
        if library == "timm":
            return _of_timm(package, name, shape, pretrained)
        return _of_torchvision(package, name, pretrained)


def again(model: str, config: Mapping[str, Any]) -> nn.Module:
    """Return the same model without weights: see :class:`Made`."""
    library, name = library_of(model), model.partition(":")[2]
    package = _package(library)
    with _offline(), _explained(model, False):
        network: nn.Module
        if library == "hf":
            kept = {key: value for key, value in config.items() if _is_safe(key)}
            config = package.AutoConfig.for_model(kept.pop("model_type", name), **kept)
            network = package.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False
            )
        elif library == "timm":
            network = package.create_model(name, pretrained=False, **config)
        else:
            network = package.models.get_model(name, weights=None)
    return network


def download(model: str) -> None:
    """Get the weights of a library's model into the library's cache, over the network.

    Raises:
        UserError: If it is no model of a library, or cannot be downloaded.
    """
    library, name = library_of(model), model.partition(":")[2]
    if not library:
        raise UserError(f"--download is for timm:NAME, hf:NAME and torchvision:NAME, not {model}")
    package = _package(library)
    try:
        if library == "hf":
            package.AutoModelForImageClassification.from_pretrained(name, trust_remote_code=False)
            with _quiet():
                package.AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        elif library == "timm":
            package.create_model(name, pretrained=True)
        else:
            weights = package.models.get_model_weights(name).DEFAULT
            package.models.get_model(name, weights=weights)
    except Exception as error:
        raise UserError(f"{model} cannot be downloaded: {one_line(error)}") from None


def _package(library: str) -> Any:
    package = PACKAGES[library]
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"{library}:NAME needs {package}: pip install 'equipoise[{library}]' "
            f"({one_line(error, 150)})"
        ) from None
    except Exception as error:  # torchvision of another build than torch
        raise UserError(f"{package} cannot be imported here: {one_line(error, 200)}") from None


@contextmanager
def _offline() -> Iterator[None]:
    """Keep the libraries from the network."""
    held, before = os.environ.get("HF_HUB_OFFLINE"), None
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = None
    try:
        constants = import_module("huggingface_hub.constants")
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True  # type: ignore[attr-defined]
    except ImportError:
        pass
    try:
        yield
    finally:
        if constants is not None:
            constants.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]
        if held is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = held


@contextmanager
def _explained(model: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        remedy = f"; {_remedy(model)}" if pretrained else ""
        raise UserError(f"{model} cannot be made: {one_line(error, 200)}{remedy}") from None


def _remedy(model: str) -> str:
    folder = Path(model.partition(":")[2]).expanduser()
    fetch = "" if folder.is_dir() else "if its weights are not here, --download gets them; "
    return f"{fetch}--weights FILE gives others, and weights=random new ones"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling what is said here in other words."""
    logging = import_module("transformers").logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _place(name: str) -> str:
    """Return a name of the hub, or the path of a folder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if name.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {name}")
    return name


def _is_safe(key: str) -> bool:
    """Return whether a setting of transformers never loads code."""
    return not key.startswith("_") and key not in _UNSAFE


def _of_transformers(package: Any, name: str, pretrained: bool) -> Made:
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet():
        config = package.AutoConfig.from_pretrained(name, **how)
        kind = package.AutoModelForImageClassification
        if pretrained:
            network = kind.from_pretrained(name, dtype=torch.float32, **how)
        else:
            network = kind.from_config(config, trust_remote_code=False)
        constants = _of_processor(name)
    written = {key: value for key, value in config.to_diff_dict().items() if _is_safe(key)}
    return Made(network, constants, written | {"model_type": config.model_type})


def _of_processor(name: str) -> Constants | None:
    """Return the normalisation of transformers' file on how images are prepared."""
    kind = import_module("transformers.image_processing_base").ImageProcessingMixin
    try:
        given, _ = kind.get_image_processor_dict(name, local_files_only=True)
    except Exception:  # there is no such file
        return None
    scaled = given.get("do_rescale", True) and given.get("rescale_factor", RESCALED)
    usual = isinstance(scaled, float) and abs(scaled - RESCALED) < 1e-6
    if not (usual and given.get("do_normalize", True)):
        return None
    try:
        return Constants.of({"mean": given["image_mean"], "std": given["image_std"]})
    except (KeyError, UserError):
        return None


def _of_timm(package: Any, name: str, shape: tuple[int, int, int], pretrained: bool) -> Made:
    about = package.get_pretrained_cfg(name) if package.is_model(name) else None
    if about is None:
        raise UserError(f"timm has no model {name!r}; timm.list_models() names them")
    config: dict[str, Any] = {} if shape[0] == 3 else {"in_chans": shape[0]}
    if getattr(about, "fixed_input_size", False) and tuple(about.input_size[1:]) != shape[1:]:
        config["img_size"] = list(shape[1:])
    if pretrained:
        _refuse_absent(getattr(about, "url", "") or "", bool(getattr(about, "hf_hub_id", None)))
    network = package.create_model(name, pretrained=pretrained, **config)
    constants = Constants(tuple(about.mean), tuple(about.std)) if shape[0] == 3 else None
    return Made(network, constants, config)


def _of_torchvision(package: Any, name: str, pretrained: bool) -> Made:
    weights = package.models.get_model_weights(name).DEFAULT
    if pretrained:
        _refuse_absent(weights.url)
    network = package.models.get_model(name, weights=weights if pretrained else None)
    preset = weights.transforms()
    constants = Constants(tuple(preset.mean), tuple(preset.std))
    return Made(network, constants, {})


def _refuse_absent(url: str, hub: bool = False) -> None:
    """Raise an error if a file of weights is not in torch's cache; the hub's has its own."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not hub and not (url and file.is_file()):
        raise FileNotFoundError(f"there is no {file}")
