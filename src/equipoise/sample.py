"""The sample of images of an evaluation: its size, how it was drawn, and its checksum."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The images of an evaluation; see :func:`equipoise.data.draw`.

    Arguments:
        n: The number of images.
        of: The number of images in the dataset.
        seed: The seed of a stratified sample; None: the first images of the dataset.
        sha256: The checksum of the images and their labels, in any order. Evaluations can be
            compared image by image if it is the same.
    """

    n: int
    of: int
    seed: int | None
    sha256: str

    def words(self, images: str = "images") -> str:
        """Return a description, in which ``images`` names the images, like ``test images``."""
        if self.n == self.of:
            return f"all {self.of:,} {images}"
        if self.seed is None:
            return f"the first {self.n:,} of {self.of:,} {images}"
        return f"a stratified sample of {self.n:,} of {self.of:,} {images}, seed {self.seed}"

    @property
    def short(self) -> str:
        """A part of file names: ``first``, or the beginning of the checksum."""
        return "first" if self.seed is None else self.sha256[:8]

    def content(self) -> dict[str, Any]:
        """Return the sample as plain values."""
        return asdict(self)

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Self:
        """Return the sample of plain values.

        Raises:
            KeyError, TypeError, ValueError: If they are missing or wrong.
        """
        n, of, sha256 = int(content["n"]), int(content["of"]), str(content["sha256"])
        seed = None if content["seed"] is None else int(content["seed"])
        return cls(n=n, of=of, seed=seed, sha256=sha256)


def digests(images: NDArray[np.float32]) -> list[bytes]:
    """Return the SHA-256 of the shape and the values of each image, of shape (N, ...)."""
    head = sha256(f"{images.shape[1:]}\n".encode())
    found = []
    for image in np.ascontiguousarray(images):
        state = head.copy()
        state.update(image.data)
        found.append(state.digest())
    return found
