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

REPORT = Path("report.html")

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
    from equipoise.jobs import train as job

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
    if "method" in recipes.overrides(settings or []):
        raise UserError(f"the method is {what}; give it once")
    if what.endswith((".yaml", ".yml")):
        base = recipes.read(Path(what))
    base = recipes.combine(base, given, recipes.overrides(settings or []))
    job.train(recipes.parse(base), out, console=_console(quiet))


@app.command(
    epilog="AutoAttack: --attacks autoattack. Table 2 of a paper, each attack alone and as a "
    "stage: --attacks pgd-20,autoattack --individual. A model of your own: --model "
    "package.module:function --weights FILE --data cifar10 --eps 8/255."
)
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="The run folder.")] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            help="Attacks, by commas; see `equipoise list attacks`. -K is K steps, options "
            "stand in brackets: square(queries=1000). By default fgsm, pgd-20, mi-fgsm-10 and "
            "cw-inf-30, where defined."
        ),
    ] = None,
    individual: Annotated[
        bool | None,
        typer.Option(
            "--individual/--staged",
            help="Every attack alone on all correctly classified images; or each on what "
            "withstood those before. By default the stages of an ensemble are staged, and "
            "attacks that are named alone run alone.",
        ),
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Radii, by commas, like 8/255; that of the training.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1; that of the training.")] = None,
    n: Annotated[int | None, typer.Option("-n", help="The first N test images; all.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted evaluation.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="A model of your own: package.module:function, an nn.Module."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="With --model: a data set, or the path of an .npz.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --model: the folder of the results.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the attacks; 0.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at a time: memory, not results.")] = 250,
    precision: Annotated[
        str,
        typer.Option(help="Of the search: float32, bfloat16 or auto. The judge is float32."),
    ] = "auto",
    passes: Annotated[
        int | None, typer.Option(help="Forward passes a verdict, for models that are random.")
    ] = None,
    checks: Annotated[
        bool, typer.Option(help="Look for what would make the numbers untrustworthy.")
    ] = True,
    transfer: Annotated[
        list[Path] | None,
        typer.Option(help="Try the adversarial examples of this run, too; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(help="model (the kept one) or last; with --model: the file of its weights."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the records here.")] = None,
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Attack a model on test images; print and keep the verdicts.

    The worst case counts an image as robust only if it withstood all attacks, those of earlier
    evaluations of the same weights on the same images included. Ctrl-C keeps what was found;
    --resume goes on inside the running attack.
    """
    from equipoise.jobs.evaluate import Options, evaluate_subject
    from equipoise.jobs.subject import of_model, of_run
    from equipoise.tables import write_table
    from equipoise.threat import NORMS
    from equipoise.values import choice, numbers

    if json is not None and not json.absolute().parent.is_dir():
        raise UserError(f"--json {json}: there is no folder {json.absolute().parent}")
    options = Options(
        attacks=attacks,
        individual=individual,
        eps=numbers(eps, "--eps") if eps else (),
        norm=choice(norm, "--norm", NORMS) if norm else None,
        n=n,
        seed=seed,
        batch_size=batch_size,
        precision=choice(precision, "--precision", ("auto", "float32", "bfloat16")),
        passes=passes,
        checks=checks,
        transfer=transfer or (),
        resume=resume,
        device=device,
    )
    console = _console(quiet)
    options.check()
    if model is None:
        if run is None or data is not None or out is not None:
            raise UserError(
                "expected a run folder, or --model package.module:function --data ... "
                "(see equipoise evaluate --help)"
            )
        which = choice(weights or "model", "--weights", ("model", "last"))
        subject = of_run(run, which, data_dir, console)
    else:
        if run is not None or data is None:
            raise UserError("--model needs --data, and no run folder")
        file = Path(weights) if weights else None
        subject = of_model(model, weights=file, data_name=data, data_dir=data_dir, out=out)
        console.say(f"results go to {subject.run.path}")
    records = evaluate_subject(subject, options, console)
    if json is not None:  # first: a closed pipe ends the table
        _write_json(json, records)
    write_table(records)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="The run folder.")],
    data_dir: DataDir = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    quiet: Quiet = False,
) -> None:
    """Check every stored adversarial example again, by forward passes alone.

    Each must be finite, in the range, in the ball (in float64), and misclassified by the float32
    model; the robust accuracy follows from that. Any changed byte is found: exit code 1.
    """
    from equipoise.jobs.verify import verify_run

    verify_run(run, data_dir=data_dir, device=device, console=_console(quiet))


def _write_json(path: Path, records: list[dict[str, Any]]) -> None:
    import json

    try:
        path.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}; the run has the records") from None


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, to stand side by side.")],
    out: Annotated[Path, typer.Option(help="The page; or tables, as .md.")] = REPORT,
) -> None:
    """Write one self-contained page: results, curves, examples, provenance."""
    from equipoise.report import build

    typer.echo(build(runs, out))


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(metavar="[methods|attacks|models|data]", help="What to list.")
    ] = None,
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", help="A method: list its settings.")
    ] = None,
) -> None:
    """List methods, attacks, models and data sets; or the settings of a method."""
    from equipoise.tables import write_catalogue, write_settings

    if name is not None:
        if what != "methods":
            raise UserError("only a method has settings: equipoise list methods NAME")
        write_settings(name)
    else:
        write_catalogue(what)


@data_app.callback()
def data(context: typer.Context, data_dir: DataDir = None) -> None:
    """Show which data sets are there, which verified copy, and how to get the others."""
    if context.invoked_subcommand is None:
        from equipoise.tables import write_data

        write_data(data_dir)


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="The data set.")],
    yes: Annotated[bool, typer.Option("--yes", help="Really download.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Another http(s) folder to take it from.")
    ] = None,
    data_dir: DataDir = None,
    quiet: Quiet = False,
) -> None:
    """Download a data set: resumable, and verified by checksum before it is put in place."""
    from equipoise.data import DATASETS, get

    if name in DATASETS and not yes:
        source = DATASETS[name]
        place = base or (source.remote.base if source.remote else "nowhere")
        raise UserError(
            f"this downloads {source.title} from {place} (licence: {source.licence}); "
            f"agree with: equipoise data get {name} --yes"
        )
    typer.echo(get(name, data_dir, base=base, progress=not quiet))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the two runs and the page go.")] = Path(
        "runs/demo"
    ),
    quiet: Quiet = False,
) -> None:
    """Train an undefended and an A3GT model on digits, attack both, write a report."""
    from equipoise.jobs.demo import run_demo

    run_demo(out, console=_console(quiet))


def main() -> None:
    """Run the command line; errors are one line, with exit code 2 or 1."""
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except UserError as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(str(error), 1)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    except Exception as error:
        _explain(error)
        raise


def _explain(error: Exception) -> None:
    """Exit with one line for errors of the command line's parser and of memory.

    Both are told by their names: the parser may be typer's own copy of click, and torch should
    not be imported for an error.
    """
    kind = type(error).__name__
    if kind == "NoArgsIsHelpError":
        typer.echo(error.format_message())  # type: ignore[attr-defined]
        sys.exit(2)
    if kind == "Abort":
        _fail("interrupted", 130)
    if kind in ("MemoryError", "OutOfMemoryError"):
        _fail("out of memory: lower batch_size, or --batch-size in an evaluation", 1)
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "equipoise"
        _fail(f"{error.format_message()} (see {where} --help)", 2)


def _fail(message: str, code: int) -> None:
    typer.echo(f"equipoise: {' '.join(message.split())}", err=True)
    sys.exit(code)
