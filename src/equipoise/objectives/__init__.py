"""Objectives: what one learner minimises, its attack included."""

__all__ = ["Adversarial", "Batch", "Objective", "Standard"]

from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.standard import Standard
