"""Any images in a NumPy ``.npz`` file.

Images and labels are arrays ``train_x``, ``train_y``, ``test_x`` and ``test_y``, and perhaps
``val_x`` and ``val_y`` (or ``x_train``, ..., or ``train_images``, ``train_labels``, ...); or ``x``
and ``y`` (or ``images`` and ``labels``). Without test images a fifth of the others is held out for
testing, stratified by class and always the same; test images alone are for judging. Images are
``uint8``, ``uint16`` (divided by 257), or floating in [0, 1], of shape (N, H, W), (N, H, W, C) or
(N, C, H, W) with C of 1 to 16; labels are integers 0..K-1. Optional: ``classes`` (K names),
``eps`` (customary Linf radius, default 8/255), ``pad`` and ``flip`` (augmentation, default none).
Other arrays are ignored, and nothing is unpickled.
"""

import warnings
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from equipoise.data.core import Dataset, Images, scrambled, stratified_split
from equipoise.data.pictures import scaled
from equipoise.data.reading import MOST_CHANNELS
from equipoise.errors import UserError
from equipoise.threat import ROUNDING, SLIGHT

if TYPE_CHECKING:
    from equipoise.terminal.progress import Console

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

SPLIT: tuple[tuple[str, str], ...] = (("{}_x", "{}_y"), ("x_{}", "y_{}"))
SPLIT += (("{}_images", "{}_labels"), ("images_{}", "labels_{}"))
WHOLE = (("x", "y"), ("images", "labels"))
PARTS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
OPTIONAL = ("classes", "eps", "pad", "flip")


def read(path: Path, console: "Console | None" = None) -> Dataset:
    """Return the dataset in the file ``path``.

    Arguments:
        path: The file.
        console: Where it is said how the file was read; by default nowhere.

    Raises:
        UserError: If the file cannot be read, or does not hold images and labels.
    """
    arrays = _arrays(path)
    parts, how = _parts(arrays, path)
    train, validation, test = (parts.get(name) for name in PARTS)
    assert test is not None
    moments: dict[str, Any] = {}
    if train is None:
        train, channels = test.take(slice(0, 0)), test.x.shape[1]
        moments = dict.fromkeys(("mean", "std"), (0.5,) * channels)
    classes = _classes(arrays, parts, path)
    eps, pad = _scalar(arrays, "eps", 8 / 255, path), _scalar(arrays, "pad", 0, path)
    if not 0 < eps <= 1 or not 0 <= pad <= min(train.x.shape[2:]) or pad != int(pad):
        raise UserError(
            f"{path}: eps must lie in (0, 1], and pad be whole and within the image; got eps "
            f"{eps:g}, pad {pad:g}"
        )
    flip = _scalar(arrays, "flip", False, path)
    if flip not in (0, 1):
        raise UserError(f"{path}: flip must be true or false, got {flip:g}")
    if console is not None:
        for remark in how:
            console.say(f"{path}: {remark}")
    return Dataset(
        name=path.stem,
        train=train,
        test=test,
        classes=classes,
        eps=eps,
        pad=int(pad),
        flip=bool(flip),
        validation=validation,
        source=f"{len(train)} training and {len(test)} test images from {path}"
        + "".join(f" ({remark})" for remark in how),
        **moments,
    )


