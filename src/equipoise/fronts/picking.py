r"""Picking: which model of a measured front meets a constraint on the accuracy of all images.

The best of several measured models is also the luckiest one. So the lower bounds of all m models
are made to hold together with probability 0.95; then the bound of the chosen one holds, for
any rule of choice. Whether the front is monotone or has a barrier makes no difference.

Bonferroni would take the level :math:`0.05 / m` for each bound. But the verdicts of neighbours are
correlated. With :math:`R` the correlation of the models' verdicts over the images and
:math:`Z \sim N(0, R)`, the level is

.. math:: \alpha' = 1 - \Phi(q), \qquad P(\max_j Z_j \le q) = 0.95,

limited to :math:`[0.05 / m, 0.05]`. At that level the bound of a model is

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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from equipoise.errors import RunError, UserError
from equipoise.fronts.record import Point
from equipoise.measures.statistics import interval, outwards
from equipoise.parsing import share
from equipoise.plugins import command
from equipoise.store.digests import model_digest
from equipoise.store.runs import PICKED, Run, is_free
from equipoise.store.verdicts import Flags, Verdicts

Kind = Literal["max_clean_drop", "min_clean", "min_robust", "gamma"]

ALPHA = 0.05  # the chance that any of the bounds is wrong
DRAWS = 50_000  # of the largest of correlated normals


@dataclass(frozen=True)
class Constraint:
    """The constraint that a picked model has to meet.

    Arguments:
        kind: The accuracy that is bounded, or ``"gamma"``: gamma is given.
        value: The bound, as a fraction; or gamma.
        reference: With ``"max_clean_drop"``: the clean accuracy that the drop is measured from.
        standard: Or the run whose model is the reference, on the same images.
    """

    kind: Kind
    value: float
    reference: float | None = None
    standard: str | None = None

    @classmethod
    def of(
        cls,
        options: Mapping[Kind, float | str | None],
        reference: float | str | None = None,
        standard: str | None = None,
    ) -> Self:
        """Return the one constraint that was given; accuracies as for :func:`share`.

        Arguments:
            options: Each kind with its value, or None.
            reference: The accuracy that a drop is measured from.
            standard: Or the run whose model is the reference.

        Raises:
            UserError: If there is none or more than one, or it can hold for no model.
        """
        given = {kind: value for kind, value in options.items() if value is not None}
        if len(given) != 1:
            expected = ", ".join(f"--{kind.replace('_', '-')}" for kind in options)
            got = " and ".join(f"--{kind.replace('_', '-')}" for kind in given) or "none"
            raise UserError(f"expected exactly one of {expected}; got {got}")
        ((kind, value),) = given.items()
        problems, values = [], dict[str, float]()
        for name, number in (*given.items(), ("reference", reference)):
            if number is not None and name != "gamma":
                try:
                    values[name] = share(number, f"--{name.replace('_', '-')}")
                except UserError as error:
                    problems.append(str(error))
        if values.get("max_clean_drop") == 1:
            problems.append(
                "--max-clean-drop of 1 allows any accuracy; one percentage point is 0.01 or 1%"
            )
        if kind != "max_clean_drop" and (reference is not None or standard is not None):
            problems.append("--reference and --standard need --max-clean-drop")
        if reference is not None and standard is not None:
            problems.append("give --reference or --standard, not both")
        if problems:
            raise UserError("; ".join(problems))
        bound = float(value) if kind == "gamma" else values[kind]
        return cls(kind, bound, values.get("reference"), standard)

    def __str__(self) -> str:
        if self.kind == "gamma":
            return f"gamma = {self.value:g}"
        if self.kind != "max_clean_drop":
            what = self.kind.removeprefix("min_")
            return f"{what} accuracy at least {100 * self.value:g} %"
        source = self.standard or f"{100 * (self.reference or 0):g} %"
        return f"at most {100 * self.value:g} points of clean accuracy less than {source}"


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
            return f"{text}, which was not measured"
        text += (
            f": clean {point.clean_accuracy:.2%}, robust {point.robust_accuracy:.2%} on "
            f"{point.n} held-out images"
        )
        if self.bound is None:
            return text
        least, _ = outwards((self.bound, 1), 2)
        if self.constraint.kind == "max_clean_drop" and self.constraint.standard is not None:
            bound = f"{least:+.2f} points of clean accuracy against the reference"
        else:
            what = "robust" if self.constraint.kind == "min_robust" else "clean"
            bound = f"{least:.2f}% {what}"
        return f"{text}; 95 % lower bound {bound}"

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
    constraint: Constraint,
    measured: Sequence[tuple[Point, Verdicts]],
    reference: Flags | None = None,
) -> Choice:
    """Return the best model whose lower bound meets a constraint.

    The best is the most robust one; if robust accuracy is what is bounded, the most accurate one.
    Of equally good ones it is the better one in the other accuracy, then the one with the larger
    bound.

    Arguments:
        constraint: The constraint on an accuracy.
        measured: The measured models.
        reference: With a run as the reference: which images its model classifies correctly, with
            shape (n,).

    Raises:
        RunError: If no model meets it; the message names the one with the largest bound.
    """
    lower, alpha = bounds(constraint, [verdicts for _, verdicts in measured], reference)
    allowed = (0.0 if reference is not None else constraint.reference or 0.0) - constraint.value
    wanted = allowed if constraint.kind == "max_clean_drop" else constraint.value

    def rank(i: int) -> tuple[int, int, float]:
        clean, robust = measured[i][0].clean, measured[i][0].robust
        first, second = (clean, robust) if constraint.kind == "min_robust" else (robust, clean)
        return first, second, lower[i]

    meeting = [i for i, bound in enumerate(lower) if bound >= wanted]
    best = max(meeting, key=rank) if meeting else max(range(len(lower)), key=lower.__getitem__)
    point = measured[best][0]
    choice = Choice(constraint, point.gamma, point, lower[best], alpha, len(measured))
    if not meeting:
        raise RunError(
            f"{constraint} cannot be met; the nearest is {choice}. More held-out images or points "
            "make bounds tighter: equipoise front --points, validation= in the recipe"
        )
    return choice


def bounds(
    constraint: Constraint, models: Sequence[Verdicts], reference: Flags | None = None
) -> tuple[list[float], float]:
    """Return each model's lower bound of the constrained accuracy or difference, and its level.

    Together they hold with probability 0.95.
    """
    robust = constraint.kind == "min_robust"
    correct = [model.robust if robust else model.correct for model in models]
    values = np.stack(correct, 1).astype(np.float64)
    if reference is not None:
        values -= reference[:, None]
    alpha = level(values)
    if reference is not None:
        return [_difference(column, alpha) for column in values.T], alpha
    counts = [int(column.sum()) for column in values.T]
    return [interval(count, len(values), 1 - 2 * alpha)[0] for count in counts], alpha


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
