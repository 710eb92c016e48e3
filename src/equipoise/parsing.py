"""Values as people write them, like ``8/255`` and ``none``; files of YAML and of JSON lines.

Numbers are decimal: ``010``, ``0x1``, ``1:30`` and ``1e-400``, which other parsers read as octal,
hexadecimal, base 60 and zero, stay text, which no numeric setting accepts.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import yaml

from equipoise.errors import UserError, nearest, short

Text = TypeVar("Text", bound=str)
T = TypeVar("T")

MOST = 10_000_000
"""The largest number of steps, queries and rounds."""

_DIGITS = 18  # the most of a whole number
_VALUES = 100_000  # the most in a file, with those that its aliases repeat
_LAST_SEED = 2**63 - 1

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?"
_FLAGS = re.IGNORECASE | re.ASCII
_FRACTION = re.compile(rf"(?P<over>{_NUMBER})\s*/\s*(?P<under>{_NUMBER})", _FLAGS)
_FLOAT = re.compile(_NUMBER, _FLAGS)
_PADDED = re.compile(r"[-+]?0\d")
_DECIMAL = "!decimal"
_OTHER_NUMBERS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp"))
_NOTHING = "tag:yaml.org,2002:null"


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of :func:`number`."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag not in _OTHER_NUMBERS]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _DECIMAL, re.compile(rf"(?:{_NUMBER}|[-+]?\.inf|\.nan)$", _FLAGS), list("-+.0123456789")
)
_Loader.add_constructor(_DECIMAL, lambda loader, node: _decimal(node.value))


def number(text: Any) -> Any:
    """Return a fraction or a number in a text as a number, and any other text as YAML reads it.

    Example:
        >>> number("8/255") == 8 / 255, number("1e-3"), number("[1, .4]"), number("none")
        (True, 0.001, [1, 0.4], None)
    """
    if not isinstance(text, str):
        return text
    bare = text.strip()
    fraction = _FRACTION.fullmatch(bare)
    if fraction:
        over, under = _decimal(fraction["over"]), _decimal(fraction["under"])
        sound = not isinstance(over, str) and not isinstance(under, str) and under
        return over / under if sound else text
    if bare.lower() in ("none", "null"):
        return None
    if not bare or _FLOAT.fullmatch(bare):
        return _decimal(bare)
    try:
        value = load(text)
    except yaml.YAMLError:
        return text
    return [number(item) for item in value] if isinstance(value, list) else value


def _decimal(text: str) -> Any:
    """Return a number if a float can hold it; otherwise the text."""
    if not text or _PADDED.match(text):
        return text
    if text[-1] in "fFnN":  # .inf and .nan, which are refused later by name
        return float(text.replace(".", ""))
    if text.lstrip("+-").isdigit():
        return int(text) if len(text.lstrip("+-")) <= _DIGITS else text
    value = float(text)
    lost = value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])
    return text if lost or not math.isfinite(value) else value


def numbers(text: str, what: str) -> list[float]:
    """Return the numbers in a text, separated by commas; ``what`` names the option."""
    values = [number(part) for part in text.split(",") if part.strip()]
    if not values:
        raise UserError(f"{what} takes numbers like 8/255 or 0.1, got none")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{what} takes numbers like 8/255 or 0.1, got {short(value)}")
    return [float(value) for value in values]


def share(value: float | str, what: str) -> float:
    """Return an accuracy, or a difference of two, from ``0.01`` or ``1%``.

    Example:
        >>> share("1%", "--max-clean-drop"), share(0.88, "min_clean")
        (0.01, 0.88)

    Arguments:
        value: A number in [0, 1], or text with one or with a percentage.
        what: The name of the option, for the error.

    Raises:
        UserError: If it is no number from 0 to 1; a number above 1 without % is ambiguous.
    """
    text = value.strip() if isinstance(value, str) else ""
    percent = text.endswith("%")
    given = number(text[:-1].strip() if percent else value)
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise UserError(f"{what} takes an accuracy like 0.01 or 1%, got {short(value)}")
    part = given / 100 if percent else float(given)
    if not 0 <= part <= 1:
        ambiguous = 1 < given <= 100 and not percent
        raise UserError(
            f"{what} must be an accuracy in [0, 1], like 0.01 or 1%, got {text or given}"
            + (f"; did you mean {given / 100:g}, or {given:g}%?" if ambiguous else "")
        )
    return part


def seconds(text: str, what: str) -> float:
    """Return a time in seconds from ``90s``, ``30m`` or ``2h``; a number alone is of seconds.

    Example:
        >>> seconds("30m", "--time"), seconds("1.5h", "--time")
        (1800.0, 5400.0)

    Raises:
        UserError: If it is no time above zero.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*(s|m|min|h|)\s*", text)
    value = number(match[1]) if match else None
    if match is None or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{what} takes a time like 90s, 30m or 2h, got {short(text)}")
    return float(value) * {"h": 3600, "m": 60, "min": 60}.get(match[2], 1)


