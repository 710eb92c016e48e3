"""Reports: one self-contained HTML page from run folders, without a model and without torch."""

__all__ = ["build", "failed_checks"]

from equipoise.report.page import build, failed_checks
