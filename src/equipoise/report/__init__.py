"""Reports: one self-contained HTML page from run folders, without a model and without torch."""

__all__ = ["build"]

from equipoise.report.page import build
