"""Values as people write them: ``8/255`` is a number, ``none`` is nothing; YAML files."""

__all__ = ["choice", "mapping", "number", "numbers"]

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from equipoise.errors import UserError, nearest

Text = TypeVar("Text", bound=str)

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


def numbers(text: str, what: str) -> list[float]:
    """Return numbers that are written with commas between them.

    Arguments:
        text: What the user wrote.
        what: The name of the option, for the error.
    """
    values = [number(part) for part in text.split(",") if part.strip()]
    if not values:
        raise UserError(f"{what} names no number")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{what} takes numbers like 8/255 or 0.1, got {value!r}")
    return [float(value) for value in values]


def choice(text: str, what: str, known: Sequence[Text]) -> Text:
    """Return one of the values that are known."""
    for value in known:
        if text == value:
            return value
    raise UserError(nearest(text, known, what))


def mapping(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Arguments:
        path: The file.
        what: What it is, for the error, like "recipe".

    Raises:
        UserError: If it is not there, is no mapping, or gives a key twice, of which YAML would
            take the last one in silence.
    """
    try:
        text = path.read_text(encoding="utf-8")
        twice = list(_twice(yaml.compose(text, Loader=yaml.SafeLoader)))
        content = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"cannot read the {what} {path}: {line}") from None
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping in the {what} {path}, got {type(content).__name__}")
    if twice:
        raise UserError(f"{path}: {'; '.join(twice)}")
    return content


def _twice(node: yaml.Node | None) -> Iterator[str]:
    """Yield a line for each key that is given twice."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                yield f"{key.value!r} is given twice (lines {seen[key.value]} and {line})"
            elif isinstance(key, yaml.ScalarNode):
                seen[key.value] = line
    if isinstance(node, yaml.CollectionNode):
        for item in node.value:
            for part in item if isinstance(item, tuple) else (item,):
                yield from _twice(part)
