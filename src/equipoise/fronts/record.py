"""A measured front, as it is written to ``front.json``, and which models to measure. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from equipoise.errors import UserError, one_line
from equipoise.fronts.barrier import Barrier, in_words
from equipoise.measures.statistics import interval
from equipoise.plugins import command
from equipoise.sample import Sample
from equipoise.terminal.table import TextTable, accuracy

FILE = "front.json"
FORMAT = 2
FINEST = 1 / 64  # the smallest distance of two values of gamma
LEAST = 0.01  # neighbours whose accuracies differ by less need no point between them


@dataclass(frozen=True, kw_only=True)
class Point:
    r"""The measurement of the model :math:`(1 - \gamma) \theta_n + \gamma \theta_r`.

    Arguments:
        gamma: The share of the robust end; outside [0, 1] beyond an end. Without a meaning for
            the model of another run.
        n: The number of images.
        clean: How many of them are classified correctly.
        robust: How many of these are classified correctly under every attack.
        transferred: How many are misclassified with adversarial examples of neighbouring points.
        searched: How many the first attack was run on.
        forwards: Images that passed forward through the model in the attacks.
        backwards: Images that passed backward through it.
        seconds: The time of the attacks.
        sha256: The checksum of the weights: :func:`equipoise.store.digests.model_digest`.
        file: The file of the verdicts and adversarial examples, from the run folder.
        mark: A meaning of gamma, like ``gamma of this run's last round``; usually empty.
        name: For the model of another run: its folder, as it was given.
        method: For the model of another run: its method.
    """

    gamma: float
    n: int
    clean: int
    robust: int
    transferred: int = 0
    searched: int = 0
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0
    sha256: str = ""
    file: str = ""
    mark: str = ""
    name: str = ""
    method: str = ""

    def __post_init__(self) -> None:
        """Raise a ValueError if the counts cannot be."""
        if not 0 <= self.robust <= self.clean <= self.n or self.n < 1:
            raise ValueError(f"the counts at gamma = {self.gamma} are not possible")

    @property
    def clean_accuracy(self) -> float:
        """The share of images that are classified correctly, in [0, 1]."""
        return self.clean / self.n

    @property
    def robust_accuracy(self) -> float:
        """The share of images that are correct under every attack, in [0, 1]: an upper bound."""
        return self.robust / self.n

    @property
    def clean_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the clean accuracy."""
        return interval(self.clean, self.n)

    @property
    def robust_interval(self) -> tuple[float, float]:
        """The exact 95 % interval of the robust accuracy."""
        return interval(self.robust, self.n)

    def content(self) -> dict[str, Any]:
        """Return the point as plain values, with accuracies and intervals."""
        names = ("clean_accuracy", "clean_interval", "robust_accuracy", "robust_interval")
        return asdict(self) | {name: getattr(self, name) for name in names}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the point that plain values describe.

        Raises:
            KeyError, TypeError, ValueError: If a value is missing or not valid.
        """
        given = {field.name: content[field.name] for field in fields(cls)}
        return TypeAdapter(cls).validate_python(given)


def initial(marked: Sequence[float], beyond: float) -> list[float]:
    """Return the values of gamma that are always measured, the ends first.

    Arguments:
        marked: Values of interest, like a run's own gamma.
        beyond: How far to go beyond the ends; 0: not.
    """
    outside = [1 + beyond, -beyond] if beyond > 0 else []
    return list(dict.fromkeys([1.0, 0.0, 0.5, *marked, *outside]))


def following(points: Sequence[Point]) -> float | None:
    r"""Return the next value of gamma: the middle of the neighbours that differ most.

    Neighbours :math:`i, j` differ by :math:`\max(|A_i - A_j|, |R_i - R_j|)`, A clean and R robust
    accuracy. Of equal differences the pair that is farthest apart is taken, then the one nearest
    to the robust end.

    Arguments:
        points: The measured points, in any order.

    Returns:
        Gamma; None if all neighbours are closer than twice :data:`FINEST`, or differ by
        :data:`LEAST` at most.
    """
    pairs = []
    for a, b in pairwise(sorted(points, key=lambda point: point.gamma)):
        difference = max(
            abs(a.clean_accuracy - b.clean_accuracy), abs(a.robust_accuracy - b.robust_accuracy)
        )
        if difference > LEAST and b.gamma - a.gamma >= 2 * FINEST - 1e-12:
            pairs.append((difference, b.gamma - a.gamma, a.gamma))
    if not pairs:
        return None
    _, width, left = max(pairs)
    return round(left + width / 2, 6)


@dataclass(frozen=True, kw_only=True, repr=False)
class FrontRecord:
    """A measured front.

    Arguments:
        ends: The names of the ends, the clean one first.
        sha256: The checksums of their weights.
        norm: The norm of the threat.
        eps: Its radius, in units of the input.
        attacks: The attacks by name; each attacks the images that are still robust.
        n: The number of held-out images.
        sample: Which of the held-out images.
        data: The checksum of these images.
        batchnorm: Whether statistics of BatchNorm are averaged or estimated.
        seed: The seed of all random numbers.
        points: The measured points, by gamma.
        others: The measured models of other runs.
        clean_barrier: The barrier in clean accuracy; None if it was not measured.
        robust_barrier: The barrier in robust accuracy.
        gallery: The file of a few images, from the run folder.
        classes: The names of the classes, by label.
    """

    ends: tuple[str, str]
    sha256: tuple[str, str]
    norm: str
    eps: float
    attacks: tuple[str, ...]
    n: int
    sample: Sample
    data: str
    batchnorm: str
    seed: int
    points: tuple[Point, ...]
    others: tuple[Point, ...] = ()
    clean_barrier: Barrier | None = None
    robust_barrier: Barrier | None = None
    gallery: str = ""
    classes: tuple[str, ...] = ()

    @property
    def images(self) -> str:
        """The held-out images in words."""
        return self.sample.words("held-out images")

    @property
    def words(self) -> str:
        """The barrier in a sentence."""
        return in_words(self.clean_barrier, self.robust_barrier)

    @property
    def attack(self) -> str:
        """The attacks, joined by "then"."""
        return " then ".join(self.attacks) or "no attack"

    def label(self, point: Point) -> str:
        """Return the name of a point: an end, a mark, or the folder of another run."""
        if point.name:
            return point.name
        end = dict(zip((0.0, 1.0), self.ends, strict=True)).get(point.gamma, "")
        return ", ".join(filter(None, [end, point.mark]))

    def __repr__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()

    def shown(self) -> TextTable:
        """Return the front as a table: a row for each point and each other model."""
        rows = [
            (
                "" if p.name else f"{p.gamma:g}",
                *accuracy(p.clean, p.n)[:2],
                *accuracy(p.robust, p.n)[:2],
                str(p.transferred),
                str(p.searched),
                self.label(p),
            )
            for p in (*self.points, *self.others)
        ]
        threat = f"{self.norm}, eps = {self.eps:g}, {self.images}; {self.attack}"
        title = f"Front between {' and '.join(self.ends)}: {threat}"
        pair = ("clean", "95 % interval", "robust", "95 % interval")
        header = ("gamma", *pair, "transferred", "searched", "")
        return TextTable(title, header, rows, (self.words,))

    def content(self) -> dict[str, Any]:
        """Return the record as plain values."""
        points = {
            name: [point.content() for point in getattr(self, name)]
            for name in ("points", "others")
        }
        head = {"format": FORMAT, "split": "validation", "barrier": self.words}
        return head | asdict(self) | points

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that plain values describe."""
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        given = {field.name: content[field.name] for field in fields(cls)}
        points = {name: [*map(Point.of, given[name])] for name in ("points", "others")}
        return TypeAdapter(cls).validate_python(given | points)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the front of a run folder; None if it was not measured.

        Raises:
            UserError: If its file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({one_line(error, 200)}); remove it and repeat "
                f"{command('front', folder)}: the measured models are kept in front/"
            ) from None
