r"""A composite score of robustness, of accuracy under attack and of the distortion it took.

The framework that the A3GT paper cites for its "CMMR" does not publish a formula, so this is a
definition of our own, with a version; no number of it compares with the paper's. It is the mean
over the examples of a credit: 1 for an example that stays robust, :math:`w q` for an example that
is classified correctly without attack and fooled, 0 for any other. Here :math:`q` in [0, 1] is how
much distortion it took, and :math:`w = 1/2`. Hence

.. math:: CMMR = A + w S D

with the accuracy under attack :math:`A`, the share :math:`S` of examples that were right and
fooled, and the mean :math:`D` of :math:`q` over those. docs/cmmr.md gives the reasons.

``cmmr-1`` is the score of the worst case of several attacks; ``cmmr-2`` is in
:mod:`equipoise.measures.over_attacks`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError

VERSION = "cmmr-1"

RAW = ("ssim", "mse", "ald2", "psnr")
"""The distortions of an example, as :func:`measure` takes them."""

# The largest credit of a fooled example: half of that of a robust example.
WEIGHT = 0.5

# So many dB of PSNR are a factor of 100 in the length of a perturbation.
PSNR_SPAN = 40.0

# What the judge of evaluations allows for the rounding of float32 (times eps above 1).
_ROUNDING = 1e-6

_MOST = 2**16 - 1

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Parts:
    """A score and its parts.

    Arguments:
        n: How many examples there are.
        fooled: How many of them were right and fooled.
        accuracy: The share that stays robust, A.
        success: The share that was right and fooled, S.
        ass: The mean SSIM over the fooled; like the next three, None where nothing is fooled.
        mse: Their mean square error.
        ald2: Their mean ||x' - x|| / ||x||.
        psnr: Their mean PSNR, in dB; None also where it is infinite.
        parts: What each of the four counts, in [0, 1], more for more distortion; or None.
        credits: The credit of each example, whose mean is the score.
    """

    n: int
    fooled: int
    accuracy: float
    success: float
    ass: float | None = None
    mse: float | None = None
    ald2: float | None = None
    psnr: float | None = None
    parts: Mapping[str, float] | None = None
    credits: tuple[float, ...] = field(default=(), repr=False)

    @property
    def distortion(self) -> float | None:
        """Return D, the mean of the four parts, in [0, 1]; None where nothing is fooled."""
        return None if self.parts is None else sum(self.parts.values()) / len(self.parts)

    @property
    def score(self) -> float:
        """Return the score, in [0, 1]."""
        return score(self.accuracy, self.success, self.distortion)

    def to_dict(self) -> dict[str, Any]:
        """Return the score, its version and its parts as plain values."""
        names = ("score", "accuracy", "success", "distortion", "n", "fooled")
        raw = ("ass", "mse", "ald2", "psnr")
        content = {name: getattr(self, name) for name in (*names, *raw)}
        parts = dict.fromkeys(raw) if self.parts is None else dict(self.parts)
        return {"version": VERSION, **content, "parts": parts}


SCORE_COLUMNS = {
    "CMMR": ("score",),
    "accuracy A": ("accuracy",),
    "fooled S": ("success",),
    "distortion D": ("distortion",),
    "SSIM part": ("parts", "ass"),
    "ALD2 part": ("parts", "ald2"),
    "MSE part": ("parts", "mse"),
    "PSNR part": ("parts", "psnr"),
}
"""The columns of a table of scores: for each head where its value is in :meth:`Parts.to_dict`."""


def score_texts(content: Mapping[str, Any]) -> dict[str, str]:
    """Return what a table shows of a score: the text of each column by its head.

    Arguments:
        content: The score, as :meth:`Parts.to_dict` has it.
    """
    values = {head: reduce(getitem, place, content) for head, place in SCORE_COLUMNS.items()}
    return {head: "–" if value is None else f"{value:.3f}" for head, value in values.items()}


def pack_credits(values: Sequence[float]) -> str:
    """Return credits as hexadecimal of 16 bits each, the largest for 1; see `unpack_credits`."""
    packed: bytes = np.rint(np.asarray(values) * _MOST).astype(">u2").tobytes()
    return packed.hex()


def unpack_credits(text: str) -> _Array:
    """Return the credits, of shape (n,), each to within 1 / 131070.

    Example:
        >>> unpack_credits(pack_credits([1.0, 0.0, 0.5])).round(4).tolist()
        [1.0, 0.0, 0.5]
    """
    return np.frombuffer(bytes.fromhex(text), ">u2") / _MOST


def score(accuracy: float, success: float, distortion: float | None) -> float:
    """Return A + w S D.

    Example:
        >>> score(0.64, 0.18, 0.4)
        0.676

    Arguments:
        accuracy: The share that stays robust, A.
        success: The share that was right and fooled, S.
        distortion: The distortion that it took, D, in [0, 1]; None where nothing is fooled.
    """
    return accuracy + WEIGHT * success * (distortion or 0.0)


def largest_l2(norm: str, eps: float, dimensions: int) -> float:
    """Return how long a perturbation can be at most, in L2, in this threat and in [0, 1].

    Example:
        >>> largest_l2("linf", 0.1, 784)
        2.8000000000000003

    Arguments:
        norm: ``"linf"``, ``"l2"`` or ``"l1"``.
        eps: The radius. In L1 one value alone makes the longest, but it moves by 1 at most.
        dimensions: How many values an image has, over all its channels.

    Raises:
        UserError: If the norm is unknown.
    """
    widest = math.sqrt(dimensions)
    lengths = {"linf": min(eps, 1.0) * widest, "l2": min(eps, widest)}
    lengths["l1"] = min(eps, math.sqrt(eps), widest)
    if norm not in lengths:
        raise UserError(f"norm must be one of {', '.join(lengths)}, got {norm!r}")
    return lengths[norm]


def measure(
    correct: Sequence[bool],
    robust: Sequence[bool],
    ssim: Sequence[float],
    mse: Sequence[float],
    ald2: Sequence[float],
    psnr: Sequence[float],
    *,
    norm: str,
    eps: float,
    dimensions: int,
) -> Parts:
    """Return the score of one model under one threat.

    Example:
        >>> parts = measure(
        ...     [True, True], [True, False], [1.0, 0.9], [0.0, 0.01], [0.0, 0.2], [math.inf, 20.0],
        ...     norm="linf", eps=0.1, dimensions=784,
        ... )
        >>> round(parts.score, 6), round(parts.distortion, 6)
        (0.64375, 0.575)

    Arguments:
        correct: Which examples are classified correctly unattacked.
        robust: Which of them stay robust under every attack.
        ssim: The similarity of each fooled example to its image, with one value an example as
            all others (:mod:`equipoise.measures.distortion` has them); only those of the
            fooled are read.
        mse: The mean square errors.
        ald2: The changes as parts of the images.
        psnr: The ratios in dB, infinite where nothing changed.
        norm: The threat's norm.
        eps: The threat's radius.
        dimensions: How many values an image has, over all its channels.

    Raises:
        UserError: If there are no examples, their numbers differ, one is robust that is not
            correct, a value of a fooled one is not a number, or it is outside the threat.
    """
    right, held = np.asarray(correct, dtype=bool), np.asarray(robust, dtype=bool)
    given = {"ssim": ssim, "mse": mse, "ald2": ald2, "psnr": psnr}
    raw = {name: np.asarray(values, dtype=np.float64) for name, values in given.items()}
    _check(right, held, raw)
    hit = right & ~held
    n, fooled = len(right), int(hit.sum())
    accuracy, success = int(held.sum()) / n, fooled / n
    of_each = held.astype(np.float64)
    if not fooled:
        return Parts(n, fooled, accuracy, success, credits=tuple(of_each.tolist()))
    raw = {name: values[hit] for name, values in raw.items()}
    _check_values(raw, norm, eps, dimensions)
    means = {name: float(raw[name].mean()) for name in ("mse", "ald2", "psnr")}
    finite = {name: mean if math.isfinite(mean) else None for name, mean in means.items()}
    ass, largest = float(raw["ssim"].mean()), largest_l2(norm, eps, dimensions)
    each = _parts(raw, largest**2 / dimensions)
    parts = {name: float(values.mean()) for name, values in each.items()}
    of_each[hit] = WEIGHT * sum(each.values()) / len(each)
    values = tuple(of_each.tolist())
    return Parts(n, fooled, accuracy, success, ass, **finite, parts=parts, credits=values)


def sweep(
    correct: Sequence[bool],
    radii: Mapping[float, Mapping[str, Sequence[Any]]],
    *,
    norm: str,
    dimensions: int,
) -> dict[float, Parts]:
    """Return the scores of one model at several radii, each with all that smaller ones found.

    An adversarial example within a small ball lies in every larger ball. So an example stays
    fooled, with the distortion of the smallest radius at which it was fooled, and the score does
    not grow with the radius. Without this rule an attack that uses its whole radius would distort
    more at larger radii, and the score of a broken model would rise.

    Example:
        >>> small = {"robust": [False], "ssim": [0.9], "mse": [1e-4], "ald2": [0.1], "psnr": [40]}
        >>> large = {"robust": [False], "ssim": [0.5], "mse": [1e-2], "ald2": [0.9], "psnr": [20]}
        >>> found = sweep([True], {0.01: small, 0.1: large}, norm="linf", dimensions=784)
        >>> [round(parts.score, 4) for parts in found.values()]
        [0.275, 0.0887]
        >>> found[0.1].mse
        0.0001

    Arguments:
        correct: Which examples are classified correctly unattacked.
        radii: For each radius ``robust``, ``ssim``, ``mse``, ``ald2`` and ``psnr``, as
            :func:`measure` takes them, of the same examples.
        norm: The threat's norm.
        dimensions: How many values an image has, over all its channels.

    Returns:
        The scores by radius, the smallest first.

    Raises:
        UserError: As :func:`measure`.
    """
    scores: dict[float, Parts] = {}
    kept: dict[str, Any] = {}
    for eps in sorted(radii):
        now: dict[str, Any] = {name: np.asarray(v) for name, v in radii[eps].items()}
        _check(np.asarray(correct, dtype=bool), now["robust"].astype(bool), now)
        if kept:
            held = kept["robust"].astype(bool)
            now = {name: np.where(held, values, kept[name]) for name, values in now.items()}
        kept = now
        scores[eps] = measure(correct, **now, norm=norm, eps=eps, dimensions=dimensions)
    return scores


def _parts(raw: Mapping[str, _Array], largest: float) -> dict[str, _Array]:
    """Return each part of each example; ``largest`` is the largest MSE that the threat allows."""
    if largest == 0:  # nothing can be changed, so nothing was
        return dict.fromkeys(("ass", "mse", "ald2", "psnr"), np.zeros(len(raw["mse"])))
    return {
        "ass": 1 - np.clip(raw["ssim"], 0, 1),
        "mse": np.clip(raw["mse"] / largest, 0, 1),
        "ald2": np.clip(raw["ald2"], 0, 1),
        "psnr": np.clip(1 - (raw["psnr"] + 10 * math.log10(largest)) / PSNR_SPAN, 0, 1),
    }


def _check(right: NDArray[np.bool_], held: NDArray[np.bool_], raw: Mapping[str, _Array]) -> None:
    lengths = {"correct": len(right), "robust": len(held)}
    lengths |= {name: len(values) for name, values in raw.items()}
    if len(set(lengths.values())) > 1 or not len(right):
        given = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise UserError(f"expected one value an example, of one example or more, got {given}")
    if (held & ~right).any():
        index = int((held & ~right).argmax())
        raise UserError(
            f"expected robust examples among the correct ones, got robust[{index}] without "
            f"correct[{index}]; an example that is misclassified without attack cannot be robust"
        )


def _check_values(raw: Mapping[str, _Array], norm: str, eps: float, dimensions: int) -> None:
    for name, values in raw.items():
        unbounded = name == "psnr"  # infinite where nothing changed
        if np.isnan(values).any() or not (unbounded or np.isfinite(values).all()):
            raise UserError(f"expected numbers for the fooled examples, got {name} without")
    rounding = _ROUNDING * max(1.0, eps) if eps > 0 else 0.0
    allowed = largest_l2(norm, eps + rounding, dimensions) ** 2 / dimensions
    if raw["mse"].max() > allowed * (1 + 1e-9):
        raise UserError(
            f"expected an mse of at most {allowed:.4g} ({norm}, eps {eps:g}, {dimensions} values "
            f"an image), got {raw['mse'].max():.4g}; give the threat of the evaluation"
        )
