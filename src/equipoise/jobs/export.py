"""Exports: a model as a file or a folder for serving, checked on real images."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.card.schema import ModelCard
from equipoise.data.core import Dataset
from equipoise.errors import RunError, UserError, nearest
from equipoise.evaluation.stored import Store
from equipoise.execution.outputs import ask
from equipoise.jobs.card import write_card
from equipoise.jobs.hub_folder import folder, is_of_transformers, of_transformers
from equipoise.jobs.target_model import Subject, of_run
from equipoise.models import exported
from equipoise.models.core import Classifier, Normalize
from equipoise.plugins import command
from equipoise.store import files
from equipoise.store.digests import model_digest
from equipoise.store.runs import OWN
from equipoise.terminal.progress import Console
from equipoise.version import __version__

KINDS = {"onnx": ".onnx", "torch": ".pt2", "state-dict": ".safetensors", "hf": ""}
"""The kinds of exports, and the ending of each one's file; the last one is a folder."""

FEW = 64
TOLERANCE = 1e-3  # of the largest logit, at least of 1: float32 in another order of sums


def export(
    path: str | Path,
    out: str | Path,
    *,
    to: str | None = None,
    which: str = "model",
    images: int = FEW,
    model: nn.Module | str | None = None,
    dataset: Dataset | None = None,
    trust: bool = False,
    data_dir: str | Path | None = None,
    console: Console | None = None,
) -> Mapping[str, Any]:
    """Export a model: it runs without equipoise then, and gives the same answers.

    The file is read again and compared with the model on test images. How inputs are prepared is
    in the file.

    Arguments:
        path: The run folder; also a picked one, or one with evaluations of a user's own model.
        out: The file to write, for ``hf`` the folder; there must be none.
        to: ``onnx``, ``torch``, ``state-dict`` or ``hf``; None: what the ending of ``out`` says.
        which: The weights, by a name as for :meth:`equipoise.store.runs.Run.model`.
        images: On how many test images it is compared.
        model: For a model of the user's own: ``package.module:function``, or the model, again.
        dataset: For a training on data that were given from Python: the data.
        trust: Whether to run the code that the folder names instead.
        data_dir: The folder of the data; None: that of the training.
        console: Where remarks are shown; by default nowhere.

    Returns:
        ``images``: their number; ``difference``: the largest one between logits; ``changed``: the
        number of images with another predicted label, which is 0; ``about``: the description in
        the file.

    Raises:
        UserError: If the folder has no such model, or something is in the place of ``out``.
        RunError: If the model cannot be exported, or the file gives other answers: it is removed.
    """
    console, out = console or Console(quiet=True), Path(out)
    kind = _kind(to, out)
    if kind == "onnx":
        exported.needs_onnx()
    given: Any = {"model": model, "trust": trust, "dataset": dataset}
    subject = of_run(path, which, data_dir, console, **given)
    about = description(subject)
    test = subject.dataset.test
    if images < 2:
        raise UserError(f"expected at least 2 images to compare on, got {images}")
    x = test.pixels(torch.linspace(0, len(test) - 1, min(images, len(test))).long())
    with files.whole(out) as work:
        again = _written(subject, kind, about, x, work, console)
        found = compared(subject.model, again, x)
    return {"images": len(x), **found, "about": about}


def description(subject: Subject) -> Mapping[str, Any]:
    """Return how a model is to be used: inputs, classes and origin, as plain values."""
    run, dataset = subject.run, subject.dataset
    config = run.read_json("config.json")
    _, front = exported.without_front(subject.model)
    held = held_by(subject.model)
    return {
        "format": 1,
        "model": config.get("model") or run.read_json(OWN).get("model"),
        "weights": subject.which,
        "sha256": model_digest(subject.model),
        "package": f"equipoise {__version__}",
        "data": dataset.name,
        "classes": list(dataset.classes),
        "inputs": {
            "shape": [dataset.channels, *dataset.size],
            "low": 0.0,
            "high": 1.0,
            "scale": 255 if dataset.test.x.dtype == torch.uint8 else 1,
            **dataset.inputs,
        },
        "normalise": front.content() if front else held,
        "normalised": "in front of the model" if front else "inside the model",
        "outputs": "logits, one for each class in the order of classes; no softmax",
    }


