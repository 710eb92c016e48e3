"""Tables on the terminal."""

__all__ = ["write_catalogue", "write_data", "write_front", "write_settings", "write_table"]

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from equipoise.errors import UserError, nearest

if TYPE_CHECKING:
    from equipoise.fronts.points import Point
    from equipoise.fronts.record import Record as FrontRecord


def write_table(records: Sequence[Mapping[str, Any]], title: str = "") -> None:
    """Show records of an evaluation: a table an eps, and one of the classes.

    Arguments:
        records: As :func:`equipoise.jobs.evaluate.evaluate_run` returns them.
        title: What stands above.
    """
    console = _console()
    for eps in dict.fromkeys(record["eps"] for record in records):
        mine = [record for record in records if record["eps"] == eps]
        console.print(_accuracies(mine, title))
        for record in mine:
            if record.get("stages"):
                console.print(_stages(record))
        console.print(_classes(mine))


def _accuracies(records: Sequence[Mapping[str, Any]], title: str) -> Table:
    from equipoise.sample import Sample
    from equipoise.threat import Threat

    first = records[0]
    threat = Threat(first["norm"], first["eps"])
    given = first.get("sample")
    images = f"{first['n']:,} images"
    if given:
        images = Sample.of_content(given).words("test images")
    failed = first.get("failed")
    doubt = f"; FAILED CHECKS: {', '.join(failed)}" if failed else ""
    table = _table(f"{title + ': ' if title else ''}{threat}, {images}{doubt}")
    table.add_column("attack")
    for name in ("accuracy", "95 % interval", "worst class", "seconds"):
        table.add_column(name, justify="right")
    for record in records:
        low, high = record["interval"]
        worst = record["worst_class"]
        several = record.get("attacks")
        table.add_row(
            f"worst-case of {len(several)}" if several else record["attack"],
            f"{record['accuracy']:.2%}",
            f"{low:.1%} .. {high:.1%}",
            f"{worst['name']} {worst['accuracy']:.1%}" if worst else "",
            f"{record['seconds']:.1f}" if record["seconds"] else "",
        )
    return table


def _stages(record: Mapping[str, Any]) -> Table:
    """Return the stages of an ensemble: what each found, alone where that is known, its price."""
    table = _table(f"{record['attack']}, stage by stage")
    table.add_column("stage")
    names = ("attacked", "broken", "robust so far", "alone", "forward", "backward", "seconds")
    for name in names:
        table.add_column(name, justify="right")
    for stage in record["stages"]:
        table.add_row(
            stage["attack"],
            str(stage["entered"]),
            str(stage["broken"]),
            f"{stage['accuracy']:.2%}",
            "" if stage["alone"] is None else f"{stage['alone']:.2%}",
            f"{stage['forwards']:,}",
            f"{stage['backwards']:,}",
            f"{stage['seconds']:.1f}",
        )
    for note in dict.fromkeys(note for stage in record["stages"] for note in stage["notes"]):
        table.caption = f"{table.caption or ''} {note}".strip()
    return table


def _classes(records: Sequence[Mapping[str, Any]]) -> Table:
    names = list(records[0]["per_class"])
    table = _table("per class")
    table.add_column("attack")
    for name in names:
        table.add_column(name, justify="right")
    for record in records:
        cells = (record["per_class"][name]["accuracy"] for name in names)
        table.add_row(record["attack"], *(f"{cell:.0%}" for cell in cells))
    return table


def write_catalogue(what: str | None) -> None:
    """Show what there is: methods, attacks, models or data sets; None: all of them."""
    from equipoise.attacks import ATTACKS
    from equipoise.data import DATASETS
    from equipoise.models import MODELS
    from equipoise.settings.methods import METHODS

    catalogue: dict[str, Iterable[tuple[str, ...]]] = {
        "methods": (_method(name) for name in METHODS),
        "attacks": ((name, about) for name, (_, about) in ATTACKS.items()),
        "models": ((name, about) for name, (_, about) in MODELS.items()),
        "data": ((name, f"{d.title}, {d.n:,} images") for name, d in DATASETS.items()),
    }
    if what is not None and what not in catalogue:
        raise UserError(nearest(what, [*catalogue, "presets"], "list"))
    console = _console()
    for name in [what] if what else catalogue:
        table = _table(name)
        table.add_column(name.removesuffix("s"))
        table.add_column("what it is")
        for column in ("cost", "parameters", "paper") if name == "methods" else ():
            table.add_column(column)
        for row in catalogue[name]:
            table.add_row(*row)
        console.print(table)
    if what in (None, "methods"):
        console.print(
            "cost: gradient evaluations (a pass forward and backward) an image of a batch, by "
            "default, at most.\nAll settings of a method: equipoise list methods METHOD; its loss "
            "as a formula: equipoise explain METHOD",
            markup=False,
        )


