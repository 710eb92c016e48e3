"""``equipoise harden``: from a model and images to a more robust one that keeps a clean floor."""

from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from equipoise.cli import options
from equipoise.errors import RunError, UserError
from equipoise.terminal.progress import Console

HARDEN_EPILOG = (
    "Settings are those of `train`: rounds=8 validation_attack=pgd-5 robust.lr=0.01. Exit code 1: "
    "the floor is not promised; the nearest model is written, and it is said how many held-out "
    "images would do. Next: equipoise export OUT, evaluate OUT, report OUT."
)


def harden(
    context: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN",
            help="The model: a name, package.module:function, timm:NAME, hf:NAME, "
            "torchvision:NAME; or a run folder, for its model, weights and data.",
        ),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The folder of everything; required.", metavar="DIR")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Dataset, .npz file, folder of images (train/CLASS/*, val/..., test/..., or "
            "CLASS/*), or hf-datasets:NAME."
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The file of the model's weights, or FILE:KEY.")
    ] = None,
    normalise: options.Normalise = None,
    mean: options.Mean = None,
    std: options.Std = None,
    eps: Annotated[
        str | None,
        typer.Option(help="The radius, like 2/255; default: the usual one of the data."),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1; default: linf.")] = None,
    max_clean_drop: Annotated[
        str, typer.Option(help="The largest loss of clean accuracy, like 0.01 or 1%.")
    ] = "1%",
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Plan rounds, points and test images so that all takes about this time, like "
            "30m or 2h.",
        ),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--n", help="Evaluate on a stratified sample of N test images; default: 1000."
        ),
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="The most models of the front; default: 9.")
    ] = None,
    data_dir: options.DataDir = None,
    size: options.ImageSize = None,
    resize: options.Resize = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    classes: options.Classes = None,
    on_bad_image: options.OnBadImage = None,
    download: options.Download = False,
    seed: Annotated[int | None, typer.Option(help="Random seed of the training.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; default: auto.")] = None,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a trained model robust, and keep its clean accuracy.

    First it is said how breakable the model is today, then what will be done and how long it
    takes. A clean and a robust branch are trained from the model's weights; models between them
    are measured on held-out images; the most robust one is kept that loses at most
    --max-clean-drop against the original, with 95 % confidence. Both are evaluated on test
    images. After an interruption the same command goes on.
    """
    began = monotonic()
    from equipoise.jobs.harden import harden_recipe
    from equipoise.settings import recipe as recipes

    if out is None:
        raise UserError("expected --out runs/NAME, the folder of everything")
    options_ = {
        "data": data,
        "weights": weights,
        "normalise": _normalisation(normalise, mean, std),
        "eps": None if eps is None else _radius(eps),
        "norm": norm,
        "data_dir": str(data_dir) if data_dir else None,
        "seed": seed,
        "device": device,
        **{name: context.params[name] for name in options.READING},
    }
    console = Console(quiet=quiet)
    named = {key: value for key, value in options_.items() if value is not None}
    changed = recipes.overrides(settings or [])
    for name in changed.keys() & named.keys():
        raise UserError(f"{name} is given twice: as {name}=... and as --{name.replace('_', '-')}")
    first: Mapping[str, Any] = {"model": what}
    if Path(what).is_dir():
        first = _of_run(Path(what), trust, console, data="data" in {**named, **changed})
    elif "data" not in {**named, **changed}:
        raise UserError("expected --data: a dataset, a folder of images, or an .npz file")
    options.fetch(download, what)
    result = harden_recipe(
        {**first, **named, **changed},
        out,
        max_clean_drop=max_clean_drop,
        points=points,
        n=n,
        limit=options.limit_of(time),
        console=console,
        clock=monotonic,
        began=began,
    )
    result.shown().show()
    if not result.promised:
        raise RunError(
            "the floor is not promised; the nearest model is in " + str(result.run.path)
        )


def _radius(eps: str) -> float:
    radii = options.radii_of(eps)
    if len(radii) != 1:
        raise UserError(f"a hardening has one radius; got --eps {eps}")
    return radii[0]


def _normalisation(normalise: str | None, mean: str | None, std: str | None) -> Any:
    """Return the normalisation as a recipe has it."""
    from equipoise.models.normalisation import Constants, asked_for

    asked = asked_for(normalise, mean, std)
    return normalise or (asked.content() if isinstance(asked, Constants) else None)


def _of_run(path: Path, trust: bool, console: Console, *, data: bool) -> Mapping[str, Any]:
    """Return model, weights and data of a run folder, as settings; ``data``: others are given."""
    from equipoise.models.origin import is_own
    from equipoise.settings import recipe as recipes
    from equipoise.store.runs import Run

    run = Run.open(path)
    run.allow(trust=trust, warn=console.warn)
    there = recipes.stored(run)
    if is_own(there.model) and not trust:
        raise UserError(
            f"the model of {path} is {there.model}, and no code is run because a folder names it: "
            "look at it, then add --trust, or give that function in place of the folder, with "
            "--weights and --data"
        )
    of_data = () if data else ("data", "data_dir", *options.READING)
    keys = ("model", "width", "norm", "eps", "limit", "subset", "seed", *of_data)
    file = str(run.path / "model.safetensors")
    return {key: getattr(there, key) for key in keys} | {"weights": file}
