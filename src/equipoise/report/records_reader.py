"""Records of an evaluation: one for each attack, with its stages where it is an ensemble."""

__all__ = ["Record", "Stage", "record"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.sample import Sample


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One attack of an ensemble, in its turn.

    Arguments:
        attack: Its name.
        entered: How many images were still classified correctly when its turn came.
        broken: How many of them it broke.
        robust: How many withstood it and all before it.
        accuracy: The same as a share of all images.
        interval: The 95 % interval of that share.
        alone: The share that withstands it alone; None where it did not attack them all.
        settings: Its settings, in words.
        notes: What had to be changed for the model, in sentences.
        finished: Whether it attacked all that it was to attack.
        seconds: The time it took.
        forwards: Images that passed forward through the model.
        backwards: Images that passed backward through it.
    """

    attack: str
    entered: int
    broken: int
    robust: int
    accuracy: float
    interval: tuple[float, float] | None = None
    alone: float | None = None
    settings: str = ""
    notes: tuple[str, ...] = ()
    finished: bool = True
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was measured for one attack (or ``clean``, or ``worst-case``) at one budget."""

    attack: str
    n: int
    robust: int
    accuracy: float
    norm: str | None = None
    eps: float | None = None
    split: str = "test"
    sample: Sample | None = None
    settings: str = ""
    interval: tuple[float, float] | None = None
    per_class: Mapping[str, float]
    worst_class: tuple[str, float] | None = None
    attacks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    model_sha256: str | None = None
    data_sha256: str | None = None
    weights: str = "model"
    stages: tuple[Stage, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0
    passes: int = 1
    precision: str = ""
    seed: int | None = None

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and budget, or None where nothing was perturbed."""
        return (self.norm, round(self.eps, 9)) if self.norm and self.eps else None

    @property
    def images(self) -> tuple[int, str]:
        """What is the same for records of the same images: their number and checksum."""
        return self.n, self.sample.sha256 if self.sample else ""

    @property
    def entire(self) -> bool:
        """Whether it speaks for itself: the first stage of an ensemble met all correct images."""
        first = self.stages[0] if self.stages else None
        return first is None or first.alone is not None or not first.finished


def record(value: Mapping[str, Any]) -> Record:
    """Return a record from its JSON.

    Raises:
        AttributeError, KeyError, TypeError, ValueError: where it is not as expected.
    """
    worst = value.get("worst_class")
    classes = value.get("per_class") or {}
    return Record(
        attack=str(value["attack"]),
        n=int(value["n"]),
        robust=int(value["robust"]),
        accuracy=float(value["accuracy"]),
        norm=value.get("norm"),
        eps=value.get("eps"),
        split=str(value.get("split") or "test"),
        sample=Sample.of_content(value["sample"]) if value.get("sample") else None,
        settings=str(value.get("settings") or ""),
        interval=_bounds(value.get("interval")),
        per_class={str(k): float(v["accuracy"]) for k, v in classes.items() if v.get("n", 1)},
        worst_class=(str(worst["name"]), float(worst["accuracy"])) if worst else None,
        attacks=tuple(str(a) for a in value.get("attacks") or () if a != "clean"),
        warnings=_texts(value.get("warnings")),
        model_sha256=value.get("model_sha256"),
        data_sha256=value.get("data_sha256"),
        weights=str(value.get("weights") or "model"),
        stages=tuple(_stage(stage) for stage in value.get("stages") or ()),
        notes=_texts(value.get("notes")),
        **_cost(value),
        passes=int(value.get("passes") or 1),
        precision=str(value.get("precision") or ""),
        seed=None if value.get("seed") is None else int(value["seed"]),
    )


def _stage(value: Mapping[str, Any]) -> Stage:
    alone = value.get("alone")
    return Stage(
        attack=str(value["attack"]),
        entered=int(value["entered"]),
        broken=int(value["broken"]),
        robust=int(value["robust"]),
        accuracy=float(value["accuracy"]),
        interval=_bounds(value.get("interval")),
        alone=None if alone is None else float(alone),
        settings=str(value.get("settings") or ""),
        notes=_texts(value.get("notes")),
        finished=bool(value.get("finished", True)),
        **_cost(value),
    )


def _cost(value: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "seconds": float(value.get("seconds") or 0),
        "forwards": int(value.get("forwards") or 0),
        "backwards": int(value.get("backwards") or 0),
    }


def _bounds(value: Sequence[float] | None) -> tuple[float, float] | None:
    low, high = (float(value[0]), float(value[1])) if value else (math.nan, math.nan)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _texts(value: Sequence[object] | None) -> tuple[str, ...]:
    return tuple(str(text) for text in value or ())
