"""The command line: each command is a function, in the modules of this package.

Heavy imports stand inside the commands, so that ``--help`` is quick.
"""

__all__ = ["app", "main", "run"]

import os
import sys
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from equipoise.cli import (
    carding,
    evaluating,
    exporting,
    fronting,
    gating,
    hardening,
    planning,
    reporting,
    scanning,
    sweeping,
    training,
)
from equipoise.errors import FOREIGN, RunError, UserError
from equipoise.version import __version__

LONGEST = 4000  # characters of a message
HELP = ["-h", "--help"]

app = typer.Typer(
    name="equipoise",
    help="Train image classifiers that stay accurate on clean and on adversarial inputs.\n\n"
    "Start with: equipoise demo",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": HELP},
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    own_file: Annotated[
        Path | None,
        typer.Option(
            "--import",
            envvar="EQUIPOISE_IMPORT",
            help="A Python file of your own that runs first; it may add methods, attacks, "
            "datasets and models.",
        ),
    ] = None,
) -> None:
    """Train image classifiers that stay accurate on clean and on adversarial inputs."""
    del version
    if own_file is not None:
        from equipoise import plugins

        plugins.run(own_file)


app.command(epilog=training.TRAIN_EPILOG)(training.train)
app.command(epilog=training.EXPLAIN_EPILOG)(training.explain)
app.command(epilog=hardening.HARDEN_EPILOG)(hardening.harden)
app.command(epilog=scanning.SCAN_EPILOG)(scanning.scan)
app.command(epilog=evaluating.EVALUATE_EPILOG)(evaluating.evaluate)
app.command()(evaluating.join)
app.command()(evaluating.verify)
app.command(epilog=carding.CARD_EPILOG)(carding.card)
app.command(epilog=exporting.EXPORT_EPILOG)(exporting.export)
app.command(epilog=gating.GATE_EPILOG)(gating.gate)
app.command(epilog=fronting.FRONT_EPILOG)(fronting.front)
app.command(epilog=fronting.PICK_EPILOG)(fronting.pick)
app.command(epilog=planning.COMPARE_EPILOG)(planning.compare)
app.command(epilog=sweeping.SWEEP_EPILOG)(sweeping.sweep)
app.command(epilog=planning.REPRODUCE_EPILOG)(planning.reproduce)
app.command()(reporting.report)
app.command("list")(reporting.list_)
data_app = typer.Typer(help="List datasets, and download them.", invoke_without_command=True)
data_app.callback()(reporting.data)
data_app.command("get")(reporting.data_get)
data_app.command("show")(reporting.data_show)
app.add_typer(data_app, name="data")
app.command()(reporting.demo)


PATHS = ["--against", "--out", "--sign", "--key", "--transfer"]
PATHS += ["--junit", "--sarif", "--json", "--data-dir"]
"""Options whose empty value would be the current folder."""


SHARED = ["train", "evaluate", "front"]
"""What the processes of torchrun can share."""


def main() -> None:
    """Run the command line."""
    run(app)


def run(app: typer.Typer, name: str = "equipoise") -> None:
    """Run an application; errors are one line, with exit code 2 or 1.

    Arguments:
        app: The application.
        name: The command that starts it, for the messages.
    """
    warnings.formatwarning = lambda message, *where: f"WARNING: {message}\n"
    try:
        code = _start(get_command(app), sys.argv[1:], name)
        sys.exit(code if isinstance(code, int) else 0)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())  # type: ignore[union-attr]
            sys.exit(2)
        message, code = _explained(error)
        if not message:
            raise
        line = " ".join(message.split())
        typer.echo(f"{name}: {line if len(line) < LONGEST else line[:LONGEST] + '...'}", err=True)
        sys.exit(code)


def _start(command: Any, words: list[str], name: str) -> Any:
    """Run a command; where help is wanted, without the groups above it, whose parsing is slow."""
    for before, word in pairwise((name, *words)):
        if not word and (before in PATHS or not before.startswith("-")):
            raise UserError(f"the word after {before} is empty: is a shell variable not set?")
    if words and words[-1] not in HELP and not words[0].startswith("-"):
        _refuse_torchrun(words[0])
    if words and words[-1] in HELP:
        while words[0] in getattr(command, "commands", {}):
            command, name, words = command.commands[words[0]], f"{name} {words[0]}", words[1:]
        return command(words, standalone_mode=False, prog_name=name, help_option_names=HELP)
    return command(standalone_mode=False, prog_name=name, help_option_names=HELP)


def _refuse_torchrun(word: str) -> None:
    """Raise a UserError for a command that several processes of torchrun cannot share."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ or word in SHARED:
        return
    if os.environ["RANK"] != "0":
        sys.exit(2)  # the first process says why
    raise UserError(
        f"{word} runs in one process: start it without torchrun, whose processes can share "
        f"{', '.join(SHARED)}"
    )


def _explained(error: BaseException) -> tuple[str, int]:
    """Return the message and the exit code of an error; no message for a fault of the program.

    Errors of the parser and of memory are recognised by their names: the parser may be typer's own
    copy of click, and torch should not be imported for an error.
    """
    kind = type(error).__name__
    if isinstance(error, UserError):
        return str(error), 2
    if isinstance(error, RunError):
        return str(error), 1
    if isinstance(error, KeyboardInterrupt) or kind == "Abort":
        return "interrupted", 130
    if isinstance(error, RecursionError):
        return "a file or a value is nested too deeply", 2
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}", 1
    if kind in ("MemoryError", "OutOfMemoryError"):
        return "out of memory: lower batch_size, or --batch-size in an evaluation", 1
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "equipoise"
        message = error.format_message().rstrip(".")
        return f"{message}{_hint(error, where)} (see {where} --help)", 2
    return "", 1


def _hint(error: BaseException, where: str) -> str:
    """Return a suggestion for an unknown option: a setting, or the name that it has here."""
    name = str(getattr(error, "option_name", "")).lstrip("-").replace("-", "_")
    if not name:
        return ""
    settings = (ours for ours, theirs in FOREIGN.items() if name in theirs.split())
    ours = next(settings, name).lstrip("-")
    if where.endswith((" train", " explain")):
        return f"; settings are written without dashes, like {ours}=VALUE."
    return f"; did you mean --{ours.replace('_', '-')}?" if ours != name else ""
