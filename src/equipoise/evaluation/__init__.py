"""Evaluation: attacks search, the judge decides, every verdict is kept."""

__all__ = ["Judge", "Result", "evaluate"]

from equipoise.evaluation.evaluate import evaluate
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.result import Result
