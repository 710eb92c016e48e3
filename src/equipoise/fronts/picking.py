r"""Which model of a measured front meets a constraint, said so that it also holds elsewhere.

A constraint is on the accuracy of all images of a kind, of which n held-out ones were seen. Of m
measured models the best that meets it is wanted, and the best of many is among other things the
luckiest: a bound that holds for one model 95 times in 100 holds for a chosen one less often. So
the lower bounds are made to hold *together*: with probability 0.95 for all m models at once,
hence for whichever is chosen, by whatever rule. Neither that the front is monotone nor that it
has no barrier is needed for that.

Bonferroni would take each bound at the level :math:`0.05 / m`. But neighbours answer nearly alike
on the same images, and m models are far fewer independent chances than m. With :math:`R` the
correlation of the models' verdicts over the images and :math:`Z \sim N(0, R)`, the level is

.. math:: \alpha' = 1 - \Phi(q), \qquad P(\max_j Z_j \le q) = 0.95,

kept within :math:`[0.05 / m, 0.05]` (simultaneous inference by the largest statistic). At that
level a model's bound is

* for an accuracy, the exact one of Clopper and Pearson;
* for a difference to a reference model on the same n images, of which b are right only there and c
  only here, that of Bonett and Price,
  :math:`\tilde d - z \sqrt{(\tilde b + \tilde c - \tilde d^2) / (n + 2)}` with
  :math:`\tilde b = (b + 1) / (n + 2)`, :math:`\tilde c = (c + 1) / (n + 2)`,
  :math:`\tilde d = \tilde c - \tilde b`: what both get right or wrong cancels.

What the bounds do not cover: the images of the test set are a sample, too, so that a number
measured on few of them can miss the constraint where the model meets it; a robust accuracy holds
for the attacks of the front, and stronger ones find more; and places are added where the front
is steep on the same images, which a band over dense places bears.

References:
    | Simultaneous Inference in General Parametric Models (Hothorn, Bretz and Westfall, 2008)
    | https://doi.org/10.1002/bimj.200810425
    | The Use of Confidence or Fiducial Limits (Clopper and Pearson, 1934)
    | https://doi.org/10.1093/biomet/26.4.404
    | Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
    | Data (Bonett and Price, 2012)
    | https://doi.org/10.3102/1076998611411915
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import RunError, UserError
from equipoise.fronts.record import Point
from equipoise.measures.statistics import interval
from equipoise.parsing import share

Kind = Literal["max_clean_drop", "min_clean", "min_robust", "gamma"]
Flags = NDArray[np.bool_]

ALPHA = 0.05  # the chance that any of the bounds is wrong
DRAWS = 50_000  # of the largest of correlated normals


@dataclass(frozen=True)
class Constraint:
    """What a picked model has to be.

    Arguments:
        kind: Which accuracy is bounded, or ``"gamma"``: none, the place is given.
        value: The bound, as a fraction; the place itself.
        reference: With ``"max_clean_drop"``: the accuracy that it is a drop from.
        standard: Or the run whose model that is, on the same images.
    """

    kind: Kind
    value: float
    reference: float | None = None
    standard: str | None = None

    @classmethod
    def of(
        cls,
        asked: Mapping[Kind, float | str | None],
        reference: float | str | None = None,
        standard: str | None = None,
    ) -> Self:
        """Return the one constraint that was given; accuracies as for :func:`share`.

        Arguments:
            asked: Each kind with its value, or None.
            reference: The accuracy that a drop is from.
            standard: Or the run whose model that is.

        Raises:
            UserError: If there is none or more than one, or it can hold for no model.
        """
        given = {kind: value for kind, value in asked.items() if value is not None}
        if len(given) != 1:
            options = ", ".join(f"--{kind.replace('_', '-')}" for kind in asked)
            got = " and ".join(f"--{kind.replace('_', '-')}" for kind in given) or "none"
            raise UserError(f"expected exactly one of {options}; got {got}")
        ((kind, value),) = given.items()
        problems, read = [], dict[str, float]()
        for name, number in (*given.items(), ("reference", reference)):
            if number is not None and name != "gamma":
                try:
                    read[name] = share(number, f"--{name.replace('_', '-')}")
                except UserError as error:
                    problems.append(str(error))
        if read.get("max_clean_drop") == 1:
            problems.append("--max-clean-drop of 1 is all accuracy; write one point as 0.01 or 1%")
        if kind != "max_clean_drop" and (reference is not None or standard is not None):
            problems.append("a reference belongs to --max-clean-drop alone")
        if reference is not None and standard is not None:
            problems.append("give --reference or --standard, not both")
        if problems:
            raise UserError("; ".join(problems))
        bound = float(value) if kind == "gamma" else read[kind]
        return cls(kind, bound, read.get("reference"), standard)

    def __str__(self) -> str:
        if self.kind == "gamma":
            return f"gamma = {self.value:g}"
        if self.kind != "max_clean_drop":
            what = self.kind.removeprefix("min_")
            return f"{what} accuracy at least {100 * self.value:g} %"
        source = self.standard or f"{100 * (self.reference or 0):g} %"
        return f"at most {100 * self.value:g} points of clean accuracy less than {source}"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A measured model.

    Arguments:
        point: What was measured.
        correct: Which images are classified correctly, with shape (n,).
        robust: Which of them stay correct under the attacks, with shape (n,).
    """

    point: Point
    correct: Flags
    robust: Flags


