"""How models run in attacks and training: fast, while verdicts come from the exact model."""

from equipoise.execution.compiled import Step
from equipoise.execution.form import Fast, as_is, fast
from equipoise.execution.outputs import as_module, ask, own, said
from equipoise.execution.passes import (
    Network,
    NoGradient,
    evaluating,
    frozen,
    gradient,
    outside_inference,
    restored,
    seeded,
)
from equipoise.execution.policy import LAYOUTS, PRECISIONS, Execution, Layout, Precision

__all__ = [
    "LAYOUTS",
    "PRECISIONS",
    "Execution",
    "Fast",
    "Layout",
    "Network",
    "NoGradient",
    "Precision",
    "Step",
    "as_is",
    "as_module",
    "ask",
    "evaluating",
    "fast",
    "frozen",
    "gradient",
    "outside_inference",
    "own",
    "restored",
    "said",
    "seeded",
]
