"""Lists on the terminal: methods and their settings, attacks, models, data sets and presets."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from equipoise.attacks import ATTACKS
from equipoise.data import DATASETS, status
from equipoise.errors import UserError, nearest
from equipoise.models import MODELS
from equipoise.settings.explanation import price
from equipoise.settings.methods import METHODS, MethodRow, Settings
from equipoise.settings.presets import DATA, Preset, presets
from equipoise.settings.recipe import Recipe, defaults
from equipoise.settings.schema import TAGS, WORDS, plain
from equipoise.terminal.table import output, rich_table


def write_catalogue(what: str | None) -> None:
    """Show the methods, attacks, models or data sets; None: all of them.

    Raises:
        UserError: If there is no list of that name.
    """
    catalogue: dict[str, Iterable[tuple[str, ...]]] = {
        "methods": (_method(name) for name in METHODS),
        "attacks": ((name, about) for name, (_, about) in ATTACKS.items()),
        "models": ((name, about) for name, (_, about) in MODELS.items()),
        "data": ((name, f"{d.title}, {d.n:,} images") for name, d in DATASETS.items()),
    }
    if what is not None and what not in catalogue:
        raise UserError(nearest(what, [*catalogue, "presets"], "list"))
    terminal = output()
    for name in [what] if what else catalogue:
        more = ("cost", "parameters", "paper") if name == "methods" else ()
        columns = [name.removesuffix("s"), "what it is", *more]
        terminal.print(rich_table(name, columns, catalogue[name]))
    if what in (None, "methods"):
        terminal.print(
            "cost: gradient evaluations (a pass forward and backward) an image of a batch, by "
            "default, at most.\nAll settings of a method: equipoise list methods METHOD; its loss "
            "as a formula: equipoise explain METHOD"
        )


def _method(name: str) -> tuple[str, ...]:
    """Return the row of a method: what it is, its price, its main parameters, its paper."""
    row = METHODS[name]
    parameters = (f"{path.split('.')[-1]}={_value_at(row(), path)}" for path in row.shown)
    return name, row.title, str(price(name)), " ".join(parameters), row.paper


def _value_at(settings: Any, path: str) -> str:
    """Return the value of a setting as a user writes it."""
    for part in path.split("."):
        settings = getattr(settings, part)
    return f"[{','.join(map(str, settings))}]" if isinstance(settings, tuple) else str(settings)


def write_data(data_dir: Path | None) -> None:
    """Show which data sets were found, which folders were searched, and how to get the rest."""
    terminal = output()
    for entry in status(data_dir):
        mark = "found" if entry.copy else "refused" if entry.problem else "not found"
        terminal.print(f"{entry.name}: {mark}", style="bold")
        source = DATASETS[entry.name]
        lines = [f"{source.title}, {source.n:,} images; licence: {source.licence}"]
        lines += [entry.copy, entry.problem]
        if not entry.copy:
            lines += [f"looked in {', '.join(map(str, entry.looked))}", entry.remedy]
        for line in filter(None, lines):
            terminal.print(f"  {line}")


Row = tuple[str, Any, str]
"""The name of a setting, its default, and its meaning."""


class SettingsGroup(NamedTuple):
    """Settings of one group of a recipe, with their meanings from docstrings.

    Arguments:
        path: The group's place, like ``robust.attack``; empty: the top.
        title: What the settings are.
        rows: The settings.
    """

    path: str
    title: str
    rows: list[Row]


def write_settings(method: str) -> None:
    """Show every setting of a method with its meaning and default, those of a recipe included.

    Raises:
        UserError: If there is no such method.
    """
    if method not in METHODS:
        raise UserError(nearest(method, METHODS, "method"))
    terminal = output()
    terminal.print(METHODS[method].about + "\n")
    for path, title, rows in settings_groups(method):
        if rows:
            title = f"{path or 'settings'}: {title}".rstrip(": ")
            prefix = f"{path}." if path else ""
            cells = [(f"{prefix}{name}", _default(value), text) for name, value, text in rows]
            terminal.print(rich_table(title, ("setting", "default", "meaning"), cells))
    terminal.print("Defaults, as a recipe has them:", style="bold")
    text = yaml.safe_dump(defaults(method), sort_keys=False, default_flow_style=None)
    terminal.print(f"method: {method}\n{text}", end="")


def _default(value: Any) -> str:
    """Return a default as a recipe has it."""
    flow: str = yaml.safe_dump(plain(value), default_flow_style=True).strip()
    return flow.removesuffix("...").strip()


def settings_groups(method: str) -> list[SettingsGroup]:
    """Return all settings of a method: those of every recipe, its own, and those in groups.

    A group of several kinds (the rule of ``start``) comes with each of its other kinds; other
    objectives of a learner are methods of their own, and are listed there.
    """
    common = {f.name: f.default for f in fields(Recipe) if f.name not in ("method", "settings")}
    first = SettingsGroup("", "of every method", _rows(Recipe, common, {}))
    return [first, *_groups(METHODS[method], METHODS[method](), "", "its own", {})]


def _groups(
    row: MethodRow, settings: Any, path: str, title: str, tag_meaning: Mapping[str, str]
) -> Iterator[SettingsGroup]:
    """Yield the group of a dataclass, and those of the dataclasses in it."""
    kind = type(settings)
    names = kind.offered() if issubclass(kind, Settings) else [f.name for f in fields(kind)]
    values = {name: getattr(settings, name) for name in names}
    inner = {name: value for name, value in values.items() if is_dataclass(value)}
    own = {name: value for name, value in values.items() if name not in inner}
    yield SettingsGroup(path, title, _rows(kind, own, tag_meaning))
    meanings = _meanings(kind)
    for name, value in inner.items():
        where = f"{path}.{name}" if path else name
        tag = TAGS.get(where, "")
        kinds = row.kinds(where) if tag else {}
        meaning = {tag: f"The {WORDS[tag]}: {', '.join(kinds)}."} if tag else {}
        yield from _groups(row, value, where, meanings.get(name, ""), meaning)
        for other, rule in kinds.items() if tag == "rule" else ():
            if other != getattr(value, tag):
                rows = _rows(rule, vars(rule()), meaning)
                yield SettingsGroup(where, f"with {where}={other}", rows)


def _rows(kind: type, values: Mapping[str, Any], more: Mapping[str, str]) -> list[Row]:
    meanings = _meanings(kind) | dict(more)
    return [(name, value, meanings.get(name, "")) for name, value in values.items()]


def _meanings(kind: type) -> dict[str, str]:
    """Return the meaning of each argument of a class, in a line: its own, then its bases'."""
    meanings: dict[str, str] = {}
    for owner in kind.__mro__:
        doc = inspect.cleandoc(vars(owner).get("__doc__") or "").partition("Arguments:\n")[2]
        section = re.split(r"\n(?=\S)", doc)[0]
        for entry in re.split(r"\n(?= {4}\S)", "\n" + section):
            name, colon, text = entry.strip().partition(":")
            if colon and name.isidentifier():
                meanings.setdefault(name, _without_markup(" ".join(text.split())))
    return meanings


