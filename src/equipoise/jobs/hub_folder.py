"""A folder for Hugging Face: a model, how its inputs are prepared, and its card."""

import json
from collections.abc import Mapping
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from equipoise.card.model_card import readme
from equipoise.card.schema import ModelCard
from equipoise.errors import RunError
from equipoise.models import exported
from equipoise.models.core import Normalize
from equipoise.models.normalisation import Constants
from equipoise.models.origin import Logits
from equipoise.store import files

WEIGHTS, GRAPH, ABOUT = "model.safetensors", "model.pt2", "equipoise.json"
PROCESSOR = "preprocessor_config.json"
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def folder(
    model: nn.Module, about: Mapping[str, Any], card: ModelCard | None, x: Tensor, work: Path
) -> exported.Serving:
    """Write a model of any kind, as a graph and as weights; return the model in the folder.

    Arguments:
        model: The model.
        about: Its description.
        card: The card of its evaluations, if there are any.
        x: At least two images, with shape (B, C, H, W).
        work: The folder.
    """
    inner, front = exported.without_front(model)
    weights = exported.weights(inner, about)
    graph = exported.pt2(exported.graph_of(model, x[:2]), about)
    files.write(work / WEIGHTS, weights)
    files.write(work / GRAPH, graph)
    _describe(about, readme(about, card), work)
    served, again = exported.of_pt2(graph), exported.of_weights(weights, inner, front)

    def both(images: Tensor) -> Tensor:
        logits = served(images)
        if not logits.argmax(1).equal(again(images).argmax(1)):
            raise RunError("the weights of the export give other answers than its graph")
        return logits

    return both


def is_of_transformers(model: nn.Module) -> bool:
    """Return whether a model is one of transformers, which has a form of its own there."""
    names = {f"{kind.__module__}.{kind.__name__}" for kind in type(model).__mro__}
    return "transformers.modeling_utils.PreTrainedModel" in names


def of_transformers(
    model: nn.Module, about: Mapping[str, Any], card: ModelCard | None, work: Path
) -> exported.Serving:
    """Write a model of transformers as its library does; return the model in the folder.

    The arguments are those of :func:`folder`.
    """
    inner, front = exported.without_front(model)
    network: Any = deepcopy(inner)
    names = dict(enumerate(about["classes"]))
    network.config.id2label = names
    network.config.label2id = {name: label for label, name in names.items()}
    network.save_pretrained(work)
    files.write(work / PROCESSOR, json.dumps(processor(about["inputs"], front), indent=2) + "\n")
    _describe(about, readme(about, card, library="transformers"), work)
    kind: Any = import_module("transformers").AutoModelForImageClassification
    again = kind.from_pretrained(str(work), local_files_only=True, trust_remote_code=False)
    return Logits(again, front and Normalize(*front)).eval()


def processor(inputs: Mapping[str, Any], front: Constants | None) -> Mapping[str, Any]:
    """Return how images are prepared, in the words of transformers.

    Where pictures were padded, or their size is not known to have been changed, nothing is
    resized.
    """
    channels, height, width = inputs["shape"]
    resize = inputs.get("resize", "pad")
    side = {"height": height, "width": width}
    about: dict[str, Any] = {
        "image_processor_type": "CLIPImageProcessor" if resize == "crop" else "ViTImageProcessor",
        "do_convert_rgb": channels == 3,
        "do_resize": resize != "pad",
        "size": {"shortest_edge": min(height, width)} if resize == "crop" else side,
        "resample": _FILTERS.get(str(inputs.get("interpolation")), _FILTERS["bilinear"]),
        "do_rescale": True,
        "rescale_factor": 1 / inputs["scale"],
        "do_normalize": front is not None,
    }
    if resize == "crop":
        about |= {"do_center_crop": True, "crop_size": side}
    if front is not None:
        about |= {"image_mean": list(front.mean), "image_std": list(front.std)}
    return about


def _describe(about: Mapping[str, Any], text: str, work: Path) -> None:
    files.write(work / ABOUT, json.dumps(about, indent=2) + "\n")
    files.write(work / "README.md", text)
