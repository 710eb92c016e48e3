"""SVHN, format 2 (cropped digits): ``train_32x32.mat`` and ``test_32x32.mat``.

A MATLAB 5 file holds ``X``, ``uint8`` (32, 32, 3, N), and ``y``, (N, 1) with 1..10, where **10
means the digit 0**. The additional ``extra_32x32.mat`` is not read. For non-commercial use only.

Reference: Y. Netzer et al., Reading digits in natural images with unsupervised feature learning,
NIPS workshop, 2011.
"""

import io
from typing import Any

import numpy as np

from equipoise.data.core import Images
from equipoise.data.published import Form, Parts, Published, Remote, images
from equipoise.errors import UserError

FILES = {
    "train_32x32.mat": "sha256:435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "sha256:cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
}


def parse(parts: Parts) -> tuple[Images, Images]:
    """Return the training and the test images of two files."""
    train, test = (parse_mat(content, file) for file, content in parts)
    return train, test


def parse_mat(content: bytes, file: str) -> Images:
    """Return the images in a file of the official layout."""
    from scipy.io import loadmat  # slow to import, needed here only

    stream: Any = io.BytesIO(content)  # the type stubs have paths only
    try:
        arrays = loadmat(stream, variable_names=["X", "y"])
    except Exception as error:  # a malformed file can raise nearly anything
        raise UserError(f"{file} is not a MATLAB 5 file, or is cut short: {error}") from error
    if not {"X", "y"} <= arrays.keys():
        raise UserError(f"{file} is not a file of svhn: expected the arrays X and y")
    x, y = np.asarray(arrays["X"]), np.asarray(arrays["y"])
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[:3] != (32, 32, 3) or not x.size:
        raise UserError(f"{file}: X must be uint8 (32, 32, 3, N), got {x.dtype} {x.shape}")
    if y.shape != (x.shape[3], 1) or y.dtype.kind not in "iu":
        raise UserError(f"{file}: y must hold integers ({x.shape[3]}, 1), got {y.dtype} {y.shape}")
    if y.min() < 1 or y.max() > 10:
        raise UserError(f"{file}: labels must lie in 1..10, got {y.min()}..{y.max()}")
    return images(x.transpose(3, 2, 0, 1), y[:, 0].astype(np.int64) % 10, file, 10)


SVHN = Published(
    name="svhn",
    title="SVHN (cropped digits), 32 x 32 colour",
    n=99_289,
    train=73_257,
    licence="non-commercial use only",
    eps=8 / 255,
    forms=(Form(title="SVHN (format 2)", files=FILES, parse=parse, largest=256 << 20),),
    classes=tuple("0123456789"),
    pad=4,
    remote=Remote(
        base="http://ufldl.stanford.edu/housenumbers/", files=FILES, largest=182_040_794
    ),
)
