"""What is evaluated: the model of a run, or a model of the user's own, with its test images."""

__all__ = ["Subject", "of_model", "of_run", "open_folder"]

import hashlib
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from torch import nn

from equipoise import data, recipe
from equipoise.data import Dataset
from equipoise.errors import UserError
from equipoise.models.foreign import import_model, load_weights
from equipoise.progress import Console
from equipoise.runs import Run
from equipoise.threat import Norm
from equipoise.weights import canonical

OWN = "own-model.json"  # describes a model that was not trained here


@dataclass(frozen=True)
class Subject:
    """A model to evaluate.

    Arguments:
        run: The folder that the results go to.
        model: The model, in eval mode, on the CPU.
        dataset: The data; only its test images are touched.
        norm: The norm to evaluate in where none is asked for.
        eps: The radius in that norm.
        which: The name of the weights: ``"model"`` for the kept ones; see
            :mod:`equipoise.weights`.
    """

    run: Run
    model: nn.Module
    dataset: Dataset
    norm: Norm
    eps: float
    which: str = "model"


def open_folder(path: str | Path) -> Run:
    """Return the folder of a training, or of an evaluation of a user's own model."""
    return Run.open(path, ("recipe.yaml", OWN))


def of_run(path: str | Path, which: str, data_dir: str | Path | None, console: Console) -> Subject:
    """Return the model of a folder: of a training, or of an earlier evaluation.

    Arguments:
        path: The folder.
        which: The weights, by a name as for :meth:`equipoise.runs.Run.model`.
        data_dir: The folder of the data; None: that of the training.
        console: Where warnings are shown.

    Raises:
        UserError: If there is no model, or its data are not found or have changed.
    """
    run = open_folder(path)
    if not (run.path / "recipe.yaml").is_file():
        if which != "model":
            raise UserError(
                f"{run.path} holds evaluations of a model of your own: it has no weights {which!r}"
            )
        return _again(run, data_dir)
    model, which = run.model(which), canonical(which)  # first: a wrong name loads no data
    settings = recipe.parse(recipe.read(run.path / "recipe.yaml"))
    dataset = data.load(settings.data, data_dir or settings.data_dir)
    trained = run.read_json("provenance.json").get("data", {}).get("sha256")
    if trained and trained != dataset.sha256:
        raise UserError(f"{path} was trained on other data than is found now (checksums differ)")
    if not run.read_json("summary.json").get("finished"):
        this = "its best model so far" if which == "model" else which
        console.warn(
            f"{run.path} is not trained to its end; this is {this}. "
            f"Go on with: equipoise train --resume {quote(str(run.path))}"
        )
    threat = settings.threat(dataset.eps)
    return Subject(run, model, dataset, threat.norm, threat.eps, which)


def of_model(
    spec: str,
    *,
    weights: Path | None,
    data_name: str,
    data_dir: str | Path | None,
    out: Path | None,
) -> Subject:
    """Return a model of the user's own, with a folder for its results.

    Arguments:
        spec: ``package.module:function``.
        weights: A file of weights; None: the function has loaded them.
        data_name: A data set's name, or the path of an .npz file.
        data_dir: The folder of the data.
        out: The folder of the results; by default ``runs/`` with the function's name.

    Raises:
        UserError: If model, weights or data will not do, or the folder is another's.
    """
    model, dataset = _load(spec, weights, data_name, data_dir)
    folder = Path("runs") / spec.replace(":", ".").replace("/", ".") if out is None else out
    about = {
        "format": 1,
        "model": spec,
        "weights": str(weights.absolute()) if weights else None,
        "weights_sha256": _sha256(weights) if weights else None,
        "data": data_name if data_name in data.DATASETS else str(Path(data_name).absolute()),
        "data_dir": str(data_dir) if data_dir else None,
    }
    run = Run(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        known = run.read_json(OWN) if folder.is_dir() else {}
        if known != about:
            raise UserError(f"{folder} holds something else; choose another --out")
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror}") from None
        run.write_json(OWN, about)
    return Subject(run, model, dataset, "linf", dataset.eps)


def _again(run: Run, data_dir: str | Path | None) -> Subject:
    about = run.read_json(OWN)
    missing = [key for key in ("model", "weights", "data") if key not in about]
    if missing:
        raise UserError(f"{run.path / OWN} is damaged: it lacks {', '.join(missing)}")
    weights = Path(about["weights"]) if about["weights"] else None
    if weights and weights.is_file() and _sha256(weights) != about.get("weights_sha256"):
        raise UserError(f"{weights} has changed since {run.path} was evaluated")
    model, dataset = _load(about["model"], weights, about["data"], data_dir or about["data_dir"])
    return Subject(run, model, dataset, "linf", dataset.eps)


def _load(
    spec: str, weights: Path | None, data_name: str, data_dir: Any
) -> tuple[nn.Module, Dataset]:
    model = import_model(spec)
    if weights is not None:
        model = load_weights(model, weights)
    return model.cpu(), data.load(data_name, data_dir)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
