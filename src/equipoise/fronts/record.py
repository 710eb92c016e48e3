"""What is known of a front, as ``front.json`` in the run folder has it."""

__all__ = ["FILE", "Mark", "Other", "Record"]

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from equipoise.errors import UserError
from equipoise.fronts.barrier import Barrier, in_words
from equipoise.fronts.points import Point
from equipoise.plugins import command
from equipoise.sample import Sample
from equipoise.terminal.table import TextTable, accuracy

FILE = "front.json"
FORMAT = 1


@dataclass(frozen=True)
class Mark:
    """A place on the line that has a meaning.

    Arguments:
        gamma: Where it is.
        what: What it is, like ``gamma of this run``.
    """

    gamma: float
    what: str


@dataclass(frozen=True)
class Other:
    """Another run's model, measured as the front is.

    Arguments:
        name: Its folder, as it was given.
        method: Its method.
        point: What was measured; its gamma says nothing.
    """

    name: str
    method: str
    point: Point


@dataclass(frozen=True, kw_only=True, repr=False)
class Record:
    """A measured front.

    Arguments:
        ends: What the ends are called, the clean one first.
        sha256: The checksums of their weights.
        norm: The norm of the threat.
        eps: Its radius, in units of the input.
        attacks: The attacks by name; each attacked what withstood those before.
        n: The number of held-out images.
        sample: Which of the held-out images; None: the first n, by an older version.
        data: The checksum of these images.
        batchnorm: Whether statistics of BatchNorm are averaged or estimated anew.
        seed: The seed of all that is random.
        points: What was measured, by gamma.
        marks: Places that have a meaning.
        others: Models of other runs.
        clean_barrier: The barrier in clean accuracy; None where it is not known.
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
    data: str
    batchnorm: str
    seed: int
    points: tuple[Point, ...]
    marks: tuple[Mark, ...] = ()
    others: tuple[Other, ...] = ()
    clean_barrier: Barrier | None = None
    robust_barrier: Barrier | None = None
    gallery: str = ""
    classes: tuple[str, ...] = ()
    sample: Sample | None = None

    @property
    def images(self) -> str:
        """The held-out images in words."""
        if self.sample is None:
            return f"the first {self.n:,} held-out images"
        return self.sample.words("held-out images")

    def __repr__(self) -> str:
        return self.shown().text()

    def _repr_html_(self) -> str:
        return self.shown().html()

    def shown(self) -> TextTable:
        """Return the front in a few lines: a row for each point and each other model."""
        named = dict(zip((0.0, 1.0), self.ends, strict=True))
        points = [(f"{p.gamma:g}", p, named.get(p.gamma, "")) for p in self.points]
        points += [("", other.point, other.name) for other in self.others]
        rows = [
            (gamma, *accuracy(p.clean, p.n)[:2], *accuracy(p.robust, p.n)[:2], what)
            for gamma, p, what in points
        ]
        threat = f"{self.norm}, eps {self.eps:g}, n = {self.n}, {self.attack}"
        title = f"Front between {' and '.join(self.ends)}: {threat}"
        header = ("gamma", "clean", "95 % interval", "robust", "95 % interval", "")
        return TextTable(title, header, rows, (self.words,))

    @property
    def words(self) -> str:
        """What the barrier says, in a sentence."""
        return in_words(self.clean_barrier, self.robust_barrier)

    @property
    def attack(self) -> str:
        """The attacks in a few words."""
        return " then ".join(self.attacks) or "no attack"

    def content(self) -> dict[str, Any]:
        """Return the record as plain values."""
        points = [point.content() for point in self.points]
        others = [asdict(other) | {"point": other.point.content()} for other in self.others]
        split = {"split": "validation", "barrier": self.words}
        written = asdict(self) | split | {"points": points, "others": others}
        return {"format": FORMAT, **written}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Self:
        """Return the record that plain values describe."""
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        given = {name: content[name] for name in cls.__dataclass_fields__ if name in content}
        for name in ("ends", "sha256", "attacks", "classes"):
            given[name] = tuple(str(value) for value in given[name])
        given["points"] = tuple(Point.of(point) for point in given["points"])
        given["marks"] = tuple(Mark(**mark) for mark in given["marks"])
        given["others"] = tuple(
            Other(other["name"], other["method"], Point.of(other["point"]))
            for other in given["others"]
        )
        if given.get("sample") is not None:
            given["sample"] = Sample.of_content(given["sample"])
        for name in ("clean_barrier", "robust_barrier"):
            given[name] = None if given[name] is None else Barrier(**given[name])
        return cls(**given)

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the front of a run folder; None where none was measured.

        Raises:
            UserError: If its file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            return cls.of(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            line = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"{path} is damaged ({line}); remove it and repeat {command('front', folder)}: "
                "what was measured is kept beside it"
            ) from None
