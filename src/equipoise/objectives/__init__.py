"""Objectives: what one learner minimises, its attack included."""

__all__ = [
    "IAT",
    "MART",
    "TRADES",
    "YOPO",
    "Adversarial",
    "Batch",
    "Following",
    "Labels",
    "Mixed",
    "Objective",
    "Options",
    "Robust",
    "SelfAdaptive",
    "Standard",
    "Tau",
    "TwoSided",
]

from equipoise.objectives.adversarial import Adversarial
from equipoise.objectives.core import Batch, Objective
from equipoise.objectives.following import Following
from equipoise.objectives.friendly import Tau
from equipoise.objectives.iat import IAT
from equipoise.objectives.labels import Labels
from equipoise.objectives.mart import MART
from equipoise.objectives.mixed import Mixed
from equipoise.objectives.options import Options
from equipoise.objectives.robust import Robust
from equipoise.objectives.self_adaptive import SelfAdaptive
from equipoise.objectives.standard import Standard
from equipoise.objectives.trades import TRADES
from equipoise.objectives.two_sided import TwoSided
from equipoise.objectives.yopo import YOPO
