"""Lists on the terminal: methods and their settings, attacks, models, datasets and presets."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from equipoise.attacks import ATTACKS
from equipoise.data import DATASETS, status
from equipoise.errors import UserError, nearest
from equipoise.models import MODELS
from equipoise.settings.explanation import price
from equipoise.settings.methods import METHODS, MethodRow, Settings
from equipoise.settings.presets import DATA, presets
from equipoise.settings.recipe import Recipe, defaults, method_named
from equipoise.settings.schema import TAGS, WORDS, plain
from equipoise.terminal.table import output, rich_table


def write_catalogue(what: str | None) -> None:
    """Show the methods, attacks, models or datasets; None: all of them.

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
        columns = [name.removesuffix("s"), "description", *more]
        terminal.print(rich_table(name, columns, catalogue[name]))
    if what in (None, "methods"):
        terminal.print(
            "cost: the most gradient evaluations (a pass forward and backward) for each image of "
            "a batch, by default.\nAll settings of a method: equipoise list methods METHOD; its "
            "loss as a formula: equipoise explain METHOD"
        )


def _method(name: str) -> tuple[str, ...]:
    """Return the row of a method: title, cost, main parameters, paper."""
    row = METHODS[name]
    parameters = []
    for path in row.shown:
        value = attrgetter(path)(row())
        text = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
        parameters.append(f"{path.rpartition('.')[2]}={text}")
    return name, row.title, str(price(name)), " ".join(parameters), row.paper


def write_data(data_dir: Path | None) -> None:
    """Show which datasets are here, which folders were searched, and how to get the others."""
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


SettingsGroup = tuple[str, str, list[Row]]
"""The place of a group, like ``robust.attack`` (empty: the top), its title, its settings."""


def write_settings(method: str) -> None:
    """Show every setting of a method, with its meaning and default, and those of each recipe.

    Raises:
        UserError: If there is no such method.
    """
    row, terminal = method_named(method), output()
    terminal.print(row.about + "\n")
    for path, title, rows in settings_groups(method):
        if rows:
            title = f"{path or 'settings'}: {title}".rstrip(": ")
            prefix = f"{path}." if path else ""
            cells = [(f"{prefix}{name}", _yaml(plain(value)), text) for name, value, text in rows]
            terminal.print(rich_table(title, ("setting", "default", "meaning"), cells))
    terminal.print("Defaults, as written in a recipe:", style="bold")
    text = yaml.safe_dump(defaults(method), sort_keys=False, default_flow_style=None)
    terminal.print(f"method: {method}\n{text}", end="")


def _yaml(value: Any) -> str:
    """Return a value in one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True)
    return text.strip().removesuffix("...").strip()


def settings_groups(method: str) -> list[SettingsGroup]:
    """Return all settings of a method: those of every recipe, its own, and those in groups.

    The rule of ``start`` comes with its other kinds; other objectives of a learner are methods
    themselves, and are listed there.
    """
    common = {f.name: f.default for f in fields(Recipe) if f.name not in ("method", "settings")}
    first = ("", "of every method", _rows(Recipe, common, {}))
    return [first, *_groups(METHODS[method], METHODS[method](), "", "its own", {})]


def _groups(
    row: MethodRow, settings: Any, path: str, title: str, tag_meaning: Mapping[str, str]
) -> Iterator[SettingsGroup]:
    """Yield the group of a dataclass, and those of the dataclasses in it."""
    kind = type(settings)
    names = kind.offered() if issubclass(kind, Settings) else [f.name for f in fields(kind)]
    values = {name: getattr(settings, name) for name in names}
    own = {name: value for name, value in values.items() if not is_dataclass(value)}
    yield path, title, _rows(kind, own, tag_meaning)
    meanings = _meanings(kind)
    for name, value in values.items():
        if name in own:
            continue
        where = f"{path}.{name}" if path else name
        tag = TAGS.get(where, "")
        kinds = row.kinds(where) if tag else {}
        meaning = {tag: f"The {WORDS[tag]}: {', '.join(kinds)}."} if tag else {}
        yield from _groups(row, value, where, meanings.get(name, ""), meaning)
        for other, rule in kinds.items() if tag == "rule" else ():
            if other != getattr(value, tag):
                rows = _rows(rule, vars(rule()), meaning)
                yield where, f"with {where}={other}", rows


def _rows(kind: type, values: Mapping[str, Any], more: Mapping[str, str]) -> list[Row]:
    meanings = _meanings(kind) | dict(more)
    return [(name, value, meanings.get(name, "")) for name, value in values.items()]


def _meanings(kind: type) -> dict[str, str]:
    """Return one line for each argument of a class and its bases, from their docstrings."""
    meanings: dict[str, str] = {}
    for owner in kind.__mro__:
        doc = inspect.cleandoc(vars(owner).get("__doc__") or "").partition("Arguments:\n")[2]
        section = re.split(r"\n(?=\S)", doc)[0]
        for entry in re.split(r"\n(?= {4}\S)", "\n" + section):
            name, colon, text = entry.strip().partition(":")
            if colon and name.isidentifier():
                line = " ".join(text.split()).replace("``", "")
                line = re.sub(r":\w+:`([^`]*)`", lambda role: re.sub(r"[\\{}]", "", role[1]), line)
                meanings.setdefault(name, line)
    return meanings


def write_presets(name: str | None) -> None:
    """Show all presets as a table, or those of a method or of a dataset in full.

    Arguments:
        name: The method or the dataset; None: the table.

    Raises:
        UserError: If there are no presets of that name.
    """
    every = [preset for data in DATA for preset in presets(data)]
    if name is None:
        columns = ("data", "method", "rounds", "batch", "lr", "source")
        rows = []
        for preset in every:
            settings = preset.settings
            learner: Any = settings.get("robust", settings.get("clean"))
            numbers = map(str, (settings["rounds"], settings["batch_size"], learner["lr"]))
            rows.append((preset.data, preset.method, *numbers, preset.source))
        output().print(rich_table("presets", columns, rows, numbers=columns[2:5]))
        output().print(
            "In full: equipoise list presets METHOD (or DATA). Train with one: equipoise train "
            "METHOD --data DATA --published --out runs/NAME [key=value]..."
        )
        return
    chosen = [preset for preset in every if name in (preset.method, preset.data)]
    if not chosen:
        names = [*DATA, *dict.fromkeys(preset.method for preset in every)]
        raise UserError(nearest(name, names, "method or dataset of a preset"))
    for preset in chosen:
        output().print(f"{preset.method} on {preset.data}", style="bold")
        settings = json.loads(json.dumps(preset.settings))  # without aliases in the YAML
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=99)
        for line in [*preset.lines(), text]:
            output().print(line, soft_wrap=True)
