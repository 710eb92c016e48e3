"""CIFAR-10: the binary form and the Python form, as folders or as archives.

Binary: records of 1 label byte and 3,072 pixel bytes (red, green, blue, each 32 x 32 by rows).
Python: a pickle of a dictionary for each batch. A pickle can run code, so the unpickler accepts
only the names that rebuild a NumPy array, even in a verified file. No SHA-256 of the files was
published: the binary form is verified by SHA-1, the Python form by MD5.

Reference: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

import io
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from equipoise.data.core import Images
from equipoise.data.published import Form, Parts, Published, Remote, images
from equipoise.errors import UserError

Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

PIXELS = 3 * 32 * 32


def parse(
    batch: Callable[[bytes, str], tuple[Bytes, Bytes]], parts: Parts
) -> tuple[Images, Images]:
    """Return the training and the test images of six batches."""
    batches = []
    for file, content in parts:
        x, y = batch(content, file)
        batches.append(images(x.reshape(-1, 3, 32, 32), y, file, 10))
    *train, test = batches
    return Images(torch.cat([b.x[:] for b in train]), torch.cat([b.y for b in train])), test


def parse_binary(content: bytes, file: str) -> tuple[Bytes, Bytes]:
    """Return pixels (N, 3072) and labels (N,) of a binary batch."""
    if not content or len(content) % (1 + PIXELS):
        raise UserError(
            f"{file} is cut short or no CIFAR-10 batch: expected a multiple of "
            f"{1 + PIXELS} bytes, got {len(content)}"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def parse_python(content: bytes, file: str) -> tuple[Bytes, Bytes]:
    """Return pixels (N, 3072) and labels (N,) of a pickled batch; refuse other pickles."""
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a malformed pickle can raise nearly anything
        raise UserError(f"{file} is not a CIFAR-10 batch: {error}") from error
    try:
        x, y = batch[b"data"], np.asarray(batch[b"labels"])
    except (TypeError, KeyError, ValueError) as error:
        raise UserError(f"{file} is not a CIFAR-10 batch: no data and labels in it") from error
    problem = ""
    if not isinstance(x, np.ndarray) or x.dtype != np.uint8 or x.shape != (len(x), PIXELS):
        problem = f"data must be uint8 (N, {PIXELS})"
    elif y.dtype.kind != "i" or y.ndim != 1 or ((y < 0) | (y > 255)).any():
        problem = "labels must be small integers"
    if problem:
        raise UserError(f"{file} is not a CIFAR-10 batch: {problem}")
    return x, y.astype(np.uint8)


class _Unpickler(pickle.Unpickler):
    """An unpickler that can rebuild NumPy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.ndarray.__reduce__(np.zeros(1, np.uint8))[0]
        if module == "numpy" and name in {"ndarray", "dtype"}:
            return getattr(np, name)
        raise UserError(f"its pickle names {module}.{name}, which is refused")


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as Python 3 writes them in a pickle of protocol 2."""
    if encoding != "latin1":
        raise UserError(f"its pickle uses the encoding {encoding!r}, which is refused")
    return text.encode("latin1")


BINARY = Form(
    title="CIFAR-10 (binary form)",
    folder="cifar-10-batches-bin",
    archive="cifar-10-binary.tar.gz",
    files={
        "data_batch_1.bin": "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
    },
    parse=partial(parse, parse_binary),
)

PYTHON = Form(
    title="CIFAR-10 (Python form)",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    files={
        "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
        "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
        "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "md5:40351d587109b95175f43aff81a1287e",
    },
    parse=partial(parse, parse_python),
)

CIFAR10 = Published(
    name="cifar10",
    title="CIFAR-10, 32 x 32 colour",
    n=60_000,
    train=50_000,
    licence="no licence stated; cite Krizhevsky 2009",
    eps=8 / 255,
    forms=(BINARY, PYTHON),
    classes=(
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    pad=4,
    flip=True,
    remote=Remote(
        base="https://www.cs.toronto.edu/~kriz/",
        files={
            BINARY.archive: (
                "sha256:c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
            )
        },
        largest=170_052_171,
    ),
)
