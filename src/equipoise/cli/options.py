"""Options and checks that several commands share."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from equipoise.errors import RunError, UserError

if TYPE_CHECKING:
    from equipoise.data.reading import Reading
    from equipoise.evaluation.protocol import Protocol
    from equipoise.jobs.target_model import Subject
    from equipoise.terminal.progress import Console

RunFolder = Annotated[Path, typer.Argument(help="The run folder.")]
DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the datasets; default: the places that `equipoise data` lists."),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Attacks = Annotated[
    str | None,
    typer.Option(
        help="Attacks, separated by commas; see `equipoise list attacks`. pgd-20 is PGD with 20 "
        "steps; options are in brackets: square(queries=1000). Default of evaluate: those of "
        "fgsm, pgd-20, mi-fgsm-10 and cw-inf-30 that exist for the norm; of front: two short "
        "APGD attacks."
    ),
]
Nonce = Annotated[
    str | None,
    typer.Option(
        help="With audited: any text; it determines which images go through AutoAttack. Default: "
        "the seed."
    ),
]
Eps = Annotated[
    str | None,
    typer.Option(help="Radii, separated by commas, like 8/255; default: that of the training."),
]
Norm = Annotated[str | None, typer.Option(help="linf, l2 or l1; default: that of the training.")]
Size = Annotated[
    int | None,
    typer.Option("-n", "--n", help="Take a stratified sample of N images; default: all."),
]
First = Annotated[bool, typer.Option("--first", help="With -n: take the first N images instead.")]
Seed = Annotated[int, typer.Option(help="Random seed of the attacks.")]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Images attacked at a time (250, more tiny ones); changes no results."),
]
Precision = Annotated[
    str,
    typer.Option(
        help="Arithmetic of the search: float32, bfloat16 or auto. Verdicts are always made "
        "in float32."
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="End with exit code 1 if a check of an evaluation failed.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and warnings.")]
OwnModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="A model of your own, like MODEL; also for a RUN that was trained on it or has "
        "evaluations of it.",
    ),
]
AgainModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="For a RUN that was trained on a model of your own: package.module:function again.",
    ),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="TIME",
        help="Stop after this time, like 90s, 30m or 2h, with all results so far; the same can be "
        "continued later.",
    ),
]
ShardText = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="K/N",
        help="Attack only part K of N of the images, here or on another machine; "
        "`equipoise join RUN` joins the parts. Under torchrun each process has a part.",
    ),
]
What = Annotated[
    str | None,
    typer.Argument(
        metavar="RUN|MODEL",
        help="The run folder; or a model of your own: package.module:function, where the "
        "function returns an nn.Module; timm:NAME, hf:NAME (or a folder), torchvision:NAME; with "
        "--trust a file of torch.export (.pt2) or TorchScript.",
    ),
]
OwnData = Annotated[
    str | None,
    typer.Option(
        "--data",
        help="With MODEL: a dataset, an .npz file, a folder of images (CLASS/*, or test/CLASS/*), "
        "or hf-datasets:NAME.",
    ),
]
ImageSize = Annotated[
    int | None, typer.Option("--size", help="Of images in files: their height and width here.")
]
Resize = Annotated[
    str | None,
    typer.Option(
        help="How images in files get this size: crop (the default: the middle), pad (a black "
        "border) or stretch."
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(help="Of images in files: 1 (grey) or 3 (colour); default: 1 if all are grey."),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Of images in a folder: a CSV file with the columns path, label and perhaps split."
    ),
]
Classes = Annotated[
    str | None,
    typer.Option(
        help="Of images in files: a file with the names of the classes in the order of the "
        "model's outputs, one a line or JSON; default: the names of the folders, sorted."
    ),
]
OnBadImage = Annotated[
    str | None,
    typer.Option(help="Whether an image that cannot be read is refused (the default) or skipped."),
]
READING = ("size", "resize", "channels", "labels", "classes", "on_bad_image")
Normalise = Annotated[
    str | None,
    typer.Option(
        help="With MODEL: add the normalisation of this dataset in front of it (imagenet, "
        "cifar10, cifar100, svhn, mnist, fashion-mnist, clip, half); none: add nothing, not "
        "even constants of the weights file.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="With MODEL and --std: the means of the normalisation, one for each channel, "
        "separated by commas."
    ),
]
Std = Annotated[str | None, typer.Option(help="With MODEL and --mean: the standard deviations.")]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Which weights of the run: model (the kept ones), last, round-005 (after round "
        "(epoch) 5), learner-clean, or gamma-0.4 (the two learners mixed); with MODEL: the "
        "file of its weights, or FILE:KEY."
    ),
]
Records = Annotated[
    Path | None, typer.Option("--json", help="Also write the results to this JSON file.")
]
On = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="WHERE",
        help="Where commands run: local:N (N processes here; the default is local:1), slurm, "
        "dask or dask:ADDRESS, ray or ray:ADDRESS, or module:factory, a function of your own that "
        "returns an Executor of concurrent.futures. All machines must share the folders.",
    ),
]
Resources = Annotated[
    str | None,
    typer.Option(
        metavar="KEY=VALUE,...",
        help="With --on slurm, what each command needs, like "
        "partition=gpu,time=2h,gpus=1,memory=16G; also cpus, account, qos and constraint. With "
        "--on ray: gpus, cpus and memory.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="The same as --on local:N: parallel processes, which share the threads."
    ),
]
PlanOnly = Annotated[
    bool,
    typer.Option(
        "--plan",
        "--dry-run",
        help="Print which parts are done and which are left, with --on slurm also the script of "
        "the jobs, and stop.",
    ),
]
Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="Get the weights of timm:NAME, hf:NAME or torchvision:NAME over the network first.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run the code that the folder was made with, or read a model from a file that can "
        "run code; without this option, no code that a folder names is run.",
    ),
]


def protocol_of(
    *, norm: str | None, precision: str, layout: str = "auto", compile_: bool = False, **more: Any
) -> "Protocol":
    """Return the protocol of an evaluation from the text of its options.

    Raises:
        UserError: If an option is wrong.
    """
    from equipoise.evaluation.protocol import Protocol
    from equipoise.execution.policy import Execution
    from equipoise.parsing import choice
    from equipoise.threat import NORMS

    search: dict[str, Any] = {"precision": precision, "layout": layout, "compile": compile_}
    return Protocol(
        norm=None if norm is None else choice(norm, "--norm", NORMS),
        execution=Execution(**search),
        **more,
    )


def run_or_model(what: str | None, model: str | None) -> tuple[Path | None, str | None]:
    """Return the run folder and the model that are named, by position or by --model."""
    from equipoise.models.library import library_of
    from equipoise.models.programs import is_program

    own = what and (re.fullmatch(r"[\w.]+:\w+", what) or library_of(what) or is_program(what))
    if what is None or Path(what).is_dir() or not own:
        return None if what is None else Path(what), model
    if model is not None:
        raise UserError(f"the model is given twice: {what} and --model {model}")
    return None, what


def subject_of(
    context: typer.Context, console: "Console", *, out: Path | None, anywhere: bool = False
) -> "Subject":
    """Return the model that the options of a command name, with its test images.

    Arguments:
        context: Has the values of ``What``, ``OwnModel``, ``OwnData``, ``Weights``, ``Normalise``,
            ``Mean``, ``Std``, ``DataDir`` and ``Trust``, which the command has to declare.
        console: Where it is said how the model was read.
        out: The folder of the results of a model of the user's own.
        anywhere: Whether ``out`` may be given with a run folder, too; the command uses it.

    Raises:
        UserError: If the options do not name a model.
    """
    from equipoise.jobs.target_model import of_model, of_run
    from equipoise.models.normalisation import asked_for

    given = context.params
    data, weights, data_dir = given["data"], given["weights"], given["data_dir"]
    run, spec = run_or_model(given["what"], given["model"])
    reading = {name: given[name] for name in READING if given.get(name) is not None}
    asked = asked_for(given["normalise"], given["mean"], given["std"])
    for_model = any(each is not None for each in (data, None if anywhere else out, asked))
    for_model = for_model or bool(reading)
    if run is not None and not for_model:
        kept = "model" if weights is None else weights
        return of_run(run, kept, data_dir, console, model=spec, trust=given["trust"])
    if run is None and spec is not None and data is not None:
        fetch(given.get("download", False), spec)
        subject = of_model(
            spec,
            weights=weights,
            data_name=data,
            data_dir=data_dir,
            out=out,
            normalise=asked,
            trust=given["trust"],
            reading=reading_of(reading),
            console=console,
        )
        console.say(f"results go to {subject.run.path}")
        return subject
    raise UserError(
        "expected a run folder, or --model package.module:function --data ... (with it "
        "--out, --normalise, --mean, --std, --size, --labels; see --help)"
    )


def fetch(download: bool, model: str | None) -> None:
    """Download the weights of a library's model, if ``--download`` is given."""
    from equipoise.models.library import download as get

    if download:
        get(model or "")


