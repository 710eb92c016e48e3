"""How models are run where they are searched and trained: quickly, while verdicts stay exact."""

from equipoise.execution.compiled import Network, Step
from equipoise.execution.form import Fast, fast
from equipoise.execution.modes import evaluating
from equipoise.execution.policy import LAYOUTS, PRECISIONS, Execution, Layout, Precision

__all__ = [
    "LAYOUTS",
    "PRECISIONS",
    "Execution",
    "Fast",
    "Layout",
    "Network",
    "Precision",
    "Step",
    "evaluating",
    "fast",
]
