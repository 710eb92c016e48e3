"""Models of timm, transformers and torchvision, by name; only their own code is run.

``timm:NAME`` and ``torchvision:NAME`` are names of these libraries; ``hf:NAME`` is a model of
transformers: a name of the Hugging Face hub, or a folder of ``save_pretrained``. Weights are read
from the folder or the libraries' caches. :func:`download` alone uses the network.
"""

import io
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from equipoise.errors import UserError, one_line
from equipoise.models.normalisation import Constants

PACKAGES = {"timm": "timm", "hf": "transformers", "torchvision": "torchvision"}
"""The libraries by the text before the colon, and the packages that have them."""

RESCALED = 1 / 255  # what transformers multiplies bytes by, where it scales them to [0, 1]
_LEFT_OUT: tuple[str, ...] = (
    "auto_map",
    "attn_implementation",
    "experts_implementation",
    "quantization_config",
)
_LEFT_OUT += ("id2label", "label2id")  # num_labels is enough


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
            safe = {key: value for key, value in config.items() if _is_safe(key)}
            config = package.AutoConfig.for_model(safe.pop("model_type", name), **safe)
            network = package.AutoModelForImageClassification.from_config(
                config, trust_remote_code=False
            )
        elif library == "timm":
            kept = {key: config[key] for key in ("in_chans", "img_size") if key in config}
            network = package.create_model(name, pretrained=False, **kept)
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
            _of_processor(name, offline=False)
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
    """Keep the libraries from the network: that of the hub, and torch's own downloads."""

    def refuse(url: str, *rest: Any, **more: Any) -> None:
        raise FileNotFoundError(f"there is no copy of {url}")

    with ExitStack() as stack:
        stack.enter_context(redirect_stderr(io.StringIO()))  # it says that it downloads
        stack.enter_context(_swapped(torch.hub, "download_url_to_file", refuse))
        if find_spec("huggingface_hub") is not None:
            constants = import_module("huggingface_hub.constants")
            stack.enter_context(_swapped(constants, "HF_HUB_OFFLINE", True))
        yield


@contextmanager
def _swapped(owner: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _explained(model: str, pretrained: bool) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(
            f"the weights of {model} are not on this computer: --download gets them, --weights "
            "FILE gives others, and weights=random new ones"
            if pretrained
            else f"{model} cannot be made: {one_line(error, 200)}"
        ) from error
    except Exception as error:
        raise UserError(f"{model} cannot be made: {one_line(error, 200)}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from telling what is said here in other words."""
    logging = import_module("transformers").logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _place(name: str) -> str:
    """Return a name of the hub, or the path of a folder."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder.resolve())
    if name.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {name}")
    return name


def _is_safe(key: str) -> bool:
    """Return whether a setting of transformers is needed, and never loads code."""
    return not key.startswith("_") and key not in _LEFT_OUT


def _of_transformers(package: Any, name: str, pretrained: bool) -> Made:
    how: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _quiet():
        try:
            config = package.AutoConfig.from_pretrained(name, **how)
        except OSError as error:
            where = (
                "" if Path(name).is_dir() else " in the cache of transformers; --download gets it"
            )
            raise UserError(f"hf:{name}: there is no such model{where}") from error
        kind = package.AutoModelForImageClassification
        if pretrained:
            network = kind.from_pretrained(name, dtype=torch.float32, **how)
        else:
            network = kind.from_config(config, trust_remote_code=False)
        constants = _of_processor(name)
    written = {key: value for key, value in config.to_diff_dict().items() if _is_safe(key)}
    written |= {"model_type": config.model_type, "num_labels": config.num_labels}
    return Made(network, constants, written)


def _of_processor(name: str, *, offline: bool = True) -> Constants | None:
    """Return the normalisation of transformers' file on how images are prepared."""
    kind = import_module("transformers.image_processing_base").ImageProcessingMixin
    try:
        given, _ = kind.get_image_processor_dict(name, local_files_only=offline)
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
    network = package.create_model(name, pretrained=pretrained, **config)
    constants = Constants(tuple(about.mean), tuple(about.std)) if shape[0] == 3 else None
    return Made(network, constants, config)


def _of_torchvision(package: Any, name: str, pretrained: bool) -> Made:
    if name not in package.models.list_models(module=package.models):
        raise UserError(f"torchvision has no classifier {name!r}; models.list_models() names them")
    weights = package.models.get_model_weights(name).DEFAULT
    network = package.models.get_model(name, weights=weights if pretrained else None)
    preset = weights.transforms()
    return Made(network, Constants(tuple(preset.mean), tuple(preset.std)), {})
