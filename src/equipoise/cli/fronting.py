"""``equipoise front`` and ``pick``."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from equipoise.cli import options
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

FRONT_EPILOG = (
    "Next: equipoise pick RUN --min-clean 0.88 --out runs/picked. After an interruption the same "
    "command continues; with more --points it measures further models."
)
PICK_EPILOG = (
    "The bounds hold for all measured models together with 95 % probability, so they stay valid "
    "for the chosen one. Exit code 1: no measured model meets the constraint."
)

BatchNorm = Annotated[
    str | None,
    typer.Option(
        help="Statistics of BatchNorm between the ends: average (of the two ends), or estimate "
        "(on a mix of clean and adversarial training images)."
    ),
]
Ends = Annotated[
    tuple[str, str] | None,
    typer.Option(
        metavar="CLEAN ROBUST",
        help="The two ends, models of one architecture: run folders, .safetensors files in them, "
        "or names of weights of RUN, like last or round-005. Default: the learners of RUN.",
    ),
]

Third = Annotated[
    str | None,
    typer.Option(
        help="A third end, robust in another threat, that of its own training: given like an end. "
        "Default: the first further learner of RUN (more.NAME), unless --ends are given."
    ),
]


def front(
    run: options.RunFolder,
    ends: Ends = None,
    third: Third = None,
    others: Annotated[
        list[Path] | None,
        typer.Option("--with", help="Also measure the model of this run; may be repeated."),
    ] = None,
    eps: options.Eps = None,
    norm: options.Norm = None,
    attacks: options.Attacks = None,
    n: options.Size = None,
    first: options.First = False,
    points: Annotated[
        int | None,
        typer.Option(
            help="The largest number of models to measure. Default: 9; between three ends 15."
        ),
    ] = None,
    beyond: Annotated[
        float, typer.Option(help="How far beyond the ends gamma may go, below 0 and above 1.")
    ] = 0.0,
    batchnorm: BatchNorm = None,
    seed: options.Seed = 0,
    nonce: options.Nonce = None,
    batch_size: options.BatchSize = None,
    precision: options.Precision = "auto",
    time: options.Time = None,
    shard: options.ShardText = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    model: options.AgainModel = None,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Measure the models between a clean and a robust one.

    By default the ends are the learners of RUN; the held-out training images, on which
    all is measured, and the threat are its own.
    Each model is a mix of the weights of two ends: gamma of the robust and 1 - gamma of the clean
    end. Further models are measured between the neighbours that differ most. The adversarial
    examples of neighbours are tried first. A table is printed; front.json, front.svg and front.png
    are written to RUN. With a third end the models are the mixes of all three on an even grid, and
    each is attacked in both threats. In shards (--shard) further models lie in the widest gaps.
    """
    from equipoise.fronts.survey import DEFAULT
    from equipoise.jobs.front import drawn, measure_front
    from equipoise.jobs.front_shards import join_front
    from equipoise.jobs.join import together
    from equipoise.jobs.shards import Shard
    from equipoise.store.runs import Run

    radii, console = options.radii_of(eps), Console(quiet=quiet)
    if len(radii) > 1:
        raise UserError(f"a front has one radius; got --eps {eps}")
    for folder in (run, *(others or ())):  # first: its file may add attacks
        Run.open(folder).allow(model, trust=trust, warn=console.warn)
    protocol = options.protocol_of(
        attacks=DEFAULT if attacks is None else attacks,
        norm=norm,
        eps=radii[0] if radii else None,
        n=n,
        first=first,
        seed=seed,
        nonce=nonce,
        batch_size=batch_size,
        precision=precision,
    )
    record = measure_front(
        run,
        protocol,
        ends=_ends(ends, third),
        others=others or (),
        batchnorm=cast(Any, batchnorm),
        data_dir=data_dir,
        device=device,
        console=console,
        points=points,
        beyond=beyond,
        limit=options.limit_of(time),
        shard=Shard.here() if shard is None else Shard.parse(shard),
    )
    if record is None and shard is None and together():
        joined = join_front(run, data_dir=data_dir, device=device, console=console)
        record = drawn(joined, Run.open(run), console)
    if record is not None:
        record.shown().show()


def _ends(pair: tuple[str, str] | None, third: str | None) -> tuple[str, ...] | None:
    """Return the ends by name; None: the usual ones."""
    from equipoise.store.weight_names import PAIR

    return pair if third is None else (*(pair or PAIR), third)


def pick(
    run: options.RunFolder,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the picked model; default: RUN-picked.")
    ] = None,
    max_clean_drop: Annotated[
        str | None,
        typer.Option(help="The largest loss of clean accuracy, like 0.01 or 1%."),
    ] = None,
    min_clean: Annotated[
        str | None, typer.Option(help="The smallest clean accuracy, like 0.88 or 88%.")
    ] = None,
    min_worst_class: Annotated[
        str | None, typer.Option(help="The smallest clean accuracy of every class, like 80%.")
    ] = None,
    min_robust: Annotated[
        str | None,
        typer.Option(
            help="The smallest robust accuracy, like 0.7 or 70%. Between three ends that in both "
            "threats, or linf=0.5, l2=0.4, linf=0.5,l2=0.4 by threat; also with --min-clean."
        ),
    ] = None,
    gamma: Annotated[
        float | None,
        typer.Option(help="Take the model at this gamma: 0 is the clean end, 1 the robust one."),
    ] = None,
    standard: Annotated[
        Path | None,
        typer.Option(help="With --max-clean-drop: the run whose clean accuracy is the reference."),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help="With --max-clean-drop: the clean accuracy that is the reference."),
    ] = None,
    ends: Ends = None,
    third: Third = None,
    batchnorm: BatchNorm = None,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    model: options.AgainModel = None,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Pick a model from a measured front; write it as a run folder.

    The picked model is the most robust one whose 95 % lower bound of clean accuracy meets the
    constraint; with --min-robust it is the most accurate one whose robust accuracy does. The
    choice uses held-out images, never test images.
    """
    from equipoise.jobs.front import pick as job

    job(
        run,
        out or run.resolve().with_name(f"{run.resolve().name}-picked"),
        ends=_ends(ends, third),
        batchnorm=cast(Any, batchnorm),
        data_dir=data_dir,
        device=device,
        model=model,
        trust=trust,
        console=Console(quiet=quiet),
        max_clean_drop=max_clean_drop,
        min_clean=min_clean,
        min_worst_class=min_worst_class,
        min_robust=min_robust,
        gamma=gamma,
        standard=standard,
        reference=reference,
    )
