"""Values as people write them: ``8/255`` is a number, ``none`` is nothing."""

__all__ = ["number"]

import re
from typing import Any

import yaml

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
_FRACTION = re.compile(rf"\s*(?P<over>{_NUMBER})\s*/\s*(?P<under>{_NUMBER})\s*", re.IGNORECASE)
_FLOAT = re.compile(_NUMBER, re.IGNORECASE)


def number(text: Any) -> Any:
    """Return a fraction or number written as text as a number, and anything else as YAML has it.

    Example:
        >>> number("8/255") == 8 / 255, number("1e-3"), number("[1, .4]"), number("none")
        (True, 0.001, [1, 0.4], None)
    """
    if not isinstance(text, str):
        return text
    match = _FRACTION.fullmatch(text)
    if match and float(match["under"]):
        return float(match["over"]) / float(match["under"])
    if text.strip().lower() in ("none", "null"):
        return None
    if _FLOAT.fullmatch(text.strip()) and not text.strip().lstrip("+-").isdigit():
        return float(text)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return [number(item) for item in value] if isinstance(value, list) else value
