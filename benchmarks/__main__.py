"""``python -m benchmarks``, in a checkout: see ``python -m benchmarks --help``.

Heavy imports stand inside the command, so that ``--help`` is quick.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from equipoise import plugins
from equipoise.cli import run as run_app
from equipoise.cli.options import DataDir, Quiet, Trust
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

NAME = "python -m benchmarks"
EPILOG = """The benchmarks:

\b
  attack    PGD() on eq.fast(model), on the model itself and in eq.evaluate, the bare
            passes of it, torchattacks, foolbox
  train     a step of A3GT or, with --learners 1, of PGD-AT: ours, also compiled, and a
            plain loop with torchattacks, also in bfloat16
  evaluate  standard AutoAttack: ours with and without checks, and pyautoattack;
            verdicts are compared image by image
  growth    time and memory of our PGD against batch size, images, steps, classes
            and pixels: powers, and a figure beside the file

Without --what: attack and train on small-cnn and resnet-18, attack on stranger-resnet-18
(a plain ResNet-18 of the benchmarks), and evaluate on the embedded digits; and the
targets that were reached. A missed target is no error.

For peers that are not installed the command to install them is shown. Peak memory is
measured in a separate process for each side.

\b
  python -m benchmarks --what attack --model resnet-18 --batch-size 128
  python -m benchmarks runs/a3gt --what evaluate --images 200 --sides pyautoattack -n 1
  python -m benchmarks --what growth --width 0.5
"""

app = typer.Typer(
    name="benchmarks",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _option(help: str, *names: str, **settings: Any) -> Any:  # noqa: A002 - typer's name for it
    return typer.Option(*names, help=help, **settings)


@app.command(epilog=EPILOG)
def bench(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|MODEL",
            help="With --what evaluate: the run folder of the model; else the same as --model.",
        ),
    ] = None,
    what: Annotated[
        str | None, _option("attack, train, evaluate or growth; all but the last.")
    ] = None,
    model: Annotated[
        str | None,
        _option("A network: see `equipoise list models`; or stranger-resnet-18; small-cnn."),
    ] = None,
    width: Annotated[float | None, _option("A factor on its features; 1, growth 0.25.")] = None,
    size: Annotated[int | None, _option("Pixels of an image a side; 28 or 32.")] = None,
    channels: Annotated[int | None, _option("Channels of an image; 1 or 3.")] = None,
    classes: Annotated[int | None, _option("Classes; 10.")] = None,
    batch_size: Annotated[
        int | None, _option("Images at a time; 64, growth 16, evaluate as eq.evaluate.")
    ] = None,
    steps: Annotated[int | None, _option("Steps of PGD; 10, for growth 2.")] = None,
    learners: Annotated[
        int | None, _option("With --what train: 2 (A3GT as published) or 1 (PGD-AT); 2.")
    ] = None,
    eps: Annotated[
        str | None, _option("The radius; 0.1 for small-cnn, else 8/255; evaluate: the run's.")
    ] = None,
    norm: Annotated[
        str | None, _option("With --what evaluate: linf, l2 or l1; that of the run.")
    ] = None,
    images: Annotated[
        int | None, _option("With --what evaluate: N test images, a stratified sample; 500.")
    ] = None,
    sides: Annotated[
        str | None,
        _option("The sides to compare with ours, separated by commas; also ours-float32."),
    ] = None,
    repeats: Annotated[int, _option("How often each side is timed.", "-n")] = 5,
    threads: Annotated[int | None, _option("Threads of a CPU; torch's choice.")] = None,
    device: Annotated[str, _option("auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, _option("Arithmetic of our side: float32, bfloat16 or auto; peers run in float32.")
    ] = "auto",
    update: Annotated[
        str,
        _option("Arithmetic of our training step: float32, bfloat16 or auto, that of the search."),
    ] = "float32",
    layout: Annotated[
        str, _option("Layout of our side: channels_last, contiguous or auto.")
    ] = "auto",
    compile: Annotated[bool, _option("Compile our search; the first step takes long.")] = False,  # noqa: A002
    memory: Annotated[
        bool, _option("Measure peak memory, in a separate process for each side.")
    ] = True,
    cpu_time: Annotated[
        bool, _option("Count seconds of the processor: for a machine that is shared.")
    ] = False,
    seed: Annotated[int, _option("Seed of weights, images and attacks.")] = 0,
    trust: Trust = False,
    data_dir: DataDir = None,
    out: Annotated[
        Path, _option("Everything as JSON, each single time included.", metavar="FILE")
    ] = Path("bench.json"),
    quiet: Quiet = False,
    own_file: Annotated[
        Path | None,
        _option(
            "A Python file that is run first: it may add networks.",
            "--import",
            envvar=plugins.VARIABLE,
        ),
    ] = None,
    memory_of: Annotated[
        str | None, _option("Measure the memory of one side.", "--memory-of", hidden=True)
    ] = None,
) -> None:
    """Time this project and other packages on the same work, in one process.

    The sides run in turn, on the same model, images, labels, steps, batches and threads, each
    after a run that is not timed. The tables have medians with their range, and ratios to ours
    pair by pair. Ctrl-C keeps the results so far.
    """
    if own_file is not None:
        plugins.run(own_file)
    if memory_of is not None:
        from benchmarks.job import memory_of as child

        typer.echo(child(json.load(sys.stdin)))
        return
    from benchmarks import job
    from benchmarks.memory import measured
    from equipoise.execution import LAYOUTS, PRECISIONS, Execution
    from equipoise.parsing import choice
    from equipoise.store.runs import Run
    from equipoise.terminal.table import output
    from equipoise.threat import NORMS

    run, model = _run_or_model(subject, model)
    given = {
        "run": run,
        "model": model,
        "width": width,
        "size": size,
        "channels": channels,
        "classes": classes,
        "batch_size": batch_size,
        "steps": steps,
        "learners": learners,
        "eps": _radius(eps),
        "norm": None if norm is None else choice(norm, "--norm", NORMS),
        "images": images,
        "data_dir": None if data_dir is None else str(data_dir),
        "device": device,
        "seed": seed,
        "execution": Execution(
            precision=choice(precision, "--precision", PRECISIONS),
            update=choice(update, "--update", PRECISIONS),
            layout=choice(layout, "--layout", LAYOUTS),
            compile=compile,
        ),
    }
    names = [name.strip() for name in (sides or "").split(",") if name.strip()]
    benches = job.plan(what, names, **{k: v for k, v in given.items() if v is not None})
    if trust and run is not None:
        plugins.run_trusted(Run.open(run).made_with(), Console(quiet=quiet).warn)
    job.run(
        benches,
        out,
        repeats=repeats,
        threads=threads,
        measure=measured if memory else None,
        cpu_time=cpu_time,
        terminal=output(),
        console=Console(quiet=quiet),
    )


def _run_or_model(subject: str | None, model: str | None) -> tuple[str | None, str | None]:
    """Return the run folder and the network, given by position or by --model."""
    from benchmarks.case import MODELS

    if subject is None or subject not in MODELS or Path(subject).is_dir():
        return subject, model
    if model is not None:
        raise UserError(f"the model is given twice: {subject} and --model {model}")
    return None, subject


def _radius(text: str | None) -> float | None:
    """Return the radius in an option."""
    from equipoise.parsing import numbers

    if text is None:
        return None
    values = numbers(text, "--eps")
    if len(values) != 1:
        raise UserError(f"--eps takes one number like 8/255, got {text!r}")
    return values[0]


def main() -> None:
    """Run the command line."""
    run_app(app, NAME)


if __name__ == "__main__":
    main()
