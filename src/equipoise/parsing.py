"""Values as people write them, like ``8/255`` and ``none``; files of YAML and of JSON lines.

A number is decimal: what other readers take for octal, hexadecimal, base 60, a date or zero
(``010``, ``0x1``, ``1:30``, ``1e-400``) stays text here, which no setting of numbers accepts.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from equipoise.errors import UserError, nearest, short

Text = TypeVar("Text", bound=str)
T = TypeVar("T")

MOST = 10_000_000
"""The most that anything is counted to: steps, queries, rounds."""

_DIGITS = 18  # of a whole number
_VALUES = 100_000  # in a file, those that its aliases repeat included
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
    """YAML whose numbers are those that :func:`number` knows."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _OTHER_NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    _DECIMAL, re.compile(rf"(?:{_NUMBER}|[-+]?\.inf|\.nan)$", _FLAGS), list("-+.0123456789")
)
_Loader.add_constructor(_DECIMAL, lambda loader, node: _decimal(node.value))


def number(text: Any) -> Any:
    """Return a fraction or number written as text as a number, and anything else as YAML has it.

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
    """Return a number that a float can hold; else the text, as it is meant some other way."""
    if not text or _PADDED.match(text):
        return text
    if text[-1] in "fFnN":  # .inf and .nan, to be refused for what they are
        return float(text.replace(".", ""))
    if text.lstrip("+-").isdigit():
        return int(text) if len(text.lstrip("+-")) <= _DIGITS else text
    value = float(text)
    lost = value == 0 and re.search("[1-9]", re.split("[eE]", text)[0])
    return text if lost or not math.isfinite(value) else value


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
            raise UserError(f"{what} takes numbers like 8/255 or 0.1, got {short(value)}")
    return [float(value) for value in values]


def share(value: float | str, what: str) -> float:
    """Return an accuracy, or a difference of two, from how it is written: ``0.01`` or ``1%``.

    Example:
        >>> share("1%", "--max-clean-drop"), share(0.88, "min_clean")
        (0.01, 0.88)

    Arguments:
        value: A part of one, or text that may be one or end with %.
        what: The name of the option, for the error.

    Raises:
        UserError: If it is no number from 0 to 1; a bare number above 1 may be meant either way.
    """
    text = value.strip() if isinstance(value, str) else ""
    percent = text.endswith("%")
    found = number(text[:-1].strip() if percent else value)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise UserError(f"{what} takes an accuracy like 0.01 or 1%, got {short(value)}")
    part = found / 100 if percent else float(found)
    if not 0 <= part <= 1:
        meant = 1 < found <= 100 and not percent
        raise UserError(
            f"{what} must be an accuracy in [0, 1], like 0.01 or 1%, got {text or found}"
            + (f"; did you mean {found / 100:g}, or {found:g}%?" if meant else "")
        )
    return part


def check_seed(seed: int, what: str = "seed") -> None:
    """Raise a UserError for what cannot be the seed of random numbers."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LAST_SEED:
        raise UserError(f"{what} must be a whole number from 0 to 2^63 - 1, got {short(seed)}")


def lines(path: Path, parse: Callable[[Any], T], notes: list[str] | None = None) -> list[T]:
    """Return the values of a file of JSON lines; a last line that was cut short is left out.

    Arguments:
        path: The file; absent, it has no lines.
        parse: What turns a line's JSON into a value.
        notes: That a line was left out is added here.

    Raises:
        UserError: where a line is damaged.
    """
    if not path.is_file():
        return []
    written = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found: list[T] = []
    for number, line in enumerate(written, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if number < len(written):
                raise UserError(
                    f"{path}, line {number} is not JSON; repair or remove it"
                ) from error
            if notes is not None:
                notes.append(f"The last line of {path.name} was cut short and is left out.")
            continue
        found.append(checked(f"{path}, line {number}", parse, value))
    return found


def read_mapping(path: Path, parse: Callable[[str], object] = json.loads) -> dict[str, Any]:
    """Return the mapping that a file of a run holds; of an absent or empty file nothing.

    Arguments:
        path: The file.
        parse: What turns its text into a value.

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
    """Return what a value stands for.

    Raises:
        UserError: naming ``where``, if the value is not as expected.
    """
    try:
        return parse(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} is not as expected ({reason(error)}); repair or remove it"
        ) from error


def reason(error: Exception) -> str:
    """Return in a line what an error says."""
    if isinstance(error, KeyError):
        return f"no {error}"
    return f"{error}".strip().splitlines()[0] if f"{error}".strip() else type(error).__name__


def choice(text: str, what: str, known: Sequence[Text]) -> Text:
    """Return one of the values that are known."""
    for value in known:
        if text == value:
            return value
    raise UserError(nearest(text, known, what))


def load(text: str) -> Any:
    """Return what a YAML text says, with the numbers that :func:`number` knows.

    Raises:
        yaml.YAMLError: If it is no YAML, is nested too deeply, or repeats itself by aliases
            without an end or without measure.
    """
    return _read(text)[1]


def mapping(path: Path, what: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Arguments:
        path: The file.
        what: What it is, for the error, like "recipe".

    Raises:
        UserError: If it is not there, is no mapping, leaves a value out, or gives a key twice,
            of which YAML would take the last one in silence.
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
    """Return what is wrong with the keys of a YAML text, a line each, and what it says."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return [], None
        problems: list[str] = []
        if _size(node, {}, problems) > _VALUES:
            raise yaml.YAMLError(f"its aliases repeat more than {_VALUES} values")
        return problems, loader.construct_document(node)  # which merges what << refers to
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    """Yield the nodes right below one."""
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _size(node: yaml.Node, sizes: dict[int, int], problems: list[str]) -> int:
    """Return how many values a node stands for, with those of aliases; add what is wrong with it.

    Each node is looked at once.
    """
    size = sizes.get(id(node))
    if size == 0:
        raise yaml.YAMLError(f"an alias refers to what it is in (line {_line(node)})")
    if size is None:
        sizes[id(node)] = 0
        problems += _faults(node)
        size = sizes[id(node)] = 1 + sum(_size(each, sizes, problems) for each in _inside(node))
    return size


def _faults(node: yaml.Node) -> Iterator[str]:
    """Yield a line for each key of a mapping that is given twice or has no value."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = dict[str, int]()
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if key.value in seen:
            yield f"{short(key.value)} is given twice (lines {seen[key.value]} and {_line(key)})"
        if isinstance(value, yaml.ScalarNode) and value.tag == _NOTHING and not value.value:
            yield f"{short(key.value)} has no value (line {_line(key)}); write none for nothing"
        seen.setdefault(key.value, _line(key))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
