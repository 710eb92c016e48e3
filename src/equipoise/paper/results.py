"""``results.json`` as one checked long table: a row a model, radius and attack."""

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise.errors import UserError, short
from equipoise.measures.cmmr import unpack_credits
from equipoise.measures.regime import Regime
from equipoise.parsing import read_mapping
from equipoise.sample import Sample

FORMAT = 2

CLEAN, AUTOATTACK, WORST = "clean", "autoattack", "worst-case"


class PanelInfo(BaseModel):
    """One dataset, network and threat; the fields are those of docs/formats.md.

    ``n`` and ``budget`` are None where there is no limit, ``sample`` where it is not recorded.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    data: str
    model: str = ""
    classes: int = Field(10, ge=1)
    norm: str = "linf"
    eps: tuple[float, ...] = ()
    n: int | None = None
    sample: Sample | None = None
    split: Literal["test", "held-out"] = "test"
    attacks: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    budget: float | None = None
    images: int | None = None
    facts: tuple[str, ...] = ()


class TrainingRow(BaseModel):
    """A trained model; ``t_start`` is the round t', or None."""

    panel: str
    entry: str
    method: str
    seed: int
    rounds: int | None = None
    t_start: int | None = None
    gradient_evaluations: float | None = None
    training_seconds: float | None = Field(None, alias="seconds")
    regime: Regime | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


class ResultRow(BaseModel):
    """The images that one model classifies correctly under one attack."""

    panel: str
    entry: str
    seed: int
    weights: str = "model"
    eps: float = Field(allow_inf_nan=False)
    attack: str
    n: int = Field(ge=1)
    sample: str = ""
    correct: int
    bits: str
    round: int | None = None
    gamma: float | None = None
    seconds: float | None = None
    cmmr: dict[str, Any] | None = None
    cmmr2: dict[str, Any] | None = None
    credits: str = ""
    credits2: str = ""

    @cached_property
    def flags(self) -> NDArray[np.bool_]:
        """Whether each image is classified correctly, of shape (n,)."""
        name = f"{self.entry}, seed {self.seed}, {self.weights}, eps {self.eps:g}, {self.attack}"
        packed = np.frombuffer(bytes.fromhex(self.bits), np.uint8)
        if packed.size != -(-self.n // 8):
            raise ValueError(f"{name}: the bits are not of {self.n} images")
        flags = np.unpackbits(packed)[: self.n].astype(bool)
        if int(flags.sum()) != self.correct:
            raise ValueError(f"{name}: {self.correct} correct, but bits of {flags.sum()}")
        return flags

    @cached_property
    def scores(self) -> Mapping[str, Any]:
        """The numbers of its composite scores, and the credits of the images.

        By ``cmmr_`` or ``cmmr2_`` and their names; the credits, of shape (n,), are
        ``cmmr_credits`` and ``cmmr2_credits``. What is missing or infinite is left out.
        """
        found: dict[str, Any] = {}
        named = {"cmmr": (self.cmmr, self.credits), "cmmr2": (self.cmmr2, self.credits2)}
        for score, (content, packed) in named.items():
            found |= {f"{score}_{name}": value for name, value in _finite(content or {}).items()}
            if packed:
                each = unpack_credits(packed)
                if len(each) != self.n or abs(each.mean() - found[f"{score}_score"]) > 1e-5:
                    where = f"{self.entry}, seed {self.seed}, eps {self.eps:g}"
                    raise ValueError(f"{where}: the credits are not those of the score {score}")
                found[f"{score}_credits"] = each
        if self.cmmr2:
            found["cmmr2_attacks"] = self.cmmr2["attacks"]
        return found


class Results(BaseModel):
    """The results of an experiment; the fields are those of docs/formats.md."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    scale: str = ""
    title: str = ""
    command: str = ""
    planned: int | None = None
    missing: tuple[str, ...] = ()
    panels: tuple[PanelInfo, ...]
    trainings: tuple[TrainingRow, ...]
    results: tuple[ResultRow, ...]

    @cached_property
    def table(self) -> pd.DataFrame:
        """The long table: a row a model, radius and attack, with the fields of its training.

        It also has ``flags`` (an array of n booleans), ``accuracy`` (a fraction) and the fields of
        :attr:`ResultRow.scores`. Rows are in the order of panels, entries and seeds.
        Missing values are None.
        """
        panels = [panel.name for panel in self.panels]
        entries = [(panel.name, entry) for panel in self.panels for entry in panel.entries]
        place = {key: i for i, key in enumerate(entries)}

        def order(row: ResultRow) -> tuple[object, ...]:
            entry = place.get((row.panel, row.entry), len(place))
            return panels.index(row.panel), entry, row.entry, row.seed, row.eps

        rows = [
            row.model_dump(exclude={"bits", "cmmr", "cmmr2", "credits", "credits2"})
            | {"flags": row.flags, "accuracy": row.correct / row.n}
            | dict(row.scores)
            for row in sorted(self.results, key=order)
        ]
        names = [*ResultRow.model_fields, "flags", "accuracy"]
        judged = pd.DataFrame(rows, columns=None if rows else names, dtype=object)
        columns = [*TrainingRow.model_fields]
        trained = [row.model_dump() for row in self.trainings]
        trainings = pd.DataFrame(trained, columns=columns, dtype=object)
        return judged.merge(trainings, on=["panel", "entry", "seed"])

    def of(self, panel: PanelInfo) -> pd.DataFrame:
        """Return the rows of a panel."""
        return self.table[self.table["panel"] == panel.name]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        panels = [panel.name for panel in self.panels]
        trained = [(row.panel, row.entry, row.seed) for row in self.trainings]
        judged = [
            (row.panel, row.entry, row.seed, row.weights, row.eps, row.attack)
            for row in self.results
        ]
        for what, keys in (("panels", panels), ("trainings", trained), ("results", judged)):
            if len(set(keys)) < len(keys):
                raise ValueError(f"two {what} have the same name or are of the same model")
        for panel, entry, _ in trained:
            if panel not in panels:
                raise ValueError(f"{entry} is of the panel {panel!r}, which is not listed")
        if lost := {key[:3] for key in judged} - set(trained):
            raise ValueError(f"there are results, but no training, of {min(lost)}")
        for row in self.results:
            row.flags, row.scores  # noqa: B018 - checks that counts and bits agree, and credits
        return self


def read(path: Path) -> Results:
    """Return the results that a file holds.

    Raises:
        UserError: where it is damaged, of another format or contradicts itself.
    """
    content: Mapping[str, Any] = read_mapping(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path}: expected format {FORMAT}, got {content.get('format')!r}; "
            "make it again with `equipoise reproduce` of this version"
        )
    if content.get("experiment") != path.parent.name:
        raise UserError(
            f"{path}: expected the experiment {path.parent.name}, got "
            f"{content.get('experiment')!r}; move the file to the folder of its experiment"
        )
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        line = f"{place}: {reason}, got {short(first['input'])}" if place else reason
        raise UserError(
            f"{path} is not as expected ({line}); restore it or make it again"
        ) from None


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a composite score by their names."""
    numbers = (int, float)
    return {k: v for k, v in values.items() if isinstance(v, numbers) and math.isfinite(v)}
