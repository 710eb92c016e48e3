"""Images as tensors, datasets, splits and augmentation.

All images of a dataset are one ``uint8`` tensor, or rows of a file of them: there are no workers,
no queues and no per-image Python. Randomness is an argument: a seed or a generator.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (the customary name)
from torch import Tensor

from equipoise.data.rows import Rows, empty, fits, pieces
from equipoise.errors import UserError


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images and their labels.

    Arguments:
        x: ``uint8`` of shape (N, C, H, W), or ``float32`` in [0, 1] of that shape; or rows of a
            tensor that is too large to be copied.
        y: Labels, ``int64`` of shape (N,).
    """

    x: Tensor | Rows
    y: Tensor

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or self.y.shape != self.x.shape[:1]:
            raise UserError(
                "images must be (N, C, H, W) and labels (N,), "
                f"got {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            )
        if self.x.dtype not in {torch.uint8, torch.float32} or self.y.dtype != torch.int64:
            raise UserError(
                "images must be uint8 or float32 and labels int64, "
                f"got {self.x.dtype} and {self.y.dtype}"
            )

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Images({' x '.join(map(str, self.x.shape))}, {kind})"

    def to(self, device: torch.device | str) -> "Images":
        """Return the images on ``device``; those that do not fit go there batch by batch."""
        device, x = torch.device(device), self.x
        if isinstance(x, Tensor) and x.device.type == "cpu" and not fits(x.nbytes, device):
            x = Rows(x)
        return Images(x.to(device), self.y.to(device))

    def take(self, index: Tensor | slice) -> "Images":
        """Return the images at ``index``: positions, a mask or a slice; rows are not copied."""
        x = self.x.take(index) if isinstance(self.x, Rows) else self.x[index]
        return Images(x, self.y[index])

    def pixels(self, index: Tensor | slice = slice(None)) -> Tensor:
        """Return the images at ``index`` as ``float32`` in [0, 1]; a byte is divided by 255."""
        every = isinstance(index, slice) and index == slice(None)
        if not every or self.x.dtype != torch.uint8 or self.y.device.type != "cpu":
            return to_unit(self.x[index])
        pixels = empty(self.x.shape, torch.float32)
        for start, part in pieces(self.x):
            pixels[start : start + len(part)] = to_unit(part)
        return pixels


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset:
    """A training, a validation and a test set, with their properties.

    Arguments:
        name: The name by which the dataset is loaded.
        train: The training images; a validation split is taken from these.
        test: The test images, used for evaluation only.
        classes: The names of the K classes, by label.
        eps: The customary Linf radius, in [0, 1].
        source: A sentence: which copy was read, whether it is verified, and where it is.
        pad: Padding of the random crop in training, in pixels; 0 for none.
        flip: Whether training flips images horizontally.
        mean: Mean of each channel, in [0, 1]; by default that of the training images.
        std: Standard deviation of each channel, likewise.
        sha256: Fingerprints of the content, see :func:`fingerprint`; computed by default.
        validation: The validation images, where the data have some of their own; None: they are
            held out of the training images.
        inputs: How pictures became these images (size, resize, channels, orientation, scale), for
            whoever serves a model; empty: they were tensors already.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    eps: float
    source: str
    pad: int = 0
    flip: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    sha256: dict[str, str] = field(default_factory=dict)
    validation: Images | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.mean:
            for name, values in zip(("mean", "std"), moments(self.train.x), strict=True):
                object.__setattr__(self, name, values)
        if not self.sha256:
            digests = fingerprint(self.train, self.test, len(self.classes), self.validation)
            object.__setattr__(self, "sha256", digests)

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, train={self.train!r}, test={self.test!r}, "
            f"{len(self.classes)} classes)"
        )

    @property
    def channels(self) -> int:
        """The number of channels C."""
        return int(self.train.x.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width (H, W)."""
        return int(self.train.x.shape[2]), int(self.train.x.shape[3])

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a model that depend on the data: see :func:`equipoise.models.build`."""
        return {
            "channels": self.channels,
            "size": list(self.size),
            "classes": len(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
        }


def to_unit(x: Tensor) -> Tensor:
    """Return images, bytes or floats, as ``float32`` in [0, 1]."""
    return x.to(torch.float32).div_(255) if x.dtype == torch.uint8 else x


def stratified_split(y: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    r"""Split positions into a training and a validation part, each class in proportion.

    Class :math:`k` with :math:`n_k` of the N examples gives :math:`m n_k / N` of the m held-out
    ones, rounded by the largest remainder (ties to the lower label); every class keeps at least
    one example for training. A hash of (seed, position) decides which ones are held out, so the
    split does not depend on any library's random numbers.

    Arguments:
        y: Labels of shape (N,).
        held_out: The number m of examples in the validation part.
        seed: Selects among the possible splits.

    Returns:
        The positions of the training and of the validation part, sorted, ``int64``, on the CPU.

    Raises:
        UserError: If ``held_out`` would leave a class without training examples.
    """
    labels = y.detach().cpu().numpy()
    total, (classes, counts) = len(labels), np.unique(labels, return_counts=True)
    if not 0 <= held_out <= total - len(classes):
        raise UserError(
            f"held_out must lie in [0, {total - len(classes)}] ({total} examples, each of "
            f"{len(classes)} classes keeps one for training), got {held_out}"
        )
    shares = largest_remainder([int(n) for n in counts], held_out)
    keys = _hashes(total, seed)
    out = np.zeros(total, dtype=bool)
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == label)
        out[members[np.argsort(keys[members], kind="stable")[:share]]] = True
    return torch.from_numpy(np.flatnonzero(~out)), torch.from_numpy(np.flatnonzero(out))


def scrambled(count: int, seed: int) -> Tensor:
    """Return the positions 0..count-1 in a fixed random order, by a hash of (seed, position)."""
    return torch.from_numpy(np.argsort(_hashes(count, seed), kind="stable"))


def crop_flip(x: Tensor, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift every image by up to ``pad`` pixels each way and mirror half of them.

    A crop of the size of the image is taken at a random place of the image with a border of zeros,
    and is mirrored horizontally with probability one half; each image has its own draws.

    Arguments:
        x: Images of shape (B, C, H, W), ``uint8`` or floating, on any device.
        pad: The width of the border, in pixels.
        flip: Whether to mirror.
        generator: Gives the vertical offsets, the horizontal ones and the flips, in this order,
            drawn on its own device.

    Returns:
        Images of the shape, type and device of ``x``; ``x`` itself where there is nothing to do.
    """
    if pad == 0 and not flip:
        return x

    def draw(below: int) -> Tensor:
        device = generator.device
        numbers = torch.randint(below, (len(x), 1), generator=generator, device=device)
        return numbers.to(x.device)

    batch, channels, height, width = x.shape
    rows = draw(2 * pad + 1) + torch.arange(height, device=x.device)
    columns = draw(2 * pad + 1) + torch.arange(width, device=x.device)
    if flip:
        columns = torch.where(draw(2).bool(), columns.flip(1), columns)
    image = torch.arange(batch, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[:, None, None]
    padded = F.pad(x, (pad, pad, pad, pad))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def moments(x: Tensor | Rows) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, in [0, 1].

    A constant channel has the standard deviation 1 here, so that dividing by it is possible.

    Arguments:
        x: Images of shape (N, C, H, W), ``uint8`` or ``float32``.
    """
    if isinstance(x, Tensor) and x.dtype != torch.uint8:
        channels = [channel.double() for channel in x.unbind(1)]
        stds = [float(channel.std(correction=0)) or 1.0 for channel in channels]
        return tuple(float(channel.mean()) for channel in channels), tuple(stds)
    counts = torch.zeros(x.shape[1], 256, dtype=torch.float64)
    for _, part in pieces(x):
        for row, channel in zip(counts, part.unbind(1), strict=True):
            row += torch.bincount(channel.reshape(-1), minlength=256).cpu()
    values, total = torch.arange(256, dtype=torch.float64) / 255, counts.sum(1)
    means = (counts * values).sum(1) / total
    variances = (counts * (values - means[:, None]) ** 2).sum(1) / total
    return tuple(means.tolist()), tuple(float(std) or 1.0 for std in variances.sqrt())


def fingerprint(
    train: Images, test: Images, classes: int, validation: Images | None = None
) -> dict[str, str]:
    """Return the SHA-256 of the content: ``train_x``, ``train_y``, ``test_x``, ``test_y``.

    ``validation_x`` and ``validation_y`` are there where the data have validation images.

    Images are hashed as C-order bytes in (N, C, H, W), one byte or one ``float32`` for a value;
    labels as one byte each if there are at most 256 classes, as ``int64`` otherwise.
    """
    sums = {}
    for name, part in (("train", train), ("validation", validation), ("test", test)):
        if part is None:
            continue
        digest = hashlib.sha256()
        for _, images in pieces(part.x):
            digest.update(images.contiguous().cpu().numpy().data)
        sums[f"{name}_x"] = digest.hexdigest()
        sums[f"{name}_y"] = labels_digest(part.y, classes)
    return sums


def labels_digest(y: Tensor, classes: int) -> str:
    """Return the SHA-256 of labels; see :func:`fingerprint`."""
    y = y.to(torch.uint8) if classes <= 256 else y
    return hashlib.sha256(y.contiguous().cpu().numpy().data).hexdigest()


def largest_remainder(counts: list[int], seats: int) -> list[int]:
    """Return how many of each class are taken, in proportion; every class keeps one."""
    total = max(sum(counts), 1)
    shares = [seats * n // total for n in counts]
    order = sorted(range(len(counts)), key=lambda k: (-(seats * counts[k] % total), k))
    left = seats - sum(shares)
    while left:
        for k in order:
            if left and shares[k] < counts[k] - 1:
                shares[k] += 1
                left -= 1
    return shares


def _hashes(count: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return a 64-bit hash for each position: SplitMix64, started from the seed."""
    mask = (1 << 64) - 1
    start = np.uint64((seed * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) & mask)
    z = start + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
