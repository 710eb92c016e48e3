"""Which images of a set were looked at: how they were chosen, and the checksum that names them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The images of an evaluation; see :func:`equipoise.data.draw`.

    Arguments:
        n: How many they are.
        of: How many there are in the set.
        seed: The seed of a stratified sample; None: they are the first of the set.
        sha256: The checksum of the images and their labels, in whatever order. Evaluations can be
            compared image by image exactly where it is the same.
    """

    n: int
    of: int
    seed: int | None
    sha256: str

    def words(self, images: str = "images") -> str:
        """Return which images they are.

        Arguments:
            images: What the images are called, like ``test images``.
        """
        if self.n == self.of:
            return f"all {self.of:,} {images}"
        if self.seed is None:
            return f"the first {self.n:,} of {self.of:,} {images}"
        return f"a stratified sample of {self.n:,} of {self.of:,} {images}, seed {self.seed}"

    @property
    def short(self) -> str:
        """A word for names of files: ``first``, or the beginning of the checksum."""
        return "first" if self.seed is None else self.sha256[:8]

    def content(self) -> dict[str, Any]:
        """Return the sample as plain values."""
        return asdict(self)

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Self:
        """Return the sample that plain values describe.

        Raises:
            KeyError, TypeError, ValueError: Where they describe none.
        """
        seed = content["seed"]
        return cls(
            n=int(content["n"]),
            of=int(content["of"]),
            seed=None if seed is None else int(seed),
            sha256=str(content["sha256"]),
        )
