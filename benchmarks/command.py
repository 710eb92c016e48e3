"""The one command. Heavy imports stand inside it, so that ``--help`` is quick."""

__all__ = ["EPILOG", "bench"]

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli.options import DataDir, Quiet, Trust, console_of
from equipoise.errors import UserError

EPILOG = """What there is:

\b
  attack    PGD() on eq.fast(model), on the model itself and in eq.evaluate, the bare
            passes it consists of, torchattacks, foolbox
  train     a step of A3GT: ours, and a loop as one writes it with torchattacks
  evaluate  standard AutoAttack: ours with and without checks, and pyautoattack;
            verdicts are compared image by image
  growth    time and memory of our PGD against batch size, images, steps, classes
            and pixels: powers, and a figure beside the file

Without --what: attack and train on small-cnn and resnet-18, attack on stranger-resnet-18
(a plain ResNet-18 of the bench), and evaluate on the embedded digits; and what of the
house's bars was reached. A slow machine fails nothing.

Peers that are not installed are named with the command that installs them. Peak memory
is measured in a process of its own for each side.

\b
  python -m benchmarks --what attack --model resnet-18 --batch-size 128
  python -m benchmarks runs/a3gt --what evaluate --images 200 --sides pyautoattack -n 1
  python -m benchmarks --what growth --width 0.5
"""


def bench(
    subject: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN|MODEL",
            help="With --what evaluate: the run folder whose model is it; else as --model.",
        ),
    ] = None,
    what: Annotated[
        str | None, typer.Option(help="attack, train, evaluate or growth; all but the last.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A network: see `equipoise list models`; or stranger-resnet-18; small-cnn."
        ),
    ] = None,
    width: Annotated[
        float | None, typer.Option(help="A factor on its features; 1, for growth 0.25.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Pixels of an image a side; 28 for small-cnn, else 32.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(help="Channels of an image; 1 for small-cnn, else 3.")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Classes; 10.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images at a time; 64, evaluate 250, growth 16.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of PGD; 10, for growth 2.")] = None,
    eps: Annotated[
        str | None,
        typer.Option(help="The radius; 0.1 for small-cnn, else 8/255; evaluate: the run's."),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="With --what evaluate: linf, l2 or l1; that of the run.")
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(help="With --what evaluate: N test images, a stratified sample; 500."),
    ] = None,
    sides: Annotated[
        str | None,
        typer.Option(help="Who takes part besides ours, by commas; ours-float32 is one more."),
    ] = None,
    repeats: Annotated[int, typer.Option("-n", help="How often each side is timed.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of a CPU; torch's choice.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of our side: float32, bfloat16 or auto; peers are in float32.")
    ] = "auto",
    update: Annotated[
        str, typer.Option(help="Of our training step: float32, bfloat16 or auto, as the search.")
    ] = "float32",
    layout: Annotated[
        str, typer.Option(help="Of our side: channels_last, contiguous or auto.")
    ] = "auto",
    compile: Annotated[  # noqa: A002 - torch's name for it
        bool, typer.Option(help="Compile our search, which takes time at first.")
    ] = False,
    memory: Annotated[
        bool, typer.Option(help="Measure peak memory, in a process for each side.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights, images and attacks.")] = 0,
    trust: Trust = False,
    data_dir: DataDir = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="Everything as JSON, each single time included.")
    ] = Path("bench.json"),
    quiet: Quiet = False,
    memory_of: Annotated[
        str | None, typer.Option("--memory-of", hidden=True, help="An order, for such a process.")
    ] = None,
) -> None:
    """Time ours and others side by side, on the same work, in one process.

    The sides take turns, on the same model, images, labels, steps, batches and threads, each
    after a run that is not timed. Shown are medians with their range, and ratios to ours pair by
    pair. Ctrl-C keeps what was measured.
    """
    if memory_of is not None:
        from benchmarks.job import memory_of as child

        typer.echo(child(json.load(sys.stdin)))
        return
    from rich.console import Console as Terminal

    from benchmarks.job import bench as job
    from benchmarks.plan import Options
    from equipoise.execution import LAYOUTS, PRECISIONS
    from equipoise.parsing import choice
    from equipoise.plugins import run_trusted
    from equipoise.store.runs import Run

    run, model = _run_or_model(subject, model)
    options = Options(
        what=what,
        run=run,
        model=model,
        width=width,
        size=size,
        channels=channels,
        classes=classes,
        batch_size=batch_size,
        steps=steps,
        eps=_radius(eps),
        norm=norm,
        images=images,
        sides=tuple(name.strip() for name in (sides or "").split(",") if name.strip()),
        repeats=repeats,
        threads=threads,
        device=device,
        precision=choice(precision, "--precision", PRECISIONS),
        update=choice(update, "--update", PRECISIONS),
        layout=choice(layout, "--layout", LAYOUTS),
        compile=compile,
        memory=memory,
        seed=seed,
        data_dir=data_dir,
    )
    if trust and run is not None:
        run_trusted(Run.open(run).made_with(), console_of(quiet).warn)
    terminal = Terminal(highlight=False, width=None if sys.stdout.isatty() else 140)
    job(options, out, terminal=terminal, console=console_of(quiet))


def _run_or_model(subject: str | None, model: str | None) -> tuple[Path | None, str | None]:
    """Return the run folder and the network that are named, by position or by --model."""
    from equipoise.models import MODELS

    if subject is None or subject not in MODELS or Path(subject).is_dir():
        return None if subject is None else Path(subject), model
    if model is not None:
        raise UserError(f"the model is given twice: {subject} and --model {model}")
    return None, subject


def _radius(text: str | None) -> float | None:
    """Return the one radius that an option names."""
    from equipoise.parsing import numbers

    if text is None:
        return None
    found = numbers(text, "--eps")
    if len(found) != 1:
        raise UserError(f"--eps takes one number like 8/255, got {text!r}")
    return found[0]