def check_seed(seed: int, what: str = "seed") -> None:
    """Raise a UserError if a value cannot be the seed of random numbers."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LAST_SEED:
        raise UserError(f"{what} must be a whole number from 0 to 2^63 - 1, got {short(seed)}")


def lines(path: Path, parse: Callable[[Any], T], notes: list[str] | None = None) -> list[T]:
    """Return the values of a file of JSON lines; a last line that was cut short is ignored.

    Arguments:
        path: The file; if it is absent, there are no lines.
        parse: Turns the JSON of a line into a value.
        notes: Receives a sentence if a line was ignored.

    Raises:
        UserError: If a line is damaged.
    """
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    written = text.splitlines()
    values: list[T] = []
    for row, line in enumerate(written, start=1):
        where = f"{path}, line {row}"
        try:
            value = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as error:
            if row < len(written):
                raise UserError(f"{where} is not JSON; repair or remove it") from error
            if notes is not None:
                notes.append(f"The last line of {path.name} was cut short and is left out.")
            break
        if line.strip():
            values.append(checked(where, parse, value))
    return values


def read_mapping(path: Path, parse: Callable[[str], object] = json.loads) -> dict[str, Any]:
    """Return the mapping in a file of a run; it is empty if the file is absent or empty.

    Arguments:
        path: The file.
        parse: Turns its text into a value.

    Raises:
        UserError: If the file is damaged or holds something else.
    """
    if not path.exists():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({reason(error)}); restore it or remove it") from error
    if value is None:  # an empty file: a run that stopped before it began
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a mapping, got {type(value).__name__}; restore it")
    return value


def checked(where: object, parse: Callable[[Any], T], value: object) -> T:
    """Return the parsed value; an error becomes a UserError that names ``where``."""
    try:
        return parse(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not as expected ({reason(error)}); repair or remove it"
        ) from error


def reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    if isinstance(error, KeyError):
        return f"no {error}"
    return f"{error}".strip().splitlines()[0] if f"{error}".strip() else type(error).__name__


def choice(text: str, what: str, values: Sequence[Text]) -> Text:
    """Return the value that is equal to the text; ``what`` names the option."""
    if text not in values:
        raise UserError(nearest(text, values, what))
    return values[values.index(text)]


def load(text: str) -> Any:
    """Return the content of a YAML text, with the numbers of :func:`number`.

    Raises:
        yaml.YAMLError: If it is no YAML, is nested too deeply, or its aliases are circular or
            repeat too many values.
    """
    return _read(text)[1]


def mapping(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Arguments:
        path: The file.
        what: The kind of file, for the error, like "recipe".

    Raises:
        UserError: If it is absent, is no mapping, or a key has no value or is given twice (YAML
            itself would take the last value without a warning).
    """
    try:
        problems, content = _read(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no {what} at {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        line = " ".join(str(error).split())
        raise UserError(f"cannot read the {what} {path}: {line}") from None
    if not isinstance(content, dict):
        raise UserError(f"expected a mapping in the {what} {path}, got {type(content).__name__}")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return content


def _read(text: str) -> tuple[list[str], Any]:
    """Return the problems of the keys of a YAML text, a line each, and its content."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return [], None
        problems: list[str] = []
        if _size(node, {}, problems) > _VALUES:
            raise yaml.YAMLError(f"its aliases repeat more than {_VALUES} values")
        return problems, loader.construct_document(node)  # which resolves the merges of <<
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, sizes: dict[int, int], problems: list[str]) -> int:
    """Return the number of values in a node, aliases included; add problems of its keys."""
    size = sizes.get(id(node))
    if size == 0:
        raise yaml.YAMLError(f"an alias refers to a value that contains it (line {_line(node)})")
    if size is None:
        sizes[id(node)] = 0
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            problems += _faults(node)
            inner = chain.from_iterable(node.value)
        size = sizes[id(node)] = 1 + sum(_size(each, sizes, problems) for each in inner)
    return size


def _faults(node: yaml.MappingNode) -> Iterator[str]:
    """Yield a line for each key that is given twice or has no value."""
    lines = dict[str, int]()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in lines:
            yield f"{short(key.value)} is given twice (lines {lines[key.value]} and {_line(key)})"
        if isinstance(value, yaml.ScalarNode) and value.tag == _NOTHING and not value.value:
            yield f"{short(key.value)} has no value (line {_line(key)}); write none for nothing"
        lines.setdefault(key.value, _line(key))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
