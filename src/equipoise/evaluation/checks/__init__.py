"""Checks that run by themselves during an evaluation: whether its numbers can be trusted."""

__all__ = ["CHECKS", "Finding", "after", "audit", "before", "probes", "transfer"]

from equipoise.evaluation.checks.after import after, transfer
from equipoise.evaluation.checks.audit import audit
from equipoise.evaluation.checks.before import before
from equipoise.evaluation.checks.finding import CHECKS
from equipoise.evaluation.checks.probes import probes
from equipoise.store.finding import Finding
