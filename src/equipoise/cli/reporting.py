"""Reports, lists, data and the demo."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli import options
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

REPORT = Path("report.html")


def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders to compare.")],
    out: Annotated[Path, typer.Option(help="The page, .html; or its tables, .md.")] = REPORT,
    cmmr: Annotated[
        bool,
        typer.Option("--cmmr", help="Also show the scores that `evaluate --cmmr` stored."),
    ] = False,
    strict: options.Strict = False,
) -> None:
    """Write one HTML page: pictures, results, curves, provenance.

    The page needs no other file and no network.
    """
    from equipoise.report.page import build, failed_checks

    typer.echo(build(runs, out, cmmr=cmmr))
    options.refuse(strict, failed_checks(runs))


def list_(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[methods|attacks|models|data|presets]", help="What to list."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[METHOD|DATA]",
            help="After methods: list its settings; after presets: list its presets.",
        ),
    ] = None,
) -> None:
    """List methods and their settings, attacks, networks, datasets."""
    from equipoise.cli.listing import write_catalogue, write_presets, write_settings

    if what == "presets":
        write_presets(name)
    elif name is not None:
        if what != "methods":
            raise UserError("only a method has settings: equipoise list methods NAME")
        write_settings(name)
    else:
        write_catalogue(what)


def data(context: typer.Context, data_dir: options.DataDir = None) -> None:
    """Show which datasets are here, and how to get the others."""
    if context.invoked_subcommand is None:
        from equipoise.cli.listing import write_data

        write_data(data_dir)


def data_show(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="A dataset, an .npz file, a folder of images, a CSV file or hf-datasets:NAME."
        ),
    ],
    size: options.ImageSize = None,
    resize: options.Resize = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    classes: options.Classes = None,
    on_bad_image: options.OnBadImage = None,
    augment: Annotated[
        str,
        typer.Option(
            help="Augmentation in the picture: data, none, small, large, or some of crop, "
            "resized-crop, flip, jitter, with commas between them."
        ),
    ] = "data",
    out: Annotated[
        Path | None, typer.Option(help="Write a picture of some images of each class, .png.")
    ] = None,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
) -> None:
    """Show what would be read: splits, classes, sizes, copies, bad files."""
    from equipoise.jobs.show_data import show_data

    given = {key: context.params[key] for key in options.READING}
    reading = options.reading_of({key: value for key, value in given.items() if value is not None})
    console = Console(quiet=quiet)
    show_data(name, reading, data_dir=data_dir, augment=augment, out=out, console=console)


def data_get(
    name: Annotated[str, typer.Argument(help="The dataset.")],
    yes: Annotated[bool, typer.Option("--yes", help="Agree to the download.")] = False,
    base: Annotated[
        str | None, typer.Option(help="Another http(s) address to download it from.")
    ] = None,
    data_dir: options.DataDir = None,
    quiet: options.Quiet = False,
) -> None:
    """Download a dataset, and verify it by its checksum.

    A download that was interrupted continues.
    """
    from equipoise.data import DATASETS, get, load
    from equipoise.data.reading import HUB

    if name.startswith(HUB):
        from equipoise.data.hub import download

        if not yes:
            raise UserError(
                f"this downloads {name} from the hub of Hugging Face, under its own licence; "
                f"agree with: equipoise data get {name} --yes"
            )
        download(name.removeprefix(HUB))
        return
    if name in DATASETS and not yes:
        source = DATASETS[name]
        place = base or (source.remote.base if source.remote else "nowhere")
        raise UserError(
            f"this downloads {source.title} from {place} (licence: {source.licence}), verified by "
            f"SHA-256; agree with: equipoise data get {name} --yes"
        )
    folder = get(name, data_dir, base=base, progress=not quiet)
    typer.echo(folder)
    if not quiet:
        typer.echo(load(name, folder).source, err=True)


def demo(
    out: Annotated[Path, typer.Option(help="The folder of the two runs and the report.")] = Path(
        "runs/demo"
    ),
    quiet: options.Quiet = False,
) -> None:
    """Train and attack two models on digits, and write a report.

    One model is undefended, the other one is trained by A3GT.
    """
    from equipoise.jobs.demo import run_demo

    run_demo(out, console=Console(quiet=quiet))
