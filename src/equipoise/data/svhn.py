"""SVHN, format 2 (cropped digits): ``train_32x32.mat`` and ``test_32x32.mat``.

A MATLAB 5 file holds ``X``, ``uint8`` (32, 32, 3, N), and ``y``, (N, 1) with 1..10, where **10
means the digit 0**. The additional ``extra_32x32.mat`` is not read. For non-commercial use only.

Reference: Y. Netzer et al., Reading digits in natural images with unsupervised feature learning,
NIPS workshop, 2011.
"""

__all__ = ["FILES", "missing", "parse_mat", "read"]

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equipoise.data.core import Dataset, Images, verified
from equipoise.errors import UserError

EPS = 8 / 255
LARGEST = 256 << 20  # bytes of a file; the larger real one has 182 MB

FILES = {
    "train_32x32.mat": "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


def missing(place: Path) -> list[str]:
    """Return the files that ``place`` lacks."""
    return [file for file in FILES if not (place / file).is_file()]


def read(place: Path, unverified: bool = False) -> Dataset:
    """Return the set from the folder ``place``.

    Raises:
        UserError: If a file is missing, malformed or not the published one.
    """
    known, parts = [], []
    for file, checksum in FILES.items():
        path = place / file
        try:
            with path.open("rb") as stream:
                content = stream.read(LARGEST)
        except OSError as error:
            raise UserError(f"cannot read {path} of svhn: {error.strerror or error}") from error
        known.append(verified(content, checksum, str(path), "svhn", unverified))
        parts.append(parse_mat(content, str(path)))
    train, test = parts
    state = (
        f"SVHN (format 2), all files verified by SHA-256, from {place}"
        if all(known)
        else f"unverified copy of SVHN (format 2; {known.count(False)} of {len(known)} files "
        f"have an unknown checksum), from {place}"
    )
    return Dataset(
        name="svhn",
        train=train,
        test=test,
        classes=tuple("0123456789"),
        eps=EPS,
        pad=4,
        source=state,
    )


def parse_mat(content: bytes, what: str) -> Images:
    """Return the images in a file of the official layout.

    Arguments:
        content: The bytes of the file.
        what: The name of the file, for messages.

    Raises:
        UserError: If the file cannot be read or has another layout.
    """
    from scipy.io import loadmat  # slow to import, needed by this set only

    stream: Any = io.BytesIO(content)  # allowed, though the stubs know of paths only
    try:
        arrays = loadmat(stream, variable_names=["X", "y"])
    except Exception as error:  # a malformed file can raise nearly anything
        raise UserError(f"{what} is not a MATLAB 5 file, or is cut short: {error}") from error
    if not {"X", "y"} <= arrays.keys():
        raise UserError(f"{what} is not a file of svhn: expected the arrays X and y")
    x, y = np.asarray(arrays["X"]), np.asarray(arrays["y"])
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or not x.size:
        raise UserError(f"{what}: X must be uint8 (32, 32, 3, N), got {x.dtype} {x.shape}")
    if y.shape != (x.shape[3], 1) or y.dtype.kind not in "iu":
        raise UserError(f"{what}: y must hold integers ({x.shape[3]}, 1), got {y.dtype} {y.shape}")
    if y.min() < 1 or y.max() > 10:
        raise UserError(f"{what}: labels must lie in 1..10, got {y.min()}..{y.max()}")
    pixels = np.ascontiguousarray(x.transpose(3, 2, 0, 1))
    labels = y[:, 0].astype(np.int64) % 10
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels))
