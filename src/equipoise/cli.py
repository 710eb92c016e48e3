"""The command line. Heavy imports stand inside the commands, so that ``--help`` is quick."""

__all__ = ["app", "main"]

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise import __version__
from equipoise.errors import RunError, UserError

if TYPE_CHECKING:
    from equipoise.progress import Console

app = typer.Typer(
    name="equipoise",
    help="Train image classifiers that stay accurate on clean and on adversarial inputs.\n\n"
    "Start with: equipoise demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Find and get data sets.", invoke_without_command=True)
app.add_typer(data_app, name="data")

DataDir = Annotated[
    Path | None, typer.Option(help="Folder of the data; the usual places otherwise.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show nothing but warnings.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train image classifiers that stay accurate on clean and on adversarial inputs."""
    del version


def _console(quiet: bool) -> "Console":
    from equipoise.progress import Console

    return Console(quiet=quiet)


@app.command(
    epilog="Settings are those of `equipoise list methods METHOD`, written key=value: "
    "eps=8/255 rounds=30 every=2 robust.lr=0.1 start=0.5"
)
def train(
    what: Annotated[
        str | None,
        typer.Argument(metavar="METHOD|RECIPE.yaml", help="A method's name, or a recipe."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set, or the path of an .npz.")] = None,
    data_dir: DataDir = None,
    model: Annotated[str | None, typer.Option(help="Model; see `equipoise list models`.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    quiet: Quiet = False,
) -> None:
    """Train a method, or a recipe, in a new run folder; or go on with one.

    Ctrl-C saves and stops; --resume ends with the weights of an uninterrupted run.
    """
    from equipoise import recipe as recipes
    from equipoise import train as job

    job.deterministic()
    options = {"data": data, "model": model, "seed": seed}
    options["data_dir"] = str(data_dir) if data_dir else None
    given = {key: value for key, value in options.items() if value is not None}
    if resume is not None:
        if what or settings or given or out:
            raise UserError("--resume goes on with the recipe of the folder; give it nothing else")
        job.resume(resume, console=_console(quiet))
        return
    if what is None or out is None:
        raise UserError("expected METHOD or RECIPE.yaml, and --out runs/NAME (or --resume)")
    base: dict[str, Any] = {"method": what}
    if what.endswith((".yaml", ".yml")):
        base = recipes.read(Path(what))
    base = recipes.combine(base, given, recipes.overrides(settings or []))
    job.train(recipes.parse(base), out, console=_console(quiet))


def main() -> None:
    """Run the command line; errors are one line, with exit code 2 or 1."""
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


def _fail(message: str, code: int) -> None:
    typer.echo(f"equipoise: {message}", err=True)
    sys.exit(code)