def _arrays(path: Path) -> dict[str, Array]:
    """Return the arrays that this module uses; the others are not even decompressed."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; expected a .npz file")
            names = {name.lower(): name for name in file.files}
            pairs = _names(names, path).values()
            wanted = [*(name for pair in pairs for name in pair), *OPTIONAL]
            return {name: np.asarray(file[names[name]]) for name in wanted if name in names}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, RuntimeError, *ZIP_ERRORS) as error:
        raise UserError(f"{path} is cut short or no .npz file of plain arrays: {error}") from error


def _names(there: Collection[str], path: Path) -> dict[str, tuple[str, str]]:
    """Return the names of images and labels of each part; those of ``train`` may be all."""
    for x, y in SPLIT:
        pairs = {
            part: (x.format(name), y.format(name))
            for part, names in PARTS.items()
            for name in names
            if {x.format(name), y.format(name)} <= set(there)
        }
        if pairs.keys() & {"train", "test"}:
            return pairs
    for x, y in WHOLE:
        if {x, y} <= set(there):
            return {"train": (x, y)}
    styles = [", ".join(each.format(p) for p in ("train", "test") for each in s) for s in SPLIT]
    wanted = "; or ".join([*styles[:2], *(", ".join(names) for names in WHOLE)])
    raise UserError(
        f"{path} lacks images or labels: expected {wanted}; there are "
        f"{', '.join(sorted(there)) or 'no arrays'}"
    )


def _parts(arrays: Mapping[str, Array], path: Path) -> tuple[dict[str, Images], list[str]]:
    """Return the images of each part, those for testing always, and remarks."""
    names, remarks = _names(arrays, path), list[str]()
    parts = {
        part: _images(arrays[x], arrays[y], f"{path}, {x} and {y}")
        for part, (x, y) in names.items()
    }
    if deep := [x for x, _ in names.values() if arrays[x].dtype == np.uint16]:
        highest = max(int(arrays[x].max()) for x in deep)
        remarks.append(f"16 bits a value, divided by 257; the highest is {highest} of 65535")
    first, *others = parts
    for other in others:
        a, b = parts[first].x, parts[other].x
        if a.shape[1:] != b.shape[1:] or a.dtype != b.dtype:
            raise UserError(
                f"{path}: {WORDS[first]} and {WORDS[other]} images differ in shape or type: "
                f"{tuple(a.shape[1:])} {a.dtype} and {tuple(b.shape[1:])} {b.dtype}"
            )
    if "test" not in parts:
        every = parts["train"]
        train_index, test_index = stratified_split(every.y, max(1, round(len(every) / 5)), seed=0)
        # Many datasets are sorted by class: their first images would all be of one class.
        parts["test"] = every.take(test_index[scrambled(len(test_index), 1)])
        parts["train"] = every.take(train_index)
        remarks.append(
            "test: a fifth of the images, stratified by class, seed 0, in a fixed random order"
        )
    return parts, remarks


WORDS = {"train": "training", "validation": "validation", "test": "test"}


def _images(x: Array, y: Array, where: str) -> Images:
    labels = _labels(y, where)
    if len(x.shape) not in {3, 4}:
        raise UserError(f"{where}: images must be (N, H, W[, C]) or (N, C, H, W), got {x.shape}")
    if len(x) != len(labels) or not x.size:
        raise UserError(f"{where}: {len(x)} images of shape {x.shape[1:]}, {len(labels)} labels")
    pixels = np.array(_channels_first(_checked(x, where), where), order="C")
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))


def _labels(y: Array, where: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2:
        raise UserError(f"{where}: labels {y.shape} look one-hot: use labels.argmax(axis=1)")
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise UserError(f"{where}: labels must be integers (N,), got {y.dtype} {y.shape}")
    if y.size and (y.min() < 0 or y.max() >= 1 << 31):
        raise UserError(f"{where}: labels must lie in 0..K-1, got {y.min()}..{y.max()}")
    return y.astype(np.int64)


def _checked(x: Array, where: str) -> Array:
    if x.dtype == np.uint8:
        return x
    if x.dtype == np.uint16:
        return scaled(x)
    if x.dtype.kind != "f":
        raise UserError(
            f"{where}: images must be uint8, uint16 or floating in [0, 1], got {x.dtype}"
        )
    if not np.isfinite(x).all():
        raise UserError(
            f"{where}: {int((~np.isfinite(x)).sum())} values of the images are not finite"
        )
    low, high = float(x.min()), float(x.max())
    out = max(-low, high - 1)
    if out > ROUNDING:
        looks = "normalised: undo that" if low < 0 else "0..255: divide by 255"
        remedy = "x.clip(0, 1) brings them back" if out <= SLIGHT else f"they look {looks}"
        raise UserError(
            f"{where}: floating images must lie in [0, 1], got {low:.4g}..{high:.4g}, out by "
            f"{out:.2g}; {remedy}"
        )
    if out > 0:
        warnings.warn(
            f"{where}: images leave [0, 1] by {out:.2g} (rounding): they were set to the border",
            stacklevel=2,
        )
    return x.clip(0, 1).astype(np.float32)


def _channels_first(x: Array, where: str) -> Array:
    if x.ndim == 3:
        return x[:, None]
    _, a, b, c = x.shape
    few = a <= MOST_CHANNELS, c <= MOST_CHANNELS
    square = (b == c, a == b) if all(few) else few
    for first, last in ((a in {1, 3}, c in {1, 3}), few, square):
        if first != last:
            return x if first else x.transpose(0, 3, 1, 2)
    raise UserError(
        f"{where}: cannot tell which axis of {x.shape} holds the channels (1 to {MOST_CHANNELS})"
    )


def _classes(
    arrays: Mapping[str, Array], parts: Mapping[str, Images], path: Path
) -> tuple[str, ...]:
    highest = max(int(part.y.max()) for part in parts.values())
    train = parts.get("train", parts["test"])
    if "classes" in arrays:
        names = tuple(str(name) for name in arrays["classes"].reshape(-1))
        if highest >= len(names):
            raise UserError(f"{path}: label {highest} is out of range: {len(names)} classes named")
        return names
    if absent := sorted(set(range(min(highest, 1 << 16) + 1)) - set(train.y.tolist())):
        raise UserError(
            f"{path}: labels must lie in 0..K-1, each in the training set: the highest is "
            f"{highest}, but {absent[0]} does not occur there; number the classes from 0, or name "
            "all of them in an array `classes`"
        )
    return tuple(str(k) for k in range(highest + 1))


def _scalar(arrays: Mapping[str, Array], key: str, default: float, path: Path) -> float:
    value = arrays.get(key, np.asarray(default))
    if value.size != 1 or value.dtype.kind not in "biuf":
        raise UserError(f"{path}: {key} must be one number, got {value.dtype} {value.shape}")
    return float(value.reshape(-1)[0])
