"""Objectives: what one learner minimises, its attack and its settings included.

Each module has one objective; it is imported when it is first named, as ``objectives.trades``.
"""

__all__ = ["Batch", "Labels", "Objective", "Robust", "TwoSided"]

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import Robust, TwoSided


def __getattr__(name: str) -> ModuleType:
    """Import a module of the package when it is first named."""
    path = f"{__name__}.{name}"
    if name.startswith("_") or find_spec(path) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(path)
