"""Any images in a NumPy ``.npz`` file.

Images and labels are arrays ``train_x``, ``train_y``, ``test_x`` and ``test_y`` (or ``x_train``,
...); or ``x`` and ``y`` (or ``images`` and ``labels``), of which a fifth is held out for testing,
stratified by class and always the same. Images are ``uint8``, or floating in [0, 1], of shape
(N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3; labels are integers 0..K-1. Optional:
``classes`` (K names), ``eps`` (customary Linf radius, default 8/255), ``pad`` and ``flip``
(augmentation, default none). Other arrays are ignored, and nothing is unpickled.
"""

import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.data.core import Dataset, Images, scrambled, stratified_split
from equipoise.errors import UserError
from equipoise.threat import ROUNDING, SLIGHT

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

SPLIT = (("train_x", "train_y", "test_x", "test_y"), ("x_train", "y_train", "x_test", "y_test"))
WHOLE = (("x", "y"), ("images", "labels"))
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error)
OPTIONAL = ("classes", "eps", "pad", "flip")


def read(path: Path) -> Dataset:
    """Return the dataset in the file ``path``.

    Raises:
        UserError: If the file cannot be read, or does not hold images and labels.
    """
    arrays = _arrays(path)
    train, test, how = _parts(arrays, path)
    classes = _classes(arrays, train, test, path)
    eps, pad = _scalar(arrays, "eps", 8 / 255, path), _scalar(arrays, "pad", 0, path)
    if not 0 < eps <= 1 or not 0 <= pad <= min(train.x.shape[2:]) or pad != int(pad):
        raise UserError(
            f"{path}: eps must lie in (0, 1], and pad be whole and within the image; got eps "
            f"{eps:g}, pad {pad:g}"
        )
    flip = _scalar(arrays, "flip", False, path)
    if flip not in (0, 1):
        raise UserError(f"{path}: flip must be true or false, got {flip:g}")
    return Dataset(
        name=path.stem,
        train=train,
        test=test,
        classes=classes,
        eps=eps,
        pad=int(pad),
        flip=bool(flip),
        validation=_images(arrays["x_val"], arrays["y_val"], "val") if "x_val" in arrays else None,
        source=f"{len(train)} training and {len(test)} test images from {path}{how}",
    )


def _arrays(path: Path) -> dict[str, Array]:
    """Return the arrays that this module uses; the others are not even decompressed."""
    try:
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; expected a .npz file")
            wanted = [*_names(file.files, path), "x_val", "y_val", *OPTIONAL]
            return {name: np.asarray(file[name]) for name in wanted if name in file.files}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, KeyError, RuntimeError, *ZIP_ERRORS) as error:
        raise UserError(f"{path} is cut short or no .npz file of plain arrays: {error}") from error


def _names(there: list[str], path: Path) -> tuple[str, ...]:
    for names in (*SPLIT, *WHOLE):
        if set(names) <= set(there):
            return names
    wanted = "; or ".join(", ".join(names) for names in (*SPLIT, *WHOLE))
    raise UserError(
        f"{path} lacks images or labels: expected {wanted}; there are "
        f"{', '.join(sorted(there)) or 'no arrays'}"
    )


def _parts(arrays: Mapping[str, Array], path: Path) -> tuple[Images, Images, str]:
    names = _names(list(arrays), path)
    parts = [
        _images(arrays[x], arrays[y], f"{path}, {x} and {y}")
        for x, y in zip(names[::2], names[1::2], strict=True)
    ]
    if len(parts) == 2:
        train, test = parts
        if train.x.shape[1:] != test.x.shape[1:] or train.x.dtype != test.x.dtype:
            raise UserError(
                f"{path}: training and test images differ in shape or type: "
                f"{tuple(train.x.shape[1:])} {train.x.dtype} and "
                f"{tuple(test.x.shape[1:])} {test.x.dtype}"
            )
        return train, test, ""
    (every,) = parts
    train_index, test_index = stratified_split(every.y, max(1, round(len(every) / 5)), seed=0)
    how = " (test: a fifth of the images, stratified by class, seed 0, in a fixed random order)"
    # Many datasets are sorted by class: their first images would all be of one class.
    return every.take(train_index), every.take(test_index[scrambled(len(test_index), 1)]), how


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
    if x.dtype.kind != "f":
        raise UserError(f"{where}: images must be uint8 or floating in [0, 1], got {x.dtype}")
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
    first, last = x.shape[1] in {1, 3}, x.shape[3] in {1, 3}
    if first == last:
        raise UserError(
            f"{where}: cannot tell which axis of {x.shape} holds the channels (1 or 3 of them)"
        )
    return x if first else x.transpose(0, 3, 1, 2)


def _classes(
    arrays: Mapping[str, Array], train: Images, test: Images, path: Path
) -> tuple[str, ...]:
    highest = int(max(train.y.max(), test.y.max()))
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
