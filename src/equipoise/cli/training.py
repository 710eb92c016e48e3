"""The commands ``train`` and ``explain``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.cli import options
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

if TYPE_CHECKING:
    from equipoise.settings.recipe import Recipe

TRAIN_EPILOG = (
    "A round (epoch) is one pass over the training images. `equipoise list methods METHOD` "
    "explains every setting; write them as key=value: eps=8/255 rounds=30 every=2 robust.lr=0.1 "
    "start=0.5"
)


def train(
    context: typer.Context,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD|RECIPE.yaml|RUN",
            help="The name of a method, a recipe, or a run folder to resume.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder to write.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume the training in this run folder.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Dataset, .npz file, folder of images (CLASS/*, or train/CLASS/*, val/..., "
            "test/...), or hf-datasets:NAME."
        ),
    ] = None,
    data_dir: options.DataDir = None,
    size: options.ImageSize = None,
    resize: options.Resize = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    classes: options.Classes = None,
    on_bad_image: options.OnBadImage = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network: a name of `equipoise list models`, package.module:function, "
            "timm:NAME, hf:NAME (or a folder) or torchvision:NAME; also for a RUN that was "
            "trained on a function.",
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="The weights to start from: a file, FILE:KEY, or random; default: those of the "
            "library or of the function."
        ),
    ] = None,
    normalise: options.Normalise = None,
    mean: options.Mean = None,
    std: options.Std = None,
    download: options.Download = False,
    seed: Annotated[int | None, typer.Option(help="Random seed of the training.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; default: auto.")] = None,
    published: Annotated[
        bool,
        typer.Option(
            "--published",
            help="Start from the settings of the method's paper; see `equipoise list presets "
            "METHOD`.",
        ),
    ] = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            help="Also log each round with tensorboard, wandb, mlflow or trackio; may be repeated."
        ),
    ] = None,
    parallel: Annotated[
        str,
        typer.Option(
            help="Under torchrun: its processes share each batch (data), or the learners of the "
            "method, with the bits of one process (learners); auto: data where it is possible."
        ),
    ] = "auto",
    trust: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a method or a recipe in a new run folder, or resume.

    Ctrl-C, SIGTERM and SIGUSR1 save and stop. A resumed training ends with the weights of an
    uninterrupted one. Under torchrun several processes share it: see docs/scaling.md.
    `--resume RUN rounds=40` trains a finished run longer; the finished model stays in a folder.
    """
    from equipoise.jobs import train as job
    from equipoise.jobs.together import terminal
    from equipoise.models.normalisation import Constants, asked_for
    from equipoise.training.processes import together

    with together() as ranks:  # of torchrun, so that an error of all of them is said once
        console = terminal(Console(quiet=quiet), ranks)
        asked = asked_for(normalise, mean, std)
        fields: dict[str, Any] = {"data": data, "seed": seed, "device": device, "weights": weights}
        fields["normalise"] = normalise or (
            asked.content() if isinstance(asked, Constants) else None
        )
        fields["data_dir"] = str(data_dir) if data_dir else None
        fields |= {name: context.params[name] for name in options.READING}
        given = {key: value for key, value in fields.items() if value is not None}
        if resume is None and what is not None and _is_run(what):
            resume, what = Path(what), None
        if resume is not None:
            changed = [*([what] if what else []), *(settings or [])]
            rounds = _rounds(changed)
            if (changed and rounds is None) or given or out or published:
                raise UserError(
                    "--resume uses the recipe of the folder: leave the other options out, but for "
                    "rounds=N, which trains a finished run longer"
                )
            job.resume(
                resume,
                rounds=rounds,
                model=model,
                trust=trust,
                console=console,
                track=track or (),
                parallel=parallel,
            )
            return
        given |= {"model": model} if model is not None else {}
        if trust:
            raise UserError("--trust is for a run folder: give --resume RUN with it")
        if what is None or out is None:
            raise UserError("expected METHOD or RECIPE.yaml, and --out runs/NAME (or --resume)")
        recipe, remarks = _recipe(what, given, settings, published)
        for line in remarks:
            console.say(line)
        options.fetch(download, recipe.model)
        job.train(recipe, out, console=console, track=track or (), parallel=parallel)


def _rounds(settings: list[str]) -> int | None:
    """Return the number of rounds if that is the only setting."""
    from equipoise.settings import recipe as recipes

    key, _, value = settings[0].partition("=") if len(settings) == 1 else ("", "", "")
    if key != "rounds":
        return None
    rounds = recipes.overrides(settings)["rounds"]
    if not isinstance(rounds, int) or rounds < 1:
        raise UserError(f"rounds must be a whole number of 1 or more, got {value}")
    return rounds


def _is_run(what: str) -> bool:
    """Return whether a text is the path of a run folder and not the name of a method."""
    from equipoise.settings.methods import METHODS

    return (Path(what) / "recipe.yaml").is_file() and what not in METHODS


def _recipe(
    what: str, given: Mapping[str, Any], settings: list[str] | None, published: bool
) -> "tuple[Recipe, list[str]]":
    """Return a recipe, and the lines about its published settings.

    In ascending priority: published settings, a method or a file, options, key=value.
    """
    from equipoise.settings import presets
    from equipoise.settings import recipe as recipes

    layered = layers(what, given, settings)
    if not published:
        return recipes.parse(layered), []
    if "method" not in layered:
        recipes.parse(layered)  # raises the error
    name = layered.get("data", recipes.Recipe.data)
    preset = presets.published(str(layered.get("method")), str(name))
    return recipes.parse(preset.under(layered)), list(preset.lines())


def layers(what: str, given: Mapping[str, Any], settings: list[str] | None) -> Mapping[str, Any]:
    """Return the settings of a recipe: a method or a file, then options, then key=value.

    Raises:
        UserError: If something is given twice, or cannot be read.
    """
    from equipoise.settings import recipe as recipes

    changed = recipes.overrides(settings or [])
    for name in changed.keys() & given.keys():
        raise UserError(f"{name} is given twice: as {name}=... and as --{name.replace('_', '-')}")
    if "method" in changed:
        raise UserError(f"the method is {what}; give it only once")
    base: dict[str, Any] = {"method": what}
    if what.endswith((".yaml", ".yml")):
        base = recipes.read(Path(what))
    return recipes.combine(base, given, changed)


EXPLAIN_EPILOG = (
    "Examples: equipoise explain trades beta=3 --data cifar10; "
    "equipoise explain a3gt trunk=gat clean.weight=0.1"
)


def explain(
    what: Annotated[
        str,
        typer.Argument(metavar="METHOD|RECIPE.yaml", help="The name of a method, or a recipe."),
    ],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="Settings to change.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Dataset; it sets the usual eps.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Start from the settings of the method's paper.")
    ] = False,
) -> None:
    """Print what a method minimises: loss, attack, merge and cost.

    The numbers are those that a training with these settings would use. Nothing is trained.
    """
    from equipoise.settings.explanation import explain as in_words

    given = {} if data is None else {"data": data}
    recipe, remarks = _recipe(what, given, settings, published)
    typer.echo("\n".join([*in_words(recipe), *remarks]))
