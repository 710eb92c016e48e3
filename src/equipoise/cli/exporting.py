"""``equipoise export``: a model as a file for serving."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli import options
from equipoise.terminal.progress import Console

EXPORT_EPILOG = (
    "Examples: equipoise export runs/a3gt --out net.onnx; equipoise export runs/a3gt --to hf "
    "--out card-of-net/. How each is loaded without equipoise: docs/serving.md. ONNX needs: pip "
    "install 'equipoise[export]'."
)


def export(
    run: options.RunFolder,
    out: Annotated[Path, typer.Option(help="The file to write; with --to hf the folder.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="onnx|torch|state-dict|hf",
            help="ONNX; a graph of torch.export (.pt2); the weights alone, under the names of the "
            "network's own class (.safetensors); or a folder for Hugging Face, with a model card. "
            "Default: what the ending of --out says.",
        ),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Which weights of the run, as for `equipoise evaluate`.")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("-n", "--n", help="Compare on so many test images. Default: 64."),
    ] = None,
    model: options.OwnModel = None,
    data_dir: options.DataDir = None,
    trust: options.Trust = False,
    quiet: options.Quiet = False,
) -> None:
    """Export a model to ONNX, a graph, weights or Hugging Face.

    It then runs without equipoise, and gives the same answers.
    What was written is read again and compared with the model on test images of the run's data:
    the largest difference of logits is printed. If a label changes, nothing is written and the
    exit code is 1. How inputs are prepared, and the names of the classes, are in every export.
    """
    from equipoise.jobs.export import FEW
    from equipoise.jobs.export import export as job

    found = job(
        run,
        out,
        to=to,
        which=weights or "model",
        images=FEW if n is None else n,
        model=model,
        trust=trust,
        data_dir=data_dir,
        console=Console(quiet=quiet),
    )
    typer.echo(
        f"{out}: on {found['images']} test images the logits differ by at most "
        f"{found['difference']:.2g} from those of the run, and no label changed"
    )
