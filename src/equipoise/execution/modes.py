"""A model in eval mode for a while."""

__all__ = ["evaluating"]

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
