"""The report of a reproduction: findings to tables, pictures and one page, without torch."""

__all__ = ["build"]

from equipoise.report.reproduction.page import build
