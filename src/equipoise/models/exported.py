"""A model as a file that runs without equipoise: ONNX, ``torch.export``, or weights alone.

Each file holds a description as JSON under the name :data:`ABOUT`, and is the same to the bit for
the same model. Paths of this computer are left out.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from equipoise.errors import RunError, UserError, one_line
from equipoise.models.core import Normalize
from equipoise.models.normalisation import Constants
from equipoise.models.origin import Logits

ABOUT = "equipoise"
"""The key of the description in a file; in one of ``torch.export`` with the ending ``.json``."""

INPUT, OUTPUT = "images", "logits"
LARGEST = 2_000_000_000  # bytes of weights: an ONNX file holds less than 2 GiB
HOLDERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
}
"""Classes around a model, and the part of names that each adds."""

Serving = Callable[[Tensor], Tensor]
"""From images, with shape (B, C, H, W), to logits, with shape (B, K)."""


def graph_of(model: nn.Module, x: Tensor) -> ExportedProgram:
    """Return the graph of a model in eval mode, for any number of images.

    Arguments:
        model: The model.
        x: At least two images, with shape (B, C, H, W).

    Raises:
        RunError: If the model has no such graph.
    """
    shapes = ({0: Dim("batch")},)
    try:
        with _quiet(), torch.no_grad():
            graph = torch.export.export(Logits(model).eval(), (x,), dynamic_shapes=shapes)
    except Exception as error:  # of whatever kind, from the model or from torch
        fixed = "batch" in str(error) and "Constraints violated" in str(error)
        why = "its forward pass fixes the number of images" if fixed else one_line(error)
        raise RunError(
            f"torch.export cannot trace the model: {why}; --to state-dict takes any model"
        ) from None
    for module in graph.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)  # has paths of this computer
    return graph


def pt2(graph: ExportedProgram, about: Mapping[str, Any]) -> bytes:
    """Return a file of ``torch.export`` with a description."""
    file = io.BytesIO()
    torch.export.save(graph, file, extra_files={f"{ABOUT}.json": json.dumps(about)})
    return file.getvalue()


def of_pt2(content: bytes) -> Serving:
    """Return the model in a file of ``torch.export``."""
    loaded: Serving = torch.export.load(io.BytesIO(content)).module()
    return loaded


def onnx(graph: ExportedProgram, x: Tensor, about: Mapping[str, Any]) -> bytes:
    """Return an ONNX file with a description.

    Arguments:
        graph: The graph of a model.
        x: The images it was traced with.
        about: The description.

    Raises:
        UserError: If a package is missing.
        RunError: If the graph has no form in ONNX.
    """
    needs_onnx()
    size = sum(value.nbytes for value in graph.state_dict.values())
    if size > LARGEST:
        raise RunError(
            f"an ONNX file holds less than 2 GiB, and these weights are {size / 2**30:.1f} GiB; "
            "--to torch takes them"
        )
    try:
        with _quiet():
            program = torch.onnx.export(
                graph,
                (x,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: "batch"},),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:
        raise RunError(
            f"torch.onnx cannot convert the model: {one_line(error)}; --to torch takes it"
        ) from None
    assert program is not None
    _without_traces(program.model.graph)
    for function in program.model.functions.values():
        _without_traces(function)
    program.model.metadata_props[ABOUT] = json.dumps(about)
    content: bytes = program.model_proto.SerializeToString()
    return content


def of_onnx(content: bytes) -> Serving:
    """Return the model in an ONNX file, run by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def needs_onnx() -> None:
    """Raise a UserError if a package that ONNX needs is missing."""
    if not all(map(find_spec, ("onnx", "onnxruntime", "onnxscript"))):
        raise UserError("ONNX needs three packages more: pip install 'equipoise[export]'")


def without_front(model: nn.Module) -> tuple[nn.Module, Constants | None]:
    """Return a model without what stands around it, and the normalisation that stood in front."""
    constants = None
    while True:
        inner, first = _inside(model)
        if inner is None or (first is not None and constants is not None):
            return model, constants
        if first is not None:
            constants = Constants(*(tuple(v.flatten().tolist()) for v in (first.mean, first.std)))
        model = inner


def _inside(model: nn.Module) -> tuple[nn.Module | None, Normalize | None]:
    """Return the model that another one only stands around, and its normalisation, if any."""
    if type(model).__name__ in HOLDERS:
        return getattr(model, HOLDERS[type(model).__name__]), None
    if isinstance(model, Logits):
        return model.network, model.normalize if isinstance(model.normalize, Normalize) else None
    if type(model) is nn.Sequential and len(model) == 2 and type(model[0]) is Normalize:
        return model[1], model[0]
    return None, None


def weights(model: nn.Module, about: Mapping[str, Any]) -> bytes:
    """Return the weights as safetensors, under the names that the model's own class gives them."""
    state = {_own_name(model, key): value for key, value in _tensors(model).items()}
    tensors = {key: value.detach().clone().contiguous() for key, value in state.items()}
    return save(tensors, {"format": "pt", ABOUT: json.dumps(about)})


def of_weights(content: bytes, model: nn.Module, front: Constants | None = None) -> Serving:
    """Return a copy of a model with the weights of a file in the place of its own.

    Arguments:
        content: The file.
        model: The model.
        front: The normalisation to apply first; None: none.
    """
    copy, state = deepcopy(model), load(content)
    with torch.no_grad():
        for value in _tensors(copy).values():
            value.zero_()
    named = {key: state[_own_name(model, key)] for key in _tensors(copy)}
    copy.load_state_dict(named, strict=False)  # what is no tensor is not in a file
    return Logits(copy, front and Normalize(*front)).eval()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}


def _own_name(model: nn.Module, key: str) -> str:
    """Return the name of a tensor without the parts of classes around a module."""
    kept, module = [], model
    for part in key.split("."):
        if HOLDERS.get(type(module).__name__) != part:
            kept.append(part)
        module = getattr(module, part, nn.Identity())
    return ".".join(kept)


def _without_traces(nodes: Iterable[Any]) -> None:
    """Remove the places in Python code from the nodes of an ONNX graph."""
    for node in nodes:
        node.metadata_props.clear()
        node.doc_string = None
        for attribute in node.attributes.values():
            if attribute.type.name == "GRAPH":
                _without_traces(attribute.value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the remarks of torch on its own code and on packages that are not needed away."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
