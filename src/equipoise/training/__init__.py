"""Training: learners, the merge that makes one model of them, and the loop."""

__all__ = [
    "Augment",
    "Branch",
    "Fixed",
    "Handover",
    "Interrupted",
    "Knots",
    "Learner",
    "LearnerSpec",
    "Merge",
    "Method",
    "Never",
    "Probe",
    "Stable",
    "Start",
    "Threshold",
    "Training",
    "Watch",
    "Weights",
]

from equipoise.training.collapse import Probe
from equipoise.training.learner import Augment, Learner
from equipoise.training.loop import Training
from equipoise.training.merge import Handover, Merge, Weights
from equipoise.training.method import Branch, LearnerSpec, Method
from equipoise.training.schedule import Knots
from equipoise.training.start import Fixed, Never, Stable, Start, Threshold
from equipoise.training.watch import Interrupted, Watch