def _method(name: str) -> tuple[str, ...]:
    """Return the row of a method: what it is, its price, its main parameters, its paper."""
    from equipoise.settings.explanation import price
    from equipoise.settings.methods import METHODS

    kind = METHODS[name]
    parameters = (f"{path.split('.')[-1]}={_written(kind(), path)}" for path in kind.shown)
    return name, _first_line(kind), str(price(name)), " ".join(parameters), kind.paper


def _written(settings: Any, path: str) -> str:
    """Return the value of a setting as one would give it."""
    for part in path.split("."):
        settings = getattr(settings, part)
    return f"[{','.join(map(str, settings))}]" if isinstance(settings, tuple) else str(settings)


def write_settings(method: str) -> None:
    """Show every setting of a method with its meaning and default, those of a recipe included."""
    import inspect

    from equipoise.settings import recipe
    from equipoise.settings.methods import METHODS
    from equipoise.terminal.meanings import groups

    if method not in METHODS:
        raise UserError(nearest(method, METHODS, "method"))
    console = _console()
    about = inspect.cleandoc(METHODS[method].__doc__ or "").partition("Arguments:")[0]
    console.print(about.strip() + "\n", markup=False)
    for group in groups(method):
        if not group.rows:
            continue
        table = _table(f"{group.path or 'settings'}: {group.title}".rstrip(": "))
        for column in ("setting", "default", "meaning"):
            table.add_column(column, no_wrap=column == "setting")
        for name, value, text in group.rows:
            dot = "." if group.path else ""
            table.add_row(f"{group.path}{dot}{name}", _plain(value), Text(text))
        console.print(table)
    console.print("Defaults, as a recipe has them:", style="bold")
    text = yaml.safe_dump(recipe.defaults(method), sort_keys=False, default_flow_style=None)
    console.print(f"method: {method}\n{text}", markup=False, end="")


def _plain(value: Any) -> Text:
    """Return a default as a recipe has it."""
    from equipoise.settings.schema import plain

    flow = yaml.safe_dump(plain(value), default_flow_style=True).strip()
    return Text(flow.removesuffix("...").strip())


def write_data(data_dir: Path | None) -> None:
    """Show which data sets were found, where was looked, and how to get the rest."""
    from equipoise.data import status

    console = _console()
    for entry in status(data_dir):
        mark = "found" if entry.found else "refused" if entry.problem else "not found"
        console.print(f"{entry.name}: {mark}", style="bold", markup=False)
        console.print(
            f"  {entry.title}, {entry.n:,} images; licence: {entry.licence}", markup=False
        )
        if entry.copy:
            console.print(f"  {entry.copy}", markup=False)
        if entry.problem:
            console.print(f"  {entry.problem}", markup=False)
        if not entry.found:
            console.print(f"  looked in {', '.join(map(str, entry.looked))}", markup=False)
            console.print(f"  {entry.remedy}", markup=False)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0]


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")


def _console() -> Console:
    import sys

    width = None if sys.stdout.isatty() else 140
    return Console(highlight=False, soft_wrap=False, width=width)


def write_front(record: "FrontRecord") -> None:
    """Show a measured front: its points, other runs beside it, and the barrier in words.

    Arguments:
        record: The front.
    """
    from equipoise.threat import Threat

    console, threat = _console(), Threat(record.norm, record.eps)  # type: ignore[arg-type]
    table = _table(f"{threat}, {record.images}; {record.attack}")
    table.add_column("gamma")
    for name in ("clean", "95 % interval", "robust", "95 % interval", "transferred", "searched"):
        table.add_column(name, justify="right")
    table.add_column("")
    named = dict(zip((0.0, 1.0), record.ends, strict=True))
    marks = {mark.gamma: mark.what for mark in record.marks}
    for point in record.points:
        told = [named.get(point.gamma, ""), marks.get(point.gamma, "")]
        table.add_row(f"{point.gamma:g}", *_measures(point), ", ".join(filter(None, told)))
    for other in record.others:
        table.add_row("", *_measures(other.point), other.name)
    console.print(table)
    console.print(record.words, markup=False)


def _measures(point: "Point") -> list[str]:
    cells: list[str] = []
    for value, (low, high) in (
        (point.clean_accuracy, point.clean_interval),
        (point.robust_accuracy, point.robust_interval),
    ):
        cells += [f"{value:.2%}", f"{low:.1%} .. {high:.1%}"]
    return [*cells, str(point.transferred), str(point.searched)]
