r"""Picking: which model of a measured front meets a constraint on the accuracy of all images.

The best of several measured models is also the luckiest one. So the lower bounds of all m models
are made to hold together with probability 0.95; then the bound of the chosen one holds, for
any rule of choice. Whether the front is monotone or has a barrier makes no difference.

Bonferroni would take the level :math:`0.05 / m` for each bound. But the verdicts of neighbours are
correlated. With :math:`R` the correlation of the models' verdicts over the images and
:math:`Z \sim N(0, R)`, the level is

.. math:: \alpha' = 1 - \Phi(q), \qquad P(\max_j Z_j \le q) = 0.95,

limited to :math:`[0.05 / m, 0.05]`. With several constraints m counts the models times the
constraints: then all these bounds hold together. At that level the bound of a model is

* for an accuracy: the exact one of Clopper and Pearson;
* for the difference to a reference model on the same n images, with b images that only the
  reference classifies correctly and c that only the model does: that of Bonett and Price,
  :math:`\tilde d - z \sqrt{(\tilde b + \tilde c - \tilde d^2) / (n + 2)}` with
  :math:`\tilde b = (b + 1) / (n + 2)`, :math:`\tilde c = (c + 1) / (n + 2)`,
  :math:`\tilde d = \tilde c - \tilde b`.

The bounds do not cover that a test set is a sample, too, that stronger attacks find more
adversarial examples, and that points are added where the front is steep on the same images.

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
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from equipoise.errors import RunError, UserError
from equipoise.fronts.constraint import Constraint, Kind
from equipoise.fronts.record import Point
from equipoise.measures.statistics import interval, outwards
from equipoise.plugins import command
from equipoise.store.digests import model_digest
from equipoise.store.runs import PICKED, Run, is_free
from equipoise.store.verdicts import Flags, Verdicts

ALPHA = 0.05  # the chance that any of the bounds is wrong
DRAWS = 50_000  # of the largest of correlated normals


@dataclass(frozen=True)
class Choice:
    """A model that meets a constraint.

    Arguments:
        constraint: The constraint.
        gamma: Its place on the line.
        point: The measurement of this model; None if it was not measured.
        bound: The lower bound that meets the constraint: of an accuracy, or of the difference
            to the reference (at least minus the allowed drop); None without a constraint.
        level: The level of that bound, such that the bounds of all models hold together with
            probability 0.95; None without a constraint.
        looked: The number of models it was chosen from.
        also: The lower bounds of the further constraints.
        met: Whether the bounds meet the constraint; else it is the model that is nearest to that.
        compared: On how many images it was compared with a reference; None: there is none.
        needed: If not, for a paired difference: about how many held-out images would do; see
            :func:`images_needed`.
    """

    constraint: Constraint
    gamma: float
    point: Point | None
    bound: float | None = None
    level: float | None = None
    looked: int = 0
    also: tuple[float, ...] = ()
    met: bool = True
    compared: int | None = None
    needed: int | None = None

    def __str__(self) -> str:
        point = self.point
        if point is None:
            return f"gamma = {self.gamma:g}, which was not measured"
        text = f"{point.words} on {point.n} held-out images"
        if self.bound is None:
            return text
        found = zip(self.constraint.all, (self.bound, *self.also), strict=True)
        more = self.compared if self.compared != point.n else None
        where = f" on {more} held-out images" if more else ""
        missed = "" if self.met else "; floor not promised"
        return f"{text}; 95 % lower bound {', '.join(starmap(_in_words, found))}{where}{missed}"

    def content(self) -> dict[str, Any]:
        """Return the choice as plain values."""
        return {
            "constraint": self.constraint.content(),
            "gamma": self.gamma,
            "bound": self.bound,
            **({"further_bounds": self.also} if self.also else {}),
            "confidence": None if self.bound is None else 1 - ALPHA,
            "level": self.level,
            "looked_at": self.looked,
            "n": None if self.point is None else self.point.n,
            "split": "validation",
            **({} if self.compared is None else {"compared": self.compared}),
            **({} if self.met else {"met": False, "needed": self.needed}),
            "point": None if self.point is None else self.point.content(),
            "in_words": str(self),
        }


def _in_words(constraint: Constraint, bound: float) -> str:
    least, _ = outwards((bound, 1), 2)
    if constraint.kind == "max_clean_drop" and constraint.standard is not None:
        return f"{least:+.2f} points of clean accuracy against the reference"
    return f"{least:.2f}% {constraint.named}"


def choose(
    constraint: Constraint,
    measured: Sequence[tuple[Point, Verdicts]],
    reference: Flags | None = None,
    third: Sequence[Flags] = (),
    *,
    clean: Sequence[Flags] = (),
    nearest: bool = False,
) -> Choice:
    """Return the best model whose lower bound meets a constraint, or all of several ones.

    The best is the most robust one; if robust accuracy is what is bounded, the most accurate one.
    Of equally good ones it is the better one in the other accuracy, then the one with the larger
    bound. Between three ends the most robust one is that in both threats; if clean accuracy and
    robust accuracy in one threat are bounded, it is that in the other threat.

    Arguments:
        constraint: The constraint on an accuracy.
        measured: The measured models.
        reference: With a run as the reference: which images its model classifies correctly, with
            shape (n,).
        third: Between three ends: which images are robust in the threat of the third one, by
            model.
        clean: If the reference was run on more images than the models were attacked on: which of
            these each model classifies correctly.
        nearest: Whether to return the model with the largest bound if no model meets it.

    Raises:
        RunError: If no model meets it; the message names the one with the largest bound.
    """
    models, m = [verdicts for _, verdicts in measured], len(measured)
    clean = clean or [model.correct for model in models]
    lower, alpha = bounds(constraint, models, reference, third, clean)
    wanted = [_wanted(one, reference) for one in constraint.all]
    found = [lower[i::m] for i in range(m)]  # by model, the bound of each constraint
    margins = [min(b - w for b, w in zip(each, wanted, strict=True)) for each in found]

    def rank(i: int) -> tuple[int, int, float]:
        return *_worth(constraint, measured[i][0]), lower[i]

    meeting = [i for i, margin in enumerate(margins) if margin >= 0]
    best = max(meeting, key=rank) if meeting else max(range(m), key=margins.__getitem__)
    point, (bound, *also) = measured[best][0], found[best]
    choice = Choice(constraint, point.gamma, point, bound, alpha, m, tuple(also))
    choice = choice if reference is None else replace(choice, compared=len(reference))
    if meeting:
        return choice
    needed = None
    if reference is not None and constraint.kind == "max_clean_drop":
        columns = [flags.astype(np.float64) - reference for flags in clean]
        needed = images_needed(columns, constraint.value, alpha)
    choice = replace(choice, met=False, needed=needed)
    if nearest:
        return choice
    raise RunError(
        f"{constraint} cannot be met; the nearest is {choice}. More held-out images "
        f"{f'(about {needed:,}) ' if needed else ''}or points make bounds tighter: equipoise "
        "front --points, validation= in the recipe"
    )


def images_needed(columns: Sequence[NDArray[np.float64]], drop: float, alpha: float) -> int | None:
    """Return about how many images would do for one of some models to meet a paired constraint.

    The models are taken to differ from the reference on the same shares of more images.

    Arguments:
        columns: For each model its difference to the reference on each image: -1, 0 or 1.
        drop: The largest allowed drop.
        alpha: The level of the bound.

    Returns:
        The number of images; None if no number would do: all models lost more than ``drop``.
    """
    from scipy.special import ndtri

    z, found = float(ndtri(alpha)), []
    for column in columns:
        room = float(column.mean()) + drop
        if room > 0:
            found.append(math.ceil(z**2 * float(column.var()) / room**2))
    return max(min(found), len(columns[0]) + 1) if found else None


def _wanted(constraint: Constraint, reference: Flags | None) -> float:
    """Return what the lower bound of one constraint has to reach."""
    if constraint.kind != "max_clean_drop":
        return constraint.value
    return (0.0 if reference is not None else constraint.reference or 0.0) - constraint.value


def _worth(constraint: Constraint, point: Point) -> tuple[int, int]:
    """Return what makes a model the better one, the first count before the second."""
    kinds = {one.kind for one in constraint.all}
    if not kinds & {"max_clean_drop", "min_clean", "min_worst_class"}:
        return point.clean, point.union
    if point.third is not None and len(kinds & {"min_robust", "min_third"}) == 1:
        other = point.third.robust if "min_robust" in kinds else point.robust
        return other, point.union
    return point.union, point.clean


def bounds(
    constraint: Constraint,
    models: Sequence[Verdicts],
    reference: Flags | None = None,
    third: Sequence[Flags] = (),
    clean: Sequence[Flags] = (),
) -> tuple[list[float], float]:
    """Return each model's lower bound of the constrained accuracy or difference, and its level.

    Those of the first constraint come first. Together all hold with probability 0.95.
    """
    if constraint.kind == "min_worst_class":
        return _of_worst_classes(models)
    columns, paired = list[NDArray[np.float64]](), list[bool]()
    for one in constraint.all:
        drop = one.kind == "max_clean_drop" and reference is not None
        for i, model in enumerate(models):
            flags = clean[i] if drop and clean else None
            if flags is None:
                flags = _flags(one.kind, model, third[i] if third else None)
            column = flags.astype(np.float64)
            columns.append(column - reference if drop and reference is not None else column)
            paired.append(drop)
    alpha = level(np.stack(columns, 1))
    return [
        _difference(column, alpha)
        if drop
        else interval(int(column.sum()), len(column), 1 - 2 * alpha)[0]
        for column, drop in zip(columns, paired, strict=True)
    ], alpha


def _of_worst_classes(models: Sequence[Verdicts]) -> tuple[list[float], float]:
    """Return each model's lower bound of the clean accuracy of every class, and their level.

    A class without held-out images has the bound 0.
    """
    y, names = models[0].y, len(models[0].classes)
    labels = range(max(names, int(y.max()) + 1))
    alpha = ALPHA / (len(models) * len(labels))

    def bound(model: Verdicts, label: int) -> float:
        right = model.correct[y == label]
        return interval(int(right.sum()), len(right), 1 - 2 * alpha)[0]

    return [min(bound(model, label) for label in labels) for model in models], alpha


def _flags(kind: Kind, model: Verdicts, third: Flags | None) -> Flags:
    """Return on which images a model is right in the sense of a constraint."""
    if kind in ("max_clean_drop", "min_clean"):
        return model.correct
    if kind == "min_robust" or third is None:
        return model.robust
    return third if kind == "min_third" else model.robust & third


def level(values: NDArray[np.float64]) -> float:
    r"""Return the level of each bound at which the bounds of all columns hold together.

    Arguments:
        values: The verdicts on n images (rows) of m models (columns), with shape (n, m).

    Returns:
        :math:`\alpha'`, between 0.05 / m and 0.05.
    """
    from scipy.special import ndtr

    m = values.shape[1]
    if m == 1:
        return ALPHA
    correlation = np.eye(m)  # a constant column has no correlation
    varied = np.flatnonzero(values.std(0) > 0)
    if len(varied) > 1:
        correlation[np.ix_(varied, varied)] = np.corrcoef(values[:, varied], rowvar=False)
    eigenvalues, eigenvectors = np.linalg.eigh(correlation)
    root = eigenvectors * np.sqrt(np.clip(eigenvalues, 0, None))
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


@dataclass(frozen=True, eq=False, repr=False)
class Picked:
    """A model that was picked from a front.

    Arguments:
        model: The model, in eval mode, on the CPU.
        choice: The constraint, the bound of the model and its measurement.
        run: The run folder of the front.
        origin: The ends of the front, and how it was measured.
    """

    model: nn.Module
    choice: Choice
    run: Run
    origin: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        return f"Picked({str(self.choice)!r} of {str(self.run.path)!r})"

    @property
    def gamma(self) -> float:
        """The place of the model on the line."""
        return self.choice.gamma

    def write(self, out: str | Path) -> Run:
        """Write the model as the folder of a finished run.

        Arguments:
            out: The folder; it must not exist, or be empty.

        Raises:
            UserError: If it exists and is not empty, or cannot be written.
        """
        path = Path(out)
        with Run(path).lock("making a run"):
            if not is_free(path):
                raise UserError(f"{path} exists; choose another --out, or remove it")
            recipe = (self.run.path / "recipe.yaml").read_text(encoding="utf-8")
            run, digest = Run.create(path, recipe), model_digest(self.model)
            content = {
                "format": 1,
                "from": str(self.run.path),
                **self.choice.content(),
                "front": self.origin,
                "sha256": digest,
                "command": command("pick", self.run.path),
            }
            summary = {"finished": True, "rule": str(self.choice), "sha256": {"model": digest}}
            try:
                for name in ("config.json", "provenance.json"):
                    if (self.run.path / name).is_file():
                        run.write_json(name, self.run.read_json(name))
                run.write_model("model.safetensors", self.model.state_dict())
                run.write_json(PICKED, content)
                run.write_json("summary.json", summary)
            except BaseException:
                shutil.rmtree(path, ignore_errors=True)  # an incomplete folder looks like a run
                raise
            return run
