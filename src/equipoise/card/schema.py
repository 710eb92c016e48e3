"""The content of ``card.json``; ``docs/formats.md`` describes each field."""

import json
import math
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from equipoise.errors import UserError, short
from equipoise.parsing import number
from equipoise.sample import Sample
from equipoise.store.finding import Finding
from equipoise.store.records import WORST
from equipoise.store.sealed import seal

FILE = "card.json"
FORMAT = 1
LARGEST = 1 << 28  # bytes of a card.json that is read

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 48)]
Share = Annotated[float, Field(ge=0, le=1)]
Bits = Annotated[str, Field(pattern="^([0-9a-f]{2})*$")]
"""One bit for each image, hexadecimal of ``numpy.packbits``."""

Flags = NDArray[np.bool_]

_CONTROL = re.compile(r"(?<!\\)(\\\\)*\\(u00[018-9][0-9a-f]|u007f|[bfr])")
"""Characters in JSON that could change what a terminal shows."""


class CardPart(BaseModel):
    """A part of a card: it cannot be changed, and has no other fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CardCode(CardPart):
    """The source file of a model: its name without the folder, and when it was recorded."""

    file: str
    sha256: Digest
    recorded: Literal["evaluation", "card"]


class CardModel(CardPart):
    """The model: its weights, and the code that builds it.

    ``sha256`` is the checksum of names, types, shapes and values, ``file_sha256`` that of the
    file; ``source`` is the name of a ``registered`` network, or ``package.module:function``.
    """

    weights: str
    sha256: Digest
    file: str | None
    file_sha256: Digest | None
    kind: Literal["registered", "function"]
    source: str
    settings: dict[str, Any] | None
    code: CardCode | None
    package: str


class CardInputs(CardPart):
    """How images become inputs of the model, as far as it is known."""

    shape: tuple[Count, ...]
    low: float
    high: float
    grid: str | None
    scale: str
    normalise: Literal["none"] | dict[str, list[float]] | None
    normalisation: str
    remarks: tuple[str, ...]
    not_recorded: tuple[str, ...]


class CardTraining(CardPart):
    """The training: its recipe, data and versions."""

    method: str
    finished: bool
    data: str
    data_sha256: dict[str, str]
    recipe: dict[str, Any]
    kept: str
    software: dict[str, Any]


class CardThreat(CardPart):
    """What an attack may change: ``size`` is text like 8/255 or 0.1, in ``unit``."""

    kind: str
    size: str
    unit: str
    low: float
    high: float
    terms: dict[str, str]

    @property
    def eps(self) -> float:
        """The size as a number."""
        value = number(self.size)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"the size of the threat is no number: {short(self.size)}")
        return float(value)


class CardData(CardPart):
    """The evaluated images; the checksums are those of inputs, labels and all test images."""

    name: str
    split: str
    n: Annotated[int, Field(ge=1, lt=1 << 40)]
    sample: Sample
    inputs_sha256: Digest
    labels_sha256: Digest
    dataset_sha256: Digest
    classes: tuple[str, ...]


class CardCount(CardPart):
    """How many of n images are classified correctly, with the exact 95 % interval."""

    n: Count
    robust: Count
    accuracy: Share
    interval: tuple[Share, Share]


class CardResult(CardCount):
    """The count of ``clean``, of an attack, or of ``worst-case``, and that of each class."""

    attack: str
    per_class: dict[str, CardCount]


class CardAttack(CardPart):
    """One attack, or one stage of an ensemble: its verdict on each image, and how it was run."""

    name: str
    ensemble: str
    settings: str
    notes: tuple[str, ...]
    finished: bool
    attacked: Bits
    robust: Bits
    broken_first: Count
    forwards: Count
    backwards: Count
    rejected: Count
    nonfinite: Count
    made: dict[str, Any]


class CardPack(CardPart):
    """The file of the examples: its checksum, the root of its tree, and its counts."""

    file: str = Field(pattern=r"^pack/[A-Za-z0-9][A-Za-z0-9 ._%-]*\.safetensors$")
    sha256: Digest
    root: Digest
    images: Count
    examples: Count


class CardEvaluation(CardPart):
    """One evaluation: one threat, one sample of images, several attacks."""

    name: str
    finished: bool
    threat: CardThreat
    data: CardData
    results: tuple[CardResult, ...]
    audit: dict[str, Any] | None
    control: dict[str, float] | None
    checks: tuple[Finding, ...]
    correct: Bits
    attacks: tuple[CardAttack, ...]
    protocol: dict[str, Any]
    seed: Annotated[int, Field(ge=0, lt=1 << 63)]
    passes: Annotated[int, Field(ge=1, le=1000)]
    precision: str
    software: dict[str, Any]
    pack: CardPack

    @model_validator(mode="after")
    def _fits(self) -> "CardEvaluation":
        if not math.isfinite(self.threat.eps):
            raise ValueError("the size of the threat is not finite")
        given = {f"attacks.{a.name}.attacked": a.attacked for a in self.attacks}
        given |= {f"attacks.{a.name}.robust": a.robust for a in self.attacks}
        for name, bits in ({"correct": self.correct} | given).items():
            if len(bits) != 2 * -(-self.data.n // 8):
                raise ValueError(f"the bits of {name} are not of {self.data.n} images")
        if len({attack.name for attack in self.attacks}) < len(self.attacks):
            raise ValueError("an attack is there twice")
        return self

    def flags(self, bits: str) -> Flags:
        """Return bits of this evaluation as booleans, with shape (n,)."""
        packed = np.frombuffer(bytes.fromhex(bits), np.uint8)
        return np.unpackbits(packed)[: self.data.n].astype(bool)

    def result(self, attack: str) -> CardResult | None:
        """Return the result of an attack, of ``clean`` or of ``worst-case``, if there is one."""
        return next((result for result in self.results if result.attack == attack), None)

    @property
    def checked(self) -> bool:
        """Whether its checks were run; the screens of an audit alone are not all of them."""
        return bool(self.checks) and self.protocol.get("checks") is not False

    @property
    def clean(self) -> CardResult | None:
        """The result on unchanged images."""
        return self.result("clean")

    @property
    def worst(self) -> CardResult | None:
        """The result under all attacks."""
        return self.result(WORST)


class ModelCard(CardPart):
    """A card: what was measured on one model, by whom anybody can check it."""

    format: Literal[1]
    complete: bool
    problems: tuple[str, ...]
    limits: tuple[str, ...]
    date: str | None
    model: CardModel
    inputs: CardInputs
    training: CardTraining | None
    choices: tuple[str, ...]
    evaluations: Annotated[tuple[CardEvaluation, ...], Field(min_length=1)]
    sha256: Digest

    @model_validator(mode="after")
    def _fits(self) -> "ModelCard":
        if len({each.name for each in self.evaluations}) < len(self.evaluations):
            raise ValueError("an evaluation is there twice")
        return self

    @cached_property
    def content(self) -> dict[str, Any]:
        """The card as plain values, in the order of the file."""
        return self.model_dump(mode="json")


def sealed(content: dict[str, Any]) -> ModelCard:
    """Return the card of plain values, with its checksum."""
    plain = ModelCard.model_validate({**content, "sha256": "0" * 64}).content
    del plain["sha256"]
    return ModelCard.model_validate(seal(plain))


def load(folder: Path) -> ModelCard:
    """Return the card in a folder.

    Its checksum is not checked: see :mod:`equipoise.card.claims`.

    Raises:
        UserError: If there is none, or it is no card that this version reads.
    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(f"{folder} is no card, the folder that equipoise card RUN writes")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} is no card: it is larger than {LARGEST >> 20} MB")
    try:
        return parse(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path} is no card that can be read: {error}") from None


def parse(text: bytes) -> ModelCard:
    """Return the card in a text of JSON; raise a ValueError in one line if it is none."""
    try:
        card = ModelCard.model_validate_json(text)
        if _CONTROL.search(json.dumps(card.content)):
            raise ValueError("a text in it has control characters")
        return card
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "JSON"
        words = re.sub(r"^Value error, ", "", " ".join(first["msg"].split()))
        raise ValueError(f"{where[:100]}: {words[:200]}") from None
