"""A measured front, as it is written to ``front.json``, and which models to measure. No torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter

from equipoise.errors import UserError, one_line
from equipoise.fronts.barrier import Barrier, in_words
from equipoise.measures.by_class import classes_in_words, pairs
from equipoise.measures.statistics import interval
from equipoise.plugins import command
from equipoise.sample import Sample
from equipoise.terminal.table import TextTable, accuracy

FILE = "front.json"
FORMAT = 2
THREE = 3  # the format of a front between three ends
CORRUPTIONS = "corruptions-3"  # what models are measured on for an end that learned corruptions
FINEST = 1 / 64  # the smallest distance of two values of gamma
LEAST = 0.01  # neighbours whose accuracies differ by less need no point between them


Place = tuple[float, ...]  # the weights of the ends but the clean one: gamma, and of a third end


def shares(place: Place) -> Place:
    """Return the weights of all ends at a place, that of the clean end first."""
    return (1 - sum(place), *place)


def in_place(place: Place) -> str:
    """Return a place in words."""
    if len(place) == 1:
        return f"gamma = {place[0]:g}"
    clean, robust, third = shares(place)
    return f"{clean:.3g} clean + {robust:.3g} robust + {third:.3g} third"


@dataclass(frozen=True, kw_only=True)
class Third:
    """What a point between three ends has besides.

    Arguments:
        weight: The share of the third end.
        threat: The name of its threat: its norm, or ``third`` where that is the front's, or
            :data:`CORRUPTIONS`.
        robust: How many images are classified correctly under every attack in this threat.
        union: How many are under every attack in both threats.
        file: The file of the verdicts in this threat, from the run folder.
    """

    weight: float
    threat: str
    robust: int
    union: int
    file: str = ""


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
        third: Between three ends: its measurement in the threat of the third one. The costs are
            then those of both threats together.
        by_class: Where classes differ in size: :data:`equipoise.measures.by_class.BY_CLASS`.
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
    third: Third | None = None
    by_class: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise a ValueError if the counts cannot be."""
        third = self.third
        possible = 0 <= self.robust <= self.clean <= self.n and self.n >= 1
        if third is not None:
            least = min(self.robust, third.robust)
            possible = possible and 0 <= third.union <= least and third.robust <= self.clean
        if not possible:
            raise ValueError(f"the counts at gamma = {self.gamma} are not possible")

    @property
    def place(self) -> Place:
        """Its weights of the ends but the clean one."""
        return (self.gamma,) if self.third is None else (self.gamma, self.third.weight)

    @property
    def union(self) -> int:
        """How many images are correct under every attack in all threats."""
        return self.robust if self.third is None else self.third.union

    @property
    def where(self) -> str:
        """Its place in words."""
        return in_place(self.place)

    @property
    def words(self) -> str:
        """Its place and its accuracies in words."""
        return f"{self.where}: {self.accuracies}"

    @property
    def accuracies(self) -> str:
        """Its accuracies in words."""
        both = f"clean {self.clean_accuracy:.2%}, robust {self.robust_accuracy:.2%}"
        text = ", ".join(filter(None, [both, classes_in_words(self.by_class)]))
        if self.third is None:
            return text
        third, union = (count / self.n for count in (self.third.robust, self.third.union))
        return f"{text}, robust ({self.third.threat}) {third:.2%}, against both {union:.2%}"

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
        content = asdict(self) | {name: getattr(self, name) for name in names}
        return {k: v for k, v in content.items() if v or k not in ("third", "by_class")}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the point that plain values describe.

        Raises:
            KeyError, TypeError, ValueError: If a value is missing or not valid.
        """
        content = {"third": None, "by_class": {}, **content}
        given = {f.name: content[f.name] for f in fields(cls)}
        return TypeAdapter(cls).validate_python(given)


def lattice(points: int) -> list[Place]:
    r"""Return the places that are measured between three ends, the ends first.

    With q the largest number for which :math:`(q + 1)(q + 2) / 2` is at most ``points``, they have
    the weights :math:`(i/q, j/q, k/q)` with :math:`i + j + k = q`.

    Arguments:
        points: The largest number of places, at least 3.
    """
    q = 1
    while (q + 2) * (q + 3) // 2 <= points:
        q += 1
    places = [(i / q, j / q) for i in range(q + 1) for j in range(q + 1 - i)]
    return [*dict.fromkeys([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), *places])]


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
        also: Between three ends: norm and radius of the third one's threat.
    """

    ends: tuple[str, ...]
    sha256: tuple[str, ...]
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
    also: tuple[str, float] | None = None

    @property
    def threats(self) -> tuple[str, ...]:
        """The names of the threats, as ``pick --min-robust`` takes them."""
        return (self.norm, *({p.third.threat for p in self.points if p.third}))

    @property
    def images(self) -> str:
        """The held-out images in words."""
        return self.sample.words("held-out images")

    @property
    def words(self) -> str:
        """The barrier in a sentence; between three ends the best model in all threats."""
        if self.also is not None and self.points:
            best = max(self.points, key=lambda point: (point.union, point.clean))
            return f"Of these models the most robust one against both threats: {best.words}."
        return in_words(self.clean_barrier, self.robust_barrier)

    @property
    def attack(self) -> str:
        """The attacks, joined by "then"."""
        return " then ".join(self.attacks) or "no attack"

    def label(self, point: Point) -> str:
        """Return the name of a point: an end, a mark, or the folder of another run."""
        if point.name:
            return point.name
        places = ((0.0,), (1.0,)) if self.also is None else ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0))
        end = dict(zip(places, self.ends, strict=True)).get(point.place, "")
        return ", ".join(filter(None, [end, point.mark]))

    def __repr__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()

    def shown(self) -> TextTable:
        """Return the front as a table: a row for each point and each other model."""
        if self.also is not None:
            return self._shown_in_both(*self.also)
        more = ("balanced", "worst class") if any(p.by_class for p in self.points) else ()
        rows = [
            (
                "" if p.name else f"{p.gamma:g}",
                *accuracy(p.clean, p.n)[:2],
                *accuracy(p.robust, p.n)[:2],
                *(pairs(p.by_class) if more else ()),
                str(p.transferred),
                str(p.searched),
                self.label(p),
            )
            for p in (*self.points, *self.others)
        ]
        threat = f"{self.norm}, eps = {self.eps:g}, {self.images}; {self.attack}"
        title = f"Front between {' and '.join(self.ends)}: {threat}"
        pair = ("clean", "95 % interval", "robust", "95 % interval")
        header = ("gamma", *pair, *more, "transferred", "searched", "")
        return TextTable(title, header, rows, (self.words,))

    def _shown_in_both(self, norm: str, eps: float) -> TextTable:
        rows = [
            (
                "" if p.name else " ".join(f"{share:.2f}" for share in shares(p.place)),
                *accuracy(p.clean, p.n)[:2],
                *(accuracy(count, p.n)[0] for count in (p.robust, p.third.robust)),
                *accuracy(p.union, p.n)[:2],
                self.label(p),
            )
            for p in (*self.points, *self.others)
            if p.third is not None
        ]
        second = CORRUPTIONS if CORRUPTIONS in self.threats else f"{norm}, eps = {eps:g}"
        threats = f"{self.norm}, eps = {self.eps:g}; {second}"
        title = (
            f"Front between {', '.join(self.ends)}: {threats}; {self.images}; {self.attack}; "
            "weights in the order of the ends"
        )
        robust = (*self.threats, "both", "95 % interval")
        header = ("weights", "clean", "95 % interval", *robust, "")
        return TextTable(title, header, rows, (self.words,))

    def content(self) -> dict[str, Any]:
        """Return the record as plain values."""
        points = {
            name: [point.content() for point in getattr(self, name)]
            for name in ("points", "others")
        }
        head = {"format": FORMAT, "split": "validation", "barrier": self.words}
        if self.also is not None:
            head = {"format": THREE, "split": "validation", "in_words": self.words}
        content = head | asdict(self) | points
        return content if self.also else {k: v for k, v in content.items() if k != "also"}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that plain values describe."""
        if content["format"] not in (FORMAT, THREE):
            raise ValueError(f"its format is {content['format']}, not {FORMAT} or {THREE}")
        content = {"also": None, **content}
        given = {f.name: content[f.name] for f in fields(cls)}
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
