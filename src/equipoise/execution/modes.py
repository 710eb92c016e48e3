"""A model, and the state of torch around it, in another mode for a while."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

Network = Callable[[Tensor], Tensor]
"""From inputs of shape (B, ...) to logits."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module of a model in eval mode, and back in the mode it was in."""
    modes = [module for module in model.modules() if module.training]
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module in modes:
            module.training = True


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Let no parameter of some models require a gradient, and restore those that did."""
    wanted = [
        parameter
        for model in models
        for parameter in model.parameters()
        if parameter.requires_grad and not parameter.is_inference()
    ]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Give the buffers of a model their values back, which layers in training mode change."""
    dense = [b for b in model.buffers() if b.layout == torch.strided and not b.is_inference()]
    before = [(buffer, buffer.clone()) for buffer in dense]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def outside_inference() -> AbstractContextManager[object]:
    """Leave ``torch.inference_mode``, in which nothing can be differentiated, for a while."""
    if torch.is_inference_mode_enabled():
        return torch.inference_mode(False)
    return nullcontext()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random state, which a random model draws from, and restore it after."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
