"""Evaluation: attacks search, the judge decides, every verdict is kept."""

__all__ = ["Finding", "Judge", "Outcome", "Protocol", "Result", "evaluate"]

from equipoise.evaluation.evaluate import evaluate
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.outcome import Outcome
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.store.finding import Finding
