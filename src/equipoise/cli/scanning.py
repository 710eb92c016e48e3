"""``equipoise scan``: whether a model is easily fooled, in a minute."""

from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer

from equipoise.cli import options
from equipoise.cli.evaluating import check_json, write_json
from equipoise.errors import UserError
from equipoise.terminal.progress import Console

SCAN_EPILOG = (
    "It is not AutoAttack and no guarantee: longer attacks on more images find more. The full "
    "verdict: equipoise evaluate RUN --attacks audited. A model of your own: equipoise scan "
    "package.module:function --weights FILE --data cifar10 --eps 8/255."
)


def scan(
    context: typer.Context,
    what: options.What = None,
    eps: Annotated[
        str | None,
        typer.Option(
            help="The radius in question, like 8/255; radii from an eighth of it to four times it "
            "are attacked. Default: that of the training, or of the dataset."
        ),
    ] = None,
    norm: options.Norm = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--n",
            help="Take a stratified sample of N images; default: as many as fit a "
            "minute, at most 200; with --time as many as fit that.",
        ),
    ] = None,
    first: options.First = False,
    time: options.Time = None,
    model: options.OwnModel = None,
    data: options.OwnData = None,
    size: options.ImageSize = None,
    resize: options.Resize = None,
    channels: options.Channels = None,
    labels: options.Labels = None,
    classes: options.Classes = None,
    on_bad_image: options.OnBadImage = None,
    weights: options.Weights = None,
    normalise: options.Normalise = None,
    mean: options.Mean = None,
    std: options.Std = None,
    download: options.Download = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder of scan.html; default: the run folder, with MODEL runs/ and its name."
        ),
    ] = None,
    seed: options.Seed = 0,
    json: options.Records = None,
    strict: options.Strict = False,
    trust: options.Trust = False,
    data_dir: options.DataDir = None,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
) -> None:
    """Say within a minute whether a model is easily fooled.

    A few test images are taken. First its accuracy on clean images and under a short attack; then
    the accuracy at several radii, the smallest radius found at which half of the correct images
    are lost, the worst classes and the checks, as a table and as a page with pictures, scan.html.
    After an interruption or --time the same command continues.
    """
    began = monotonic()
    from equipoise.jobs.scan import scan_model
    from equipoise.parsing import choice
    from equipoise.threat import NORMS

    if json is not None:
        check_json(json)
    radii, limit = options.radii_of(eps), options.limit_of(time)
    if len(radii) > 1:
        raise UserError(f"a scan has one radius in question, and chooses others; got --eps {eps}")
    console = Console(quiet=quiet)
    subject = options.subject_of(context, console, out=out, anywhere=True)
    found: Any = scan_model(
        subject,
        norm=None if norm is None else choice(norm, "--norm", NORMS),
        eps=radii[0] if radii else None,
        n=n,
        first=first,
        seed=seed,
        limit=limit,
        out=out,
        device=device,
        console=console,
        began=began,
    )
    if json is not None:
        write_json(json, found.content())
    found.shown().show()
    options.refuse(strict, found.failed)
