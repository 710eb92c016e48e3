r"""Randomness as an argument.

Training draws from a :class:`torch.Generator` that is saved with the learner. Evaluation draws
from :class:`KeyedDraws`: the numbers of an example depend only on the seed, a name (attack,
restart) and the bytes of the example, so that a verdict does not depend on the batch, the order
of the examples, sharding or a resume.

The keyed numbers come from a counter-based generator in integer arithmetic and are the same on
every device: number :math:`i` of a key :math:`k` is the finaliser of SplitMix64 applied to
:math:`k + (i + 1) \cdot 2^{64} / \varphi`.

References:
    | Fast Splittable Pseudorandom Number Generators (Steele, Lea and Flood, 2014)
    | https://doi.org/10.1145/2714064.2660195
"""

import math
from copy import copy
from hashlib import blake2b
from typing import Self

import torch
from torch import Tensor

from equipoise.errors import UserError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64
_MIX = ((30, -4658895280553007687), (27, -7723592293110705685))  # shifts, multipliers
_LAST_SHIFT = 31
_OTHERS = (
    "an objective draws random numbers for some images of its batch: train it in one process, or "
    "with --parallel learners"
)


class GeneratorDraws:
    """Draws from one generator, in the order of the calls: for training.

    Arguments:
        generator: The generator; its device must be that of the inputs.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, x: Tensor) -> Tensor:
        """Return numbers in [0, 1) with shape, device and dtype of ``x``."""
        return torch.rand(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def child(self, name: str) -> Self:
        """Return this source itself; its stream continues."""
        return self

    def select(self, index: Tensor) -> Self:
        """Return this source itself; its stream continues."""
        return self


class PartDraws(GeneratorDraws):
    """Draws for a part of a batch: the numbers that its images have in a draw for all.

    Arguments:
        generator: The generator.
        n: The images of the whole batch.
        rows: Which of them are in the part.
    """

    def __init__(self, generator: torch.Generator, n: int, rows: slice) -> None:
        super().__init__(generator)
        self.n, self.rows = n, rows

    def uniform(self, x: Tensor) -> Tensor:
        """Return numbers in [0, 1) with shape, device and dtype of ``x``, a part of a batch."""
        if len(x) != self.rows.stop - self.rows.start:
            raise UserError(_OTHERS)
        return super().uniform(x.new_empty(()).expand(self.n, *x.shape[1:]))[self.rows]

    def select(self, index: Tensor) -> Self:
        """Return a source that has no numbers: how many are used in other parts is not known."""
        del index
        return type(self)(self.generator, 0, slice(0, 0))


class KeyedDraws:
    """Draws that depend only on a seed, a name and the example: for evaluation.

    Example:
        >>> x = torch.rand(4, 1, 8, 8)
        >>> draws = KeyedDraws.of(x, seed=0)
        >>> alone = KeyedDraws.of(x[2:3], seed=0)
        >>> bool((draws.uniform(x)[2] == alone.uniform(x[2:3])[0]).all())
        True

    Arguments:
        digests: A digest of each example's bytes.
        device: The device of the numbers.
        name: The path of names and the seed from which the keys are derived.
    """

    def __init__(self, digests: list[bytes], device: torch.device, name: str) -> None:
        self.digests = digests
        self.device = device
        self.name = name
        keys = [_key(digest, name) for digest in digests]
        self.keys = torch.tensor(keys, dtype=torch.int64, device=device)
        self.used = 0

    @classmethod
    def of(cls, x: Tensor, seed: int = 0) -> Self:
        """Return the source for a batch of clean examples, with shape (B, ...)."""
        array = x.detach().to("cpu", torch.float32).contiguous().numpy()
        digests = [blake2b(example.tobytes(), digest_size=16).digest() for example in array]
        return cls(digests, x.device, f"seed {seed}")

    def uniform(self, x: Tensor) -> Tensor:
        """Return the next numbers in [0, 1), with shape, device and dtype of ``x``."""
        size = x[0].numel() if len(x) else 0
        counter = torch.arange(self.used + 1, self.used + size + 1, device=self.device)
        self.used += size
        bits = _mix(self.keys[:, None] + counter * _GOLDEN)
        unit = (_shift(bits, 40).to(torch.float32) * 2.0**-24).to(x.dtype)
        largest = 1 - torch.finfo(x.dtype).eps / 2  # short floats would round up to 1
        return unit.clamp_max(largest).view(x.shape)

    def child(self, name: str) -> Self:
        """Return the source of another name for the same examples."""
        return type(self)(self.digests, self.device, f"{self.name}/{name}")

    def select(self, index: Tensor) -> Self:
        """Return the source for the examples ``index`` only; their streams continue."""
        positions = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        chosen = copy(self)
        chosen.digests = [self.digests[i] for i in positions.tolist()]
        chosen.keys = self.keys[positions]
        return chosen


Draws = GeneratorDraws | KeyedDraws
"""A source of random numbers: one stream for each example, or one for all."""


def normal(draws: Draws, x: Tensor) -> Tensor:
    """Return standard normal numbers with shape, device and dtype of ``x``.

    They are the inverse error function of uniform numbers, and at most 5.42 in size.
    """
    wide = torch.promote_types(x.dtype, torch.float32)  # a shorter float would give infinity
    unit = draws.uniform(x.to(wide)).clamp(2.0**-25, 1 - 2.0**-24)
    return (torch.erfinv(2 * unit - 1) * math.sqrt(2)).to(x.dtype)


def _key(digest: bytes, name: str) -> int:
    """Return the 64-bit key of one example under one name."""
    data = blake2b(digest, digest_size=8, key=blake2b(name.encode(), digest_size=16).digest())
    return int.from_bytes(data.digest(), "little", signed=True)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Shift int64 to the right, filling with zeros."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    for shift, multiplier in _MIX:
        bits = (bits ^ _shift(bits, shift)) * multiplier
    return bits ^ _shift(bits, _LAST_SHIFT)
