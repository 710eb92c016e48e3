"""Images in a large tensor, such as a file that is mapped into memory, copied batch by batch."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from equipoise.errors import RunError

LARGE = 1 << 29  # bytes: a larger tensor of images lies in a file that is mapped into memory
CHUNK = 1 << 25  # bytes that are copied at a time where all images are read
FREE_SHARE = 2  # of the free memory of a device a half may be taken by images


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a tensor of images, which are copied when they are asked for.

    It is used like the tensor ``x[rows]`` on ``device``, which need not fit there.

    Arguments:
        x: All images, with shape (M, C, H, W), on the CPU.
        rows: The positions of these images in ``x``, with shape (N,); None: all.
        device: Where a batch goes.
    """

    x: Tensor
    rows: Tensor | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.x) if self.rows is None else len(self.rows)

    @property
    def shape(self) -> torch.Size:
        """The shape (N, C, H, W)."""
        return torch.Size((len(self), *self.x.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values."""
        return self.x.dtype

    @property
    def ndim(self) -> int:
        """The number of axes, 4."""
        return self.x.ndim

    @property
    def nbytes(self) -> int:
        """The bytes that a tensor of these images would take."""
        return len(self) * self.x[0].nbytes if len(self) else 0

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        """Return a tensor of the images at ``index``: positions, a mask or a slice."""
        part = self.take(index)
        x = part.x if part.rows is None else part.x.index_select(0, part.rows)
        if self.device.type == "cpu":
            return x
        return x.pin_memory().to(self.device, non_blocking=True)

    def take(self, index: Tensor | slice) -> "Rows":
        """Return the images at ``index`` without a copy of them."""
        if self.rows is None and isinstance(index, slice):
            return Rows(self.x[index], None, self.device)
        every = torch.arange(len(self.x)) if self.rows is None else self.rows
        return Rows(self.x, every[index if isinstance(index, slice) else index.cpu()], self.device)

    def to(self, device: torch.device | str) -> "Tensor | Rows":
        """Return the images for use on a device: there as a tensor if they fit, else as rows."""
        device = torch.device(device)
        if device.type == "cpu" or not fits(self.nbytes, device):
            return Rows(self.x, self.rows, device)
        there = torch.empty(self.shape, dtype=self.dtype, device=device)
        for start, part in pieces(self):
            there[start : start + len(part)] = part
        return there


def fits(nbytes: int, device: torch.device) -> bool:
    """Return whether so many bytes of images should be kept on a device as a whole."""
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return nbytes <= free // FREE_SHARE


def pieces(x: Tensor | Rows) -> Iterator[tuple[int, Tensor]]:
    """Yield all images as tensors of moderate size, each with the position of its first image."""
    each = max(1, CHUNK // max(1, x.shape[1:].numel() * x.dtype.itemsize))
    for start in range(0, len(x), each):
        yield start, x[start : start + each]


def cache() -> Path:
    """Return the folder of files that can be made again."""
    return Path(os.environ.get("EQUIPOISE_CACHE") or "~/.cache/equipoise").expanduser()


def is_large(x: Tensor) -> bool:
    """Return whether a tensor is too large for the memory of a process, on the CPU."""
    return x.device.type == "cpu" and x.nbytes >= LARGE


def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a new tensor on the CPU; a large one lies in a file without a name in the cache.

    The file is mapped into memory, so that the system can write its pages to the disk. It is gone
    when the tensor or the process is.

    Raises:
        RunError: If there is no space for it.
    """
    nbytes = torch.Size(shape).numel() * dtype.itemsize
    if nbytes < LARGE:
        return torch.empty(shape, dtype=dtype)
    folder = cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):  # a full disk shows now, not in the middle
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
            mapped = mmap.mmap(file.fileno(), nbytes)
    except OSError as error:
        raise RunError(
            f"{nbytes / 1e9:.1f} GB are needed in {folder} for images that are mapped into memory "
            f"({error.strerror}): free some space there, or set EQUIPOISE_CACHE to another folder"
        ) from None
    return torch.frombuffer(mapped, dtype=dtype).view(*shape)


def copied(x: Tensor) -> Tensor:
    """Return a copy of a tensor, a large one like :func:`empty`."""
    if not is_large(x):
        return x.clone()
    copy = empty(x.shape, x.dtype)
    for start, part in pieces(x):
        copy[start : start + len(part)] = part
    return copy


def chosen(mask: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """Return the rows of ``x`` where a mask of shape (N,) is true, else those of ``other``."""
    if not is_large(other):
        return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), x, other)
    if not bool(mask.any()):
        return other
    result = empty(other.shape, other.dtype)
    for start, part in pieces(other):
        rows = slice(start, start + len(part))
        result[rows] = torch.where(mask[rows].view(-1, *[1] * (x.ndim - 1)), x[rows], part)
    return result