def _without_markup(text: str) -> str:
    """Return the text of a docstring without its markup: code, names and formulas stay."""
    text = re.sub(r":\w+:`([^`]*)`", lambda role: re.sub(r"[\\{}]", "", role[1]), text)
    return text.replace("``", "")


def write_presets(name: str | None) -> None:
    """Show all presets as a table, or those of a method or of a data set in full.

    Arguments:
        name: The method or the data set; None: the table.

    Raises:
        UserError: If there are no presets of that name.
    """
    every = [preset for data in DATA for preset in presets(data)]
    if name is None:
        columns = ("data", "method", "rounds", "batch", "lr", "source")
        rows = map(_preset_row, every)
        output().print(rich_table("presets", columns, rows, numbers=columns[2:5]))
        output().print(
            "In full: equipoise list presets METHOD (or DATA). Train with one: equipoise train "
            "METHOD --data DATA --published --out runs/NAME [key=value]..."
        )
        return
    chosen = [preset for preset in every if name in (preset.method, preset.data)]
    if not chosen:
        names = [*DATA, *dict.fromkeys(preset.method for preset in every)]
        raise UserError(nearest(name, names, "method or data set of a preset"))
    for preset in chosen:
        output().print(f"{preset.method} on {preset.data}", style="bold")
        settings = json.loads(json.dumps(preset.settings))  # without aliases in the YAML
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=99)
        for line in [*preset.lines(), text]:
            output().print(line, soft_wrap=True)


def _preset_row(preset: Preset) -> tuple[str, ...]:
    settings = preset.settings
    learner: Any = settings.get("robust", settings.get("clean"))
    numbers = map(str, (settings["rounds"], settings["batch_size"], learner["lr"]))
    return preset.data, preset.method, *numbers, preset.source
