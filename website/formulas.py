"""Formulas in TeX as MathML, which browsers draw without a script or a font of their own."""

__all__ = ["block", "inline"]

from typing import Any

from latex2mathml.converter import convert


def inline(source: str, *_: Any, **__: Any) -> str:
    """Return a formula within a line (the format of ``inlinehilite``)."""
    return str(convert(source))


def block(source: str, *_: Any, **__: Any) -> str:
    """Return a formula of its own (the format of ``superfences``)."""
    return f'<div class="formula">{convert(source, display="block")}</div>'