def reading_of(given: Mapping[str, Any]) -> "Reading":
    """Return how images in files are read, from the options.

    Raises:
        UserError: If one is wrong.
    """
    from typing import get_args

    from equipoise.data.reading import OnBadImage, Reading, Resize
    from equipoise.parsing import choice

    words = {"resize": get_args(Resize), "on_bad_image": get_args(OnBadImage)}
    for name in words.keys() & given.keys():
        choice(given[name], f"--{name.replace('_', '-')}", words[name])
    if given.get("channels", 1) not in (1, 3):
        raise UserError(f"--channels must be 1 or 3, got {given['channels']}")
    return Reading(**given)


def place(on: str | None, workers: int | None) -> str:
    """Return where commands run, from ``--on`` and ``--workers``.

    Raises:
        UserError: If both are given, or the number of workers is wrong.
    """
    if on is not None and workers is not None:
        raise UserError(f"--workers {workers} is --on local:{workers}: give one of them, not both")
    if workers is not None and workers < 1:
        raise UserError(f"--workers must be at least 1, got {workers}")
    return on or f"local:{workers or 1}"


def radii_of(eps: str | None) -> list[float]:
    """Return the radii of ``--eps``; an empty list stands for that of the training."""
    from equipoise.parsing import numbers

    return [] if eps is None else numbers(eps, "--eps")


def limit_of(time: str | None) -> float | None:
    """Return the seconds of ``--time``; None: no limit."""
    from equipoise.parsing import seconds

    return None if time is None else seconds(time, "--time")


def refuse(strict: bool, failed: Iterable[str]) -> None:
    """Raise a RunError that names the failed checks, if ``--strict`` is given."""
    names = list(dict.fromkeys(failed))
    if strict and names:
        raise RunError(f"--strict: failed checks: {', '.join(names)}")
