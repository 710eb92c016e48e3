"""``eq.harden``: a hardening of a model and images that are objects of Python."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.attacks.core import examples
from equipoise.data.core import Dataset, scrambled, stratified_split
from equipoise.errors import UserError
from equipoise.jobs.harden import harden_recipe
from equipoise.jobs.hardened import DATA, Hardened
from equipoise.parsing import seconds
from equipoise.sample import digests
from equipoise.store import files
from equipoise.terminal.progress import Console
from equipoise.threat import Threat

EXACT = 1e-6  # values this near to whole numbers of 255ths are bytes


def harden(
    model: nn.Module | str,
    train: Any,
    validation: Any = None,
    *,
    out: str | Path,
    threat: Threat | None = None,
    max_clean_drop: float | str = 0.01,
    test: Any = None,
    points: int | None = None,
    n: int | None = None,
    time: str | float | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Hardened:
    """Make a trained model robust, and keep its clean accuracy; see ``equipoise harden``.

    Example:
        >>> result = eq.harden(net, train, validation, threat=eq.Linf(2 / 255), out="runs/hard")
        >>> result.model, result.clean_accuracy, result.robust_accuracy, result.front

    Arguments:
        model: The trained model, from images in [0, 1] to logits; or as ``equipoise harden``
            takes it.
        train: The training images: a torch Dataset or DataLoader of images in [0, 1] and labels,
            a pair of arrays (x, y), the path of a folder of images or of an .npz file, or a
            :class:`equipoise.data.Dataset`.
            Without random augmentation: images are read once, and kept in ``out``.
        validation: Images that the model was not trained on, for the clean floor; None: they are
            held out of the training images.
        out: The folder of everything; after an interruption the same call goes on.
        threat: The threat, like ``eq.Linf(2 / 255)``; None: the usual one of the data.
        max_clean_drop: The largest loss of clean accuracy, like ``0.01`` or ``"1%"``.
        test: Images for the final evaluation; None: half of the validation images, or else a
            fifth of the training images.
        points: The most models of the front.
        n: Evaluate on a stratified sample of so many test images.
        time: Plan rounds, points and test images to fit this time, like ``"2h"`` or seconds.
        quiet: Whether to show only warnings.
        settings: Settings of the training, like ``rounds=8``.

    Returns:
        The result; its ``promised`` says whether the floor is promised.

    Raises:
        UserError: If model, images or settings do not fit.
        RunError: If a phase failed.
    """
    given: dict[str, Any] = dict(settings)
    if isinstance(model, str):
        given["model"] = model
    if threat is not None:
        if (threat.low, threat.high) != (0.0, 1.0):
            raise UserError(f"images lie in [0, 1]; the threat has {threat.low}..{threat.high}")
        given |= {"norm": threat.norm, "eps": threat.eps}
    dataset = train if isinstance(train, Dataset) else None
    if dataset is None:
        given["data"] = _data(train, validation, test, Path(out))
    return harden_recipe(
        given,
        out,
        model=None if isinstance(model, str) else model,
        dataset=dataset,
        max_clean_drop=max_clean_drop,
        points=points,
        n=n,
        limit=seconds(time, "time") if isinstance(time, str) else time,
        console=Console(quiet=quiet),
    )


def _data(train: Any, validation: Any, test: Any, out: Path) -> str:
    """Return the path of the data; arrays are written to a file in the folder."""
    if isinstance(train, str | Path):
        if validation is not None or test is not None:
            raise UserError(
                "a folder or a file has its own validation and test images: leave them out, or "
                "give three Datasets"
            )
        return str(train)
    parts = {
        name: _arrays(name, images)
        for name, images in (("train", train), ("val", validation), ("test", test))
        if images is not None
    }
    if "test" not in parts:
        source = "val" if "val" in parts else "train"
        parts[source], parts["test"] = _halves(parts[source], 2 if source == "val" else 5)
    arrays = {f"x_{name}": x for name, (x, _) in parts.items()}
    arrays |= {f"y_{name}": y for name, (_, y) in parts.items()}
    if classes := getattr(train, "classes", None):
        arrays["classes"] = np.asarray([str(name) for name in classes])
    path = out / DATA
    if path.is_file():
        _refuse_other(path, arrays)
    else:
        out.mkdir(parents=True, exist_ok=True)
        files.write(path, lambda file: np.savez(file, allow_pickle=False, **arrays))
    return str(path)


def _arrays(name: str, images: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return images as bytes where that is exact, and labels."""
    pair = images if isinstance(images, tuple | list) and len(images) == 2 else (images, None)
    try:
        x, y = examples(*pair)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return _bytes(x.detach().cpu()).numpy(), y.detach().cpu().long().numpy()


def _bytes(x: Tensor) -> Tensor:
    if x.dtype == torch.uint8:
        return x
    values = x.float()
    whole = (values * 255).round()
    exact = bool(((whole / 255 - values).abs() <= EXACT).all())
    inside = bool((whole >= 0).all() and (whole <= 255).all())
    return whole.to(torch.uint8) if exact and inside else values


def _halves(
    images: tuple[NDArray[Any], NDArray[np.int64]], parts: int
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return images without one part of so many, and that part, stratified by class."""
    x, y = images
    kept, held = stratified_split(torch.from_numpy(y), max(1, len(y) // parts), seed=0)
    held = held[scrambled(len(held), 1)]
    return (x[kept], y[kept]), (x[held], y[held])


def _refuse_other(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise a UserError if a file has other images than these, in whatever order."""
    with np.load(path, allow_pickle=False) as stored:
        same = _counts(stored) == _counts(arrays)
    if not same:
        raise UserError(
            f"{path} holds other images: choose another out, or remove it (random augmentation "
            "gives other images each time)"
        )


def _counts(arrays: Mapping[str, NDArray[Any]]) -> Counter[tuple[bytes, int]]:
    """Return how often each image is there with each label; a loader may shuffle the parts."""
    found = Counter[tuple[bytes, int]]()
    for name in (name for name in arrays if name.startswith("x_")):
        labels = arrays[f"y_{name[2:]}"].tolist()
        found.update(zip(digests(arrays[name]), labels, strict=True))
    return found
