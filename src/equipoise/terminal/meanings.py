"""What each setting of a method means: from the docstrings that its classes have anyway."""

__all__ = ["Group", "groups"]

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from equipoise.settings.methods import METHODS
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import TAGS, WORDS, variants


@dataclass(frozen=True)
class Group:
    """Settings that stand together in a recipe.

    Arguments:
        path: Where they stand, like ``robust.attack``; empty: at the top.
        title: What they are.
        rows: The name of each, its default, and what it means.
    """

    path: str
    title: str
    rows: tuple[tuple[str, Any, str], ...]


def groups(method: str) -> list[Group]:
    """Return all settings of a method: those of every recipe, its own, and those in groups.

    A group of several kinds (the rule of ``start``) comes with each of its other kinds; other
    objectives of a learner are methods of their own, and are listed there.
    """
    kind = METHODS[method]
    default = {f.name: f.default for f in fields(Recipe) if f.name not in ("method", "settings")}
    common = _rows(Recipe, default)
    return [Group("", "of every method", common), *_groups(kind(), "", "its own")]


def _groups(
    settings: Any, path: str, title: str, tags: Mapping[str, str] | None = None
) -> Iterator[Group]:
    """Yield the group of a dataclass, and those of the dataclasses in it."""
    kind = type(settings)
    values = {f.name: getattr(settings, f.name) for f in fields(kind)}
    hints = get_type_hints(kind)
    inner = {name: value for name, value in values.items() if is_dataclass(value)}
    plain = {name: value for name, value in values.items() if name not in inner}
    yield Group(path, title, _rows(kind, plain, tags))
    text = documented(kind)
    for name, value in inner.items():
        where = f"{path}.{name}" if path else name
        tag = TAGS.get(where, "")
        known = variants(hints[name], tag) if tag else {}
        named = {tag: f"The {WORDS[tag]}: {', '.join(known)}."} if tag else {}
        yield from _groups(value, where, text.get(name, ""), named)
        others = known.items() if tag == "rule" else ()
        for other, its in others:
            if other != getattr(value, tag):
                rest = {f.name: getattr(its(), f.name) for f in fields(its)}
                yield Group(where, f"with {where}={other}", _rows(its, rest, named))


def _rows(
    kind: type, values: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> tuple[tuple[str, Any, str], ...]:
    text = documented(kind) | dict(tags or {})
    return tuple((name, value, text.get(name, "")) for name, value in values.items())


def documented(kind: type) -> dict[str, str]:
    """Return the meaning of each argument of a class, in a line: its own, then its bases'."""
    found: dict[str, str] = {}
    for owner in kind.__mro__:
        for name, text in _arguments(vars(owner).get("__doc__") or ""):
            found.setdefault(name, text)
    return found


def _arguments(doc: str) -> Iterator[tuple[str, str]]:
    """Yield names and texts of the section ``Arguments`` of a docstring."""
    section = inspect.cleandoc(doc).partition("Arguments:\n")[2]
    section = re.split(r"\n(?=\S)", section)[0]
    for entry in re.split(r"\n(?= {4}\S)", "\n" + section):
        name, colon, text = entry.strip().partition(":")
        if colon and name.isidentifier():
            yield name, _unmarked(" ".join(text.split()))


def _unmarked(text: str) -> str:
    """Return a text without the marks of a docstring: code, names and formulas stay."""
    text = re.sub(r":\w+:`([^`]*)`", lambda found: re.sub(r"[\\{}]", "", found[1]), text)
    return text.replace("``", "")
