"""Training: learners, the merge that makes one model of them, and the loop."""

__all__ = [
    "Augment",
    "Fixed",
    "Interrupted",
    "Knots",
    "Learner",
    "Merge",
    "Method",
    "Never",
    "Probe",
    "Stable",
    "Threshold",
    "Training",
    "Watch",
]

from equipoise.objectives.core import Knots
from equipoise.training.augment import Augment
from equipoise.training.collapse import Probe
from equipoise.training.learner import Learner
from equipoise.training.loop import Training
from equipoise.training.merge import Merge
from equipoise.training.method import Method
from equipoise.training.start import Fixed, Never, Stable, Threshold
from equipoise.training.watch import Interrupted, Watch
