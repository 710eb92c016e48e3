"""MNIST and Fashion-MNIST: four idx files, plain or gzipped.

An idx file is big-endian: two zero bytes, the type (8: unsigned byte), the number of dimensions,
each dimension as a 32-bit integer, then the values in C order. Checksums are of the *uncompressed*
content, because mirrors rewrite the gzip header.

References: Y. LeCun et al., Gradient-based learning applied to document recognition, 1998;
H. Xiao et al., Fashion-MNIST, arXiv:1708.07747.
"""

import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.data.core import Images
from equipoise.data.published import Form, Parts, Published, Remote, images
from equipoise.errors import UserError

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_SHA256 = {
    "mnist": (
        "sha256:ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "sha256:65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "sha256:0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "sha256:ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion-mnist": (
        "sha256:c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "sha256:bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "sha256:5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "sha256:0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
_OWNERS = {value: name for name, values in _SHA256.items() for value in values}


def _published(name: str, title: str, base: str, **settings: Any) -> Published:
    files = dict(zip(_NAMES, _SHA256[name], strict=True))
    packed = {f"{file}.gz": value for file, value in files.items()}
    return Published(
        name=name,
        title=f"{title}, 28 x 28 grey",
        n=70_000,
        train=60_000,
        forms=(Form(title=title, files=files, parse=parse),),
        owners=_OWNERS,
        remote=Remote(base=base, files=packed, gunzip=True),
        **settings,
    )


def parse(parts: Parts) -> tuple[Images, Images]:
    """Return the training and the test images of four files."""
    train_x, train_y, test_x, test_y = (parse_idx(content, file) for file, content in parts)
    return images(train_x, train_y, parts[0][0], 10), images(test_x, test_y, parts[2][0], 10)


def parse_idx(content: bytes, file: str) -> Bytes:
    """Return the array in an uncompressed idx file of unsigned bytes."""
    if len(content) < 4 or content[:3] != b"\0\0\x08" or not 1 <= content[3] <= 4:
        raise UserError(
            f"{file} is not an idx file of bytes: it starts with "
            f"{content[:4].hex() or 'nothing'}, expected 000008 and "
            "the number of dimensions (1 to 4)"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise UserError(f"{file} is cut short: it ends within its header")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != prod(shape):
        raise UserError(
            f"{file} is cut short or too long: its header announces {prod(shape)} bytes "
            f"{shape}, it has {len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


MNIST = _published(
    "mnist",
    "MNIST",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    licence="no licence in the files; commonly given as CC BY-SA 3.0",
    eps=0.3,
    classes=tuple("0123456789"),
    mean=(0.1307,),
    std=(0.3081,),
)

FASHION_MNIST = _published(
    "fashion-mnist",
    "Fashion-MNIST",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    licence="MIT",
    eps=0.1,
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    folders=(Path("/usr/share/datasets/fashion-mnist"),),
)
