"""Train image classifiers for accuracy on clean and on adversarial inputs, and measure both.

Example:
    >>> import equipoise as eq
    >>> threat = eq.Linf(8 / 255)
    >>> attack = eq.attacks.PGD(steps=20)

Heavy modules are imported when they are first used.
"""

__all__ = [
    "L1",
    "L2",
    "Front",
    "Linf",
    "Merge",
    "RunError",
    "Threat",
    "UserError",
    "__version__",
    "attacks",
    "evaluate",
    "export",
    "fast",
    "harden",
    "load",
    "scan",
    "train",
]

from importlib import import_module
from typing import TYPE_CHECKING, Any

from equipoise.errors import RunError, UserError
from equipoise.version import __version__

if TYPE_CHECKING:
    from equipoise import attacks
    from equipoise.evaluation.evaluate import evaluate
    from equipoise.evaluation.scan import scan
    from equipoise.execution import fast
    from equipoise.fronts.front import Front
    from equipoise.jobs.export import export
    from equipoise.jobs.from_python import harden
    from equipoise.jobs.train import train
    from equipoise.store.runs import load
    from equipoise.threat import L1, L2, Linf, Threat
    from equipoise.training.merge import Merge

_HOMES = {
    "Front": "fronts.front",
    "L1": "threat",
    "L2": "threat",
    "Linf": "threat",
    "Merge": "training.merge",
    "Threat": "threat",
    "evaluate": "evaluation",
    "export": "jobs.export",
    "fast": "execution",
    "harden": "jobs.from_python",
    "load": "store.runs",
    "scan": "evaluation.scan",
    "train": "jobs.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "attacks":
        return import_module("equipoise.attacks")
    if name not in _HOMES:
        raise AttributeError(f"module 'equipoise' has no attribute {name!r}")
    return getattr(import_module(f"equipoise.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
