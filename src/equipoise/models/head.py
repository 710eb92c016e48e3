"""The head of a classifier: the last layers, which make the logits; found by what they do.

A layer counts as a head if it is linear, or a convolution of 1x1 pixels, has as many outputs as
the model has logits, and each of its outputs changes its own logit alone. So it is found under any
name, before any pooling, and there may be several whose logits are averaged.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from equipoise.errors import UserError, one_line
from equipoise.execution.outputs import ask
from equipoise.execution.passes import evaluating, frozen, restored

REMEDY = "let the function return a model with as many outputs as there are classes"


def logits_of(network: nn.Module, x: Tensor, name: str) -> Tensor:
    """Return the logits of a model for a few images.

    Arguments:
        network: The model.
        x: Images, with shape (B, C, H, W).
        name: The model in messages.

    Raises:
        UserError: If the model cannot be run on the images or its output has no logits.
    """
    try:
        with evaluating(network), restored(network):
            logits = ask(network, x)
    except UserError:
        raise
    except Exception as error:
        shape = " x ".join(map(str, x.shape[1:]))
        raise UserError(
            f"{name} cannot be run on images of {shape} (channels, height, width): "
            f"{one_line(error, 200)}{_remedy(network)}"
        ) from error
    if logits.ndim != 2 or len(logits) != len(x):
        raise UserError(
            f"{name}: expected logits of shape ({len(x)}, K) for {len(x)} images, got "
            f"{tuple(logits.shape)}"
        )
    return logits


def check_trainable(network: nn.Module, x: Tensor, name: str) -> None:
    """Run a model once as in training, and leave it as it was, in eval mode.

    Arguments:
        network: The model.
        x: Two images, with shape (2, C, H, W).
        name: The model in messages.

    Raises:
        UserError: If it fails in training mode, or none of its weights can be trained.
    """
    try:
        with restored(network):
            logits = ask(network.train(), x)
    except Exception as error:
        raise UserError(f"{name} fails in training mode: {one_line(error, 200)}") from error
    finally:
        network.eval()
    if not logits.requires_grad:
        raise UserError(f"{name} has no weight that can be trained: no gradient reaches any")


def _remedy(network: nn.Module) -> str:
    """Return why a model may have failed, as the end of a sentence: arithmetic or size."""
    kinds = {weight.dtype for weight in network.parameters() if weight.is_floating_point()}
    if others := [str(kind).removeprefix("torch.") for kind in kinds - {torch.float32}]:
        return f"; its weights are {', '.join(others)}: return it as model.float()"
    owners = (network, getattr(network, "config", None))
    sides = [getattr(owner, "image_size", None) for owner in owners if owner is not None]
    side = next((side for side in sides if isinstance(side, int)), None)
    return f"; it is made for {side} x {side} pixels: size={side}" if side else ""


def heads(network: nn.Module, x: Tensor, name: str) -> list[str]:
    """Return the names of the layers that make the logits, in the order in which they run.

    Arguments:
        network: The model.
        x: Two or more images, with shape (B, C, H, W).
        name: The model in messages.
    """
    layers = {module: path for path, module in network.named_modules() if _may_be_head(module)}
    seen: dict[nn.Module, list[Tensor]] = {}

    def note(module: nn.Module, given: object, out: object) -> None:
        if isinstance(out, Tensor) and out.requires_grad:
            seen.setdefault(module, []).append(out)

    hooks = [layer.register_forward_hook(note) for layer in layers]
    try:
        with torch.enable_grad(), frozen(network):
            logits = logits_of(network, x.detach().requires_grad_(True), name)
    finally:
        for hook in hooks:
            hook.remove()
    classes = logits.shape[1]
    fitting = {module: outs for module, outs in seen.items() if _outputs(module) == classes}
    found = [
        layers[module]
        for module, outs in fitting.items()
        if _apart(logits, outs, 1 if isinstance(module, nn.Conv2d) else -1)
    ]
    return found[-1:] if classes == 1 else found


def _may_be_head(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def _outputs(module: nn.Module) -> int:
    return module.out_channels if isinstance(module, nn.Conv2d) else int(module.out_features)  # type: ignore[arg-type]


def _apart(logits: Tensor, outs: Sequence[Tensor], axis: int) -> bool:
    """Return whether each output of a layer, along an axis, changes its own logit alone.

    Differences of two logits are looked at, which a log-softmax at the end leaves as they are.
    """
    last, reached = logits.shape[1] - 1, False
    for pair in {(0, last), (0, min(1, last)), (max(last - 1, 0), last)}:
        difference = logits[:, pair[0]] - (logits[:, pair[1]] if last else 0)
        grads = torch.autograd.grad(
            difference.sum(), outs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        for grad in grads:
            size = grad.movedim(axis, 0).flatten(1).abs().amax(1)
            inside = size[list(pair)]
            reached |= bool((inside > 0).any())
            others = size.index_fill(0, torch.tensor(pair, device=size.device), 0.0)
            if bool((others > 1e-6 * inside.max()).any()):
                return False
    return reached


def replace(network: nn.Module, names: Sequence[str], classes: int) -> list[nn.Module]:
    """Replace layers by new ones with so many outputs; return the former ones.

    Arguments:
        network: The model, changed in place.
        names: The names of the layers.
        classes: The number of outputs.

    Raises:
        UserError: If the model has no such layers.
    """
    try:
        former = [network.get_submodule(name) for name in names]
    except AttributeError as error:
        raise UserError(f"this is not the model that had its head replaced: {error}") from None
    for old in former:
        _put(network, old, _resized(old, classes))
    _note(network, classes)
    return former


def restore(network: nn.Module, names: Sequence[str], former: Sequence[nn.Module]) -> None:
    """Put former layers back in the place of those that replaced them."""
    for name, old in zip(names, former, strict=True):
        _put(network, network.get_submodule(name), old)
        _note(network, _outputs(old))


def _put(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for module in network.modules():
        for key, child in module._modules.items():
            if child is old:
                module._modules[key] = new


def _resized(old: nn.Module, classes: int) -> nn.Module:
    """Return a new layer like a head, with other outputs, and weights as torch draws them."""
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        how = {key: getattr(old, key) for key in ("stride", "padding", "padding_mode")}
        new = nn.Conv2d(old.in_channels, classes, 1, bias=old.bias is not None, **how)
    elif isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias=old.bias is not None)
    else:
        raise UserError(f"expected a linear layer or a convolution, got {type(old).__name__}")
    held = next(old.parameters())
    return new.to(held.device, held.dtype).train(old.training)


def _note(network: nn.Module, classes: int) -> None:
    """Write the number of classes where models of timm and transformers keep it."""
    for owner in (network, getattr(network, "config", None)):
        for key in ("num_classes", "num_labels"):
            if owner is not None and isinstance(getattr(owner, key, None), int):
                setattr(owner, key, classes)


def fit(network: nn.Module, x: Tensor, classes: int, name: str) -> tuple[list[str], str]:
    """Give a model as many outputs as there are classes.

    Arguments:
        network: The model, changed in place.
        x: Two or more images, with shape (B, C, H, W).
        classes: The number of classes.
        name: The model in messages.

    Returns:
        The names of the layers that were replaced, and a line about it; both empty if none was.

    Raises:
        UserError: If the model has other outputs and its head cannot be found.
    """
    outputs = logits_of(network, x, name).shape[1]
    if outputs == classes:
        return [], ""
    names = heads(network, x, name)
    if names:
        former = replace(network, names, classes)
        with suppress(UserError):
            if logits_of(network, x, name).shape[1] == classes:
                new, old = _shown(network.get_submodule(names[0])), _shown(former[0])
                return names, (
                    f"the head ({', '.join(names)}) is new and untrained: {new} in place of "
                    f"{old}, because there are {classes} classes"
                )
        restore(network, names, former)
    raise UserError(
        f"{name} has {outputs} outputs for {classes} classes, and no layer was found that could "
        f"be replaced: {REMEDY}"
    )


def _shown(layer: nn.Module) -> str:
    name = type(layer).__name__
    inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
    return f"{name}({inputs}, {_outputs(layer)})"