@dataclass(frozen=True)
class Choice:
    """A model that meets a constraint.

    Arguments:
        constraint: The constraint.
        gamma: Where it is.
        point: What was measured there; None where nothing was.
        bound: The lower bound that meets the constraint: of an accuracy, or of the difference
            to the reference (at or above minus the allowed drop); None without a constraint.
        level: The level of that bound, such that the bounds of all models hold together with
            probability 0.95; None without a constraint.
        looked: How many models were looked at.
    """

    constraint: Constraint
    gamma: float
    point: Point | None
    bound: float | None = None
    level: float | None = None
    looked: int = 0

    def __str__(self) -> str:
        point = self.point
        text = f"gamma = {self.gamma:g}"
        if point is None:
            return f"{text}, where nothing was measured"
        text += (
            f": clean {point.clean_accuracy:.2%}, robust {point.robust_accuracy:.2%} on "
            f"{point.n} held-out images"
        )
        if self.bound is None:
            return text
        return f"{text}; {_bounded(self.constraint, self.bound)}"

    def content(self) -> dict[str, Any]:
        """Return the choice as plain values."""
        return {
            "constraint": {**asdict(self.constraint), "in_words": str(self.constraint)},
            "gamma": self.gamma,
            "bound": self.bound,
            "confidence": None if self.bound is None else 1 - ALPHA,
            "level": self.level,
            "looked_at": self.looked,
            "n": None if self.point is None else self.point.n,
            "split": "validation",
            "point": None if self.point is None else self.point.content(),
            "in_words": str(self),
        }


def choose(
    constraint: Constraint, candidates: Sequence[Candidate], reference: Flags | None = None
) -> Choice:
    """Return the best model whose lower bound meets a constraint.

    The best is the most robust one; where robust accuracy is what is bounded, the most accurate
    one. Of equally good ones it is the better in the other accuracy, then that of the larger
    bound.

    Arguments:
        constraint: The constraint on an accuracy.
        candidates: The measured models.
        reference: With a run as the reference: which images its model has right, with shape (n,).

    Raises:
        RunError: If none meets it; it names the one whose bound is nearest.
    """
    found, alpha = bounds(constraint, candidates, reference)
    wanted = _wanted(constraint, reference)
    first = "clean" if constraint.kind == "min_robust" else "robust"

    def rank(i: int) -> tuple[int, int, float]:
        point = candidates[i].point
        counts = (point.clean, point.robust) if first == "clean" else (point.robust, point.clean)
        return *counts, found[i]

    meeting = [i for i in range(len(candidates)) if found[i] >= wanted]
    best = max(meeting, key=rank) if meeting else max(range(len(found)), key=found.__getitem__)
    point = candidates[best].point
    choice = Choice(constraint, point.gamma, point, found[best], alpha, len(candidates))
    if not meeting:
        raise RunError(
            f"{constraint} cannot be met; the nearest is {choice}. More held-out images or points "
            "make bounds tighter: equipoise front --points, validation= in the recipe"
        )
    return choice


def bounds(
    constraint: Constraint, candidates: Sequence[Candidate], reference: Flags | None = None
) -> tuple[list[float], float]:
    """Return each model's lower bound of what is constrained, and the level of each.

    Together they hold with probability 0.95.
    """
    robust = constraint.kind == "min_robust"
    right = [c.robust if robust else c.correct for c in candidates]
    values = np.stack(right, 1).astype(np.float64)
    if reference is not None:
        values -= reference[:, None]
    alpha = level(values)
    if reference is not None:
        return [_difference(column, alpha) for column in values.T], alpha
    n = len(values)
    counts = [int(column.sum()) for column in values.T]
    return [interval(k, n, 1 - 2 * alpha)[0] for k in counts], alpha


def level(values: NDArray[np.float64]) -> float:
    r"""Return the level of one bound at which those of all columns hold together.

    Arguments:
        values: What was seen of n images (rows) of m models (columns), with shape (n, m).

    Returns:
        :math:`\alpha'`, between 0.05 / m and 0.05.
    """
    from scipy.special import ndtr

    m = values.shape[1]
    if m == 1:
        return ALPHA
    correlation = np.eye(m)  # of a column that is the same everywhere nothing is known
    varied = np.flatnonzero(values.std(0) > 0)
    if len(varied) > 1:
        correlation[np.ix_(varied, varied)] = np.corrcoef(values[:, varied], rowvar=False)
    sizes, directions = np.linalg.eigh(correlation)
    root = directions * np.sqrt(np.clip(sizes, 0, None))
    drawn = np.random.default_rng(0).standard_normal((DRAWS, m)) @ root.T
    q = float(np.quantile(drawn.max(1), 1 - ALPHA))
    return float(np.clip(ndtr(-q), ALPHA / m, ALPHA))


def _difference(column: NDArray[np.float64], alpha: float) -> float:
    """Return the lower bound of a paired difference, of values -1, 0 and 1."""
    from scipy.special import ndtri

    n = len(column) + 2
    less, more = (int((column < 0).sum()) + 1) / n, (int((column > 0).sum()) + 1) / n
    middle, z = more - less, -float(ndtri(alpha))
    return middle - z * math.sqrt((more + less - middle**2) / n)


def _wanted(constraint: Constraint, reference: Flags | None) -> float:
    """Return what a bound has to reach."""
    if constraint.kind != "max_clean_drop":
        return constraint.value
    return (0.0 if reference is not None else constraint.reference or 0.0) - constraint.value


def _bounded(constraint: Constraint, bound: float) -> str:
    if constraint.kind == "max_clean_drop" and constraint.standard is not None:
        return f"95 % lower bound {100 * bound:+.2f} points of clean accuracy against it"
    what = "robust" if constraint.kind == "min_robust" else "clean"
    return f"95 % lower bound {bound:.2%} {what}"
