"""The same images in two evaluations, in any order. No torch is imported."""

import hashlib
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.store.sealed import array_digest, read_arrays
from equipoise.store.verdicts import UNREADABLE, Evaluation

_SAME_ORDER = ("data_sha256", "labels_sha256")


def same_images(a: Evaluation, b: Evaluation) -> bool:
    """Return whether two evaluations are of the same images with the same labels."""
    if a.n != b.n or not a.sample or not b.sample:
        return a.n == b.n and sorted(_keys(a)) == sorted(_keys(b))
    return a.sample.sha256 == b.sample.sha256


def paired(a: Evaluation, b: Evaluation) -> NDArray[np.int64]:
    """Return where each image of ``a`` is in ``b``, with shape (N,).

    Images are matched by their values and labels, copies of an image in their order.

    Raises:
        UserError: If their images differ.
    """
    digests = [[e.about.get(name) for name in _SAME_ORDER] for e in (a, b)]
    if a.n == b.n and digests[0] == digests[1] and all(digests[0]):
        return np.arange(a.n)
    ours, theirs = _keys(a), {key: row for row, key in enumerate(_keys(b))}
    if theirs.keys() != set(ours):
        raise UserError(f"the images of {a.path} and {b.path} differ; evaluate the same ones")
    return np.array([theirs[key] for key in ours], dtype=np.int64)


def _keys(evaluation: Evaluation) -> list[bytes]:
    """Return a name for each image: of its values, its label, and its number among its copies."""
    try:
        _, arrays = read_arrays(evaluation.path, lambda name: name in ("x", "y"))
        images, labels = arrays["x"], arrays["y"].tolist()
    except UNREADABLE:
        raise UserError(
            f"the images in {evaluation.path} are damaged; remove it and evaluate again"
        ) from None
    copies: Counter[str] = Counter()
    keys = []
    for image, label in zip(images, labels, strict=True):
        name = f"{array_digest(image)} {label}"
        keys.append(hashlib.sha256(f"{name} {copies[name]}".encode()).digest())
        copies[name] += 1
    return keys
