"""The presets on the terminal."""

__all__ = ["write_presets"]

import sys
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table

from equipoise.errors import UserError, nearest
from equipoise.settings.presets import DATA, Preset, presets

WIDTH = 140  # columns where the output is no terminal


def write_presets(name: str | None) -> None:
    """Show all presets as a table, or those of a method or of a data set in full.

    Arguments:
        name: The method or the data set; None: the table.

    Raises:
        UserError: If there are no presets of that name.
    """
    every = [preset for data in DATA for preset in presets(data)]
    console = Console(
        highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else WIDTH
    )
    if name is None:
        console.print(_table(every))
        console.print(
            "In full: equipoise list presets METHOD (or DATA). Train with one: equipoise train "
            "METHOD --data DATA --published --out runs/NAME [key=value]...",
            markup=False,
        )
        return
    found = [preset for preset in every if name in (preset.method, preset.data)]
    if not found:
        names = [*DATA, *dict.fromkeys(preset.method for preset in every)]
        raise UserError(nearest(name, names, "method or data set of a preset"))
    for preset in found:
        _write(console, preset)


def _table(every: list[Preset]) -> Table:
    table = Table(title="presets", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for column in ("data", "method"):
        table.add_column(column)
    for column in ("rounds", "batch", "lr"):
        table.add_column(column, justify="right")
    table.add_column("source")
    for preset in every:
        settings = preset.settings
        numbers = (settings["rounds"], settings["batch_size"], _learner(settings)["lr"])
        table.add_row(preset.data, preset.method, *map(str, numbers), preset.source)
    return table


def _learner(settings: Any) -> Any:
    """Return the settings of the learner that names the method: the robust one, if any."""
    return settings.get("robust", settings.get("clean"))


def _write(console: Console, preset: Preset) -> None:
    console.print(f"{preset.method} on {preset.data}", style="bold", markup=False)
    for line in preset.lines():
        console.print(line, markup=False, soft_wrap=True)
    text = yaml.dump(
        dict(preset.settings), Dumper=_Plain, sort_keys=False, default_flow_style=None, width=99
    )
    console.print(text, markup=False, soft_wrap=True)


class _Plain(yaml.SafeDumper):
    """YAML that writes a setting that two methods share out in both places."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return that nothing is an alias."""
        del data
        return True
