"""Formulas in TeX as MathML, which browsers draw without a script or a font of their own."""

import re
from typing import Any

from latex2mathml.converter import convert
from pymdownx.inlinehilite import InlineHiliteException
from pymdownx.superfences import SuperFencesException

_OPERATORS = {r"\arg\max": r"\operatorname{arg max}", r"\arg\min": r"\operatorname{arg min}"}


class Unknown(SuperFencesException, InlineHiliteException):
    """A formula that cannot be drawn; both extensions let it end the build."""


def inline(source: str, *_: Any, **__: Any) -> str:
    """Return a formula within a line (the format of ``inlinehilite``)."""
    return _drawn(source)


def block(source: str, *_: Any, **__: Any) -> str:
    """Return a formula of its own (the format of ``superfences``)."""
    return f'<div class="formula">{_drawn(source, display="block")}</div>'


def _drawn(source: str, display: str = "inline") -> str:
    """Return MathML; a command of TeX that the converter does not know is an error."""
    for command, words in _OPERATORS.items():
        source = source.replace(command, words)
    drawn = str(convert(source, display=display))
    if unknown := re.search(r"\\[A-Za-z]+", drawn):
        raise Unknown(f"cannot draw {unknown[0]} in the formula {source}")
    return drawn
