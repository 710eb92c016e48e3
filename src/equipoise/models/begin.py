"""The model that a training starts from, with weights, normalisation and head."""

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from equipoise import plugins
from equipoise.models import head, library
from equipoise.models.checkpoint import read_state, unwrapped
from equipoise.models.core import Normalize
from equipoise.models.foreign import MUTE, Asked, load_weights, put_in_front, weights_of
from equipoise.models.normalisation import Constants
from equipoise.models.origin import RANDOM, Logits, Origin, Say, made


@contextmanager
def seeded(seed: int, devices: Sequence[int] = ()) -> Iterator[None]:
    """Seed the random numbers that models are made with: of torch, NumPy and Python itself.

    Arguments:
        seed: The seed.
        devices: The CUDA devices whose state is restored after.
    """
    before = np.random.get_state(), random.getstate()  # noqa: NPY002  # models draw from it
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before[0])  # noqa: NPY002
            random.setstate(before[1])


def begin(
    model: str,
    *,
    shape: tuple[int, int, int],
    classes: int,
    weights: str | None = None,
    normalise: Asked = None,
    given: nn.Module | None = None,
    say: Say = MUTE,
) -> tuple[nn.Module, Origin]:
    """Return the model that a training starts from, and its origin.

    Weights are loaded with the model's own head, which is replaced afterwards if the number of
    classes is another one.

    Arguments:
        model: The model, as in a recipe, but not one of :data:`equipoise.models.MODELS`.
        shape: That of an image, (C, H, W).
        classes: The number of classes.
        weights: A file of weights, or FILE:KEY; :data:`RANDOM`: new ones; None: those of the
            library, or those that the function gives.
        normalise: As for :func:`equipoise.models.foreign.load_weights`; None also takes the
            normalisation that belongs to a library's weights.
        given: The model itself, which is copied; ``model`` is then its :func:`name_of`.
        say: Shows a line about each choice that was made.

    Raises:
        UserError: If model, weights, images and classes do not fit.
    """
    remarks: list[str] = []

    def tell(line: str) -> None:
        remarks.append(line)
        say(line)

    config, constants = {}, None
    if library.library_of(model):
        theirs = library.make(model, shape, pretrained=weights is None)
        network, config = theirs.network.eval(), theirs.config
        constants = None if weights == RANDOM else theirs.constants
    else:
        network = made(model, given)
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    head.logits_of(network, x, model)
    first: nn.Module | None = None
    if weights not in (None, RANDOM):
        first = load(network, str(weights), x, model, normalise, tell)
    elif isinstance(normalise, Constants):
        first = _front_of(put_in_front(network, normalise, shape, tell), network)
    if first is None:
        first = of_library(constants, normalise, shape, tell)
    heads, line = head.fit(network, x, classes, model)
    if line:
        tell(line)
    head.check_trainable(network, x, model)
    origin = Origin(
        model=model,
        classes=classes,
        heads=tuple(heads),
        normalise=_constants(first),
        config=config,
        source=plugins.source(model.partition(":")[0]) if given is None else None,
        packages=library.package_versions(model) if given is None else {},
        weights=described(weights),
        remarks=tuple(remarks),
    )
    return Logits(network, first), origin


def of_library(
    constants: Constants | None, normalise: Asked, shape: tuple[int, ...], say: Say
) -> nn.Module | None:
    """Return the normalisation of a library's model, unless another one or none is wanted."""
    if normalise is not None or constants is None or len(constants.mean) != shape[0]:
        return None
    say(
        f"the model's first layer is the normalisation by {constants}, that of its library; "
        "normalise=none leaves it out"
    )
    return Normalize(*constants)


def load(
    network: nn.Module, weights: str, x: Tensor, name: str, normalise: Asked, say: Say
) -> nn.Module | None:
    """Load a file of weights into a model; if its head has other outputs, all but the head.

    Arguments:
        network: The model, changed in place.
        weights: The file, or FILE:KEY.
        x: Two images, with shape (2, C, H, W).
        name: The model in messages.
        normalise: As for :func:`equipoise.models.foreign.load_weights`.
        say: Shows a line about each choice that was made.

    Returns:
        The normalisation that belongs in front of the model; None: none.
    """
    path, key = weights_of(weights)
    state = read_state(path, key, MUTE)
    names = head.heads(network, x, name)
    there = {n: _rows(state, n, network.get_submodule(n)) for n in names}
    outputs = {rows for rows in there.values() if rows}
    former: list[nn.Module] = []
    if len(outputs) == 1 and all(there.values()) and outputs != {_rows_of(network, names[0])}:
        former = head.replace(network, names, *outputs)
    loaded = load_weights(network, weights, normalise=normalise, shape=tuple(x.shape[1:]), say=say)
    if former:
        head.restore(network, names, former)
        say(
            f"the head ({', '.join(names)}) of {path} has {outputs.pop()} outputs and that of "
            f"the model {_rows_of(network, names[0])}: the model's own, untrained, is used"
        )
    return _front_of(loaded, network)


def _rows(state: Mapping[str, Tensor], name: str, layer: nn.Module) -> int:
    """Return the outputs of a layer in a file of weights; 0: it is not there, or is another."""
    ours = layer.get_parameter("weight").shape[1:]
    full = f"{name}.weight"
    found = {
        len(value)
        for key, value in zip(unwrapped(state), state.values(), strict=True)
        if (key == full or key.endswith(f".{full}")) and value.shape[1:] == ours
    }
    return found.pop() if len(found) == 1 else 0


def _rows_of(network: nn.Module, name: str) -> int:
    return len(network.get_parameter(f"{name}.weight"))


def _front_of(model: nn.Module, network: nn.Module) -> nn.Module | None:
    """Return the normalisation that was put in front of a network; None: none."""
    return None if model is network else model.get_submodule("0")


def _constants(first: nn.Module | None) -> Constants | None:
    if first is None:
        return None
    return Constants.of_tensors(first.get_buffer("mean"), first.get_buffer("std"))


def described(weights: str | None) -> dict[str, str] | None:
    """Return a file of weights, the key in it and its SHA-256, for a run folder."""
    if weights in (None, RANDOM):
        return None
    path, key = weights_of(str(weights))
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": str(path.absolute()), "key": key, "sha256": digest}