def held_by(model: nn.Module) -> Mapping[str, Any] | None:
    """Return the normalisation inside a network of the project; None: none, or another network."""
    first = model.normalize if isinstance(model, Classifier) else None
    if not isinstance(first, Normalize):
        return None
    return {"mean": first.mean.flatten().tolist(), "std": first.std.flatten().tolist()}


def compared(judged: nn.Module, served: exported.Serving, x: Tensor) -> Mapping[str, Any]:
    """Return the largest difference of logits, and for how many images the label changed.

    The first image goes alone and the others together, so that any number is seen to be taken.

    Raises:
        RunError: If a label changed, or logits differ by more than rounding.
    """
    with torch.no_grad():
        try:
            theirs = torch.cat([served(part) for part in (x[:1], x[1:])])
        except Exception as error:
            line = " ".join(str(error).split())[:300]
            raise RunError(f"the export does not run: {line}; nothing was written") from None
        ours = torch.cat([ask(judged, part) for part in (x[:1], x[1:])])
    difference = float((theirs - ours).abs().max())
    changed = int((theirs.argmax(1) != ours.argmax(1)).sum())
    most = TOLERANCE * max(1.0, float(ours.abs().max()))
    if changed or not difference <= most:
        raise RunError(
            f"the export gives other answers: logits differ by up to {difference:.3g}, and "
            f"{changed} of {len(x)} labels changed; nothing was written. Does the model draw "
            "random numbers, or keep a state?"
        )
    return {"difference": difference, "changed": changed}


def _kind(to: str | None, out: Path) -> str:
    """Return the kind of an export, checked against the ending of its file."""
    if to is None:
        to = next((kind for kind, ending in KINDS.items() if ending == out.suffix), None)
        if to is None or not out.suffix:
            raise UserError(f"what shall {out} be? Add --to {'|'.join(KINDS)}")
    if to not in KINDS:
        raise UserError(nearest(to, KINDS, "kind of export"))
    if KINDS[to] and out.suffix != KINDS[to]:
        raise UserError(f"--to {to} writes a file with the ending {KINDS[to]}, got {out}")
    return to


def _written(
    subject: Subject,
    kind: str,
    about: Mapping[str, Any],
    x: Tensor,
    work: Path,
    console: Console,
) -> exported.Serving:
    """Write an export, read it, and return the model in it."""
    model = subject.model
    if kind == "onnx":
        content = exported.onnx(exported.graph_of(model, x[:2]), x[:2], about)
        files.write(work, content)
        return exported.of_onnx(content)
    if kind == "torch":
        content = exported.pt2(exported.graph_of(model, x[:2]), about)
        files.write(work, content)
        return exported.of_pt2(content)
    if kind == "state-dict":
        return _weights(model, about, work, console)
    card = _card(subject, console)
    if is_of_transformers(exported.without_front(model)[0]):
        return of_transformers(model, about, card, work)
    return folder(model, about, card, x, work)


def _weights(
    model: nn.Module, about: Mapping[str, Any], work: Path, console: Console
) -> exported.Serving:
    inner, front = exported.without_front(model)
    if front is not None:
        console.say(
            f"the normalisation by {front} stood in front of the model: it is not among the "
            "weights, but in the metadata (normalise); apply it before the model"
        )
    content = exported.weights(inner, about)
    files.write(work, content)
    return exported.of_weights(content, inner, front)


def _card(subject: Subject, console: Console) -> ModelCard | None:
    """Return the card of the model's evaluations, counted from verdicts; None: there are none."""
    run, which = subject.run, subject.which
    if not any(store.about()["weights"] == which for store in Store.all(run)):
        named = () if which == "model" else ("--weights", which)
        again = command("evaluate", run.path, *subject.given, *named)
        console.warn(f"the model card has no accuracies: there is no evaluation; run: {again}")
        return None
    with tempfile.TemporaryDirectory(prefix="equipoise-") as place:
        return write_card(run.path, Path(place) / "card", which=which, console=console)
