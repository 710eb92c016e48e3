"""``findings.json`` as checked values: what an experiment found, down to one bit an image."""

__all__ = [
    "CLEAN",
    "ENSEMBLE",
    "EXPERIMENTS",
    "FORMAT",
    "SPLITS",
    "WORST",
    "Findings",
    "Panel",
    "Row",
    "read",
]

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.errors import UserError
from equipoise.parsing import checked
from equipoise.report.reading import mapping
from equipoise.sample import Sample

FORMAT = 1
EXPERIMENTS = ("table2", "table3", "fig2", "fig3", "fig4", "fig5", "controls", "front", "settings")
CLEAN, ENSEMBLE, WORST = "clean", "autoattack", "worst-case"
SPLITS = ("test", "held-out")
_RAW = ("ass", "mse", "ald2", "psnr")


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One data set and model on which an experiment was made.

    Arguments:
        name: Its short name.
        title: Its title.
        data: The data set.
        model: The model, as it is printed.
        classes: How many classes there are.
        norm: The norm of the threat.
        eps: The radii, each a number.
        n: The images that were asked for; None: all of them.
        sample: Which they are; None: the first ones, by a version that did not say.
        split: Which images those are: ``test``, or ``held-out`` training images.
        attacks: The attacks, in the order of the columns.
        entries: The entries, in the order of the rows.
        seeds: The seeds that were planned.
        budget: The gradient evaluations that a training may take; None: no limit.
        images: The training images of a round.
        facts: Where the numbers come from, in lines.
    """

    name: str
    title: str
    data: str
    model: str
    classes: int
    norm: str
    eps: tuple[float, ...]
    n: int | None
    sample: Sample | None
    split: str
    attacks: tuple[str, ...]
    entries: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: float | None
    images: int | None
    facts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model, attacked at one radius.

    Arguments:
        panel: The panel it belongs to.
        entry: Its entry.
        seed: Its seed.
        weights: Which weights of the training: ``model``, ``round-005``, ``gamma-0.4``, ...
        eps: The radius.
        n: The images it was shown.
        sample: The checksum of these images; empty where it is not known.
        correct: By attack, how many it still gets right.
        verdicts: By attack, which ones; may lack what ``correct`` has.
        rounds: The rounds of its training.
        round: The round, of a snapshot.
        gamma: The weight of the robust learner, of learners that were mixed anew.
        t_start: The round t'; None if none was found or none was looked for.
        gradient_evaluations: What the training took.
        training_seconds: How long the training took.
        evaluation_seconds: How long the attacks took.
        settings: The whole recipe of the training.
        cmmr: The composite score and its parts, if it was measured; what is not there is absent.
    """

    panel: str
    entry: str
    seed: int
    weights: str
    eps: float
    n: int
    sample: str
    correct: Mapping[str, int]
    verdicts: Mapping[str, NDArray[np.bool_]]
    rounds: int | None
    round: int | None
    gamma: float | None
    t_start: int | None
    gradient_evaluations: float | None
    training_seconds: float | None
    evaluation_seconds: float | None
    settings: Mapping[str, Any]
    cmmr: Mapping[str, float]

    def accuracy(self, attack: str) -> float | None:
        """Return the share of images that it still gets right, or None."""
        count = self.correct.get(attack)
        return None if count is None else count / self.n

    @property
    def start_rule(self) -> Mapping[str, Any]:
        """Return the settings of the rule for t'; of other methods nothing."""
        rule = self.settings.get("start")
        return rule if isinstance(rule, Mapping) else {}

    @property
    def handovers(self) -> list[int] | None:
        """Return the rounds with a hand-over, by the recipe; None if that cannot be told."""
        every, last = self.settings.get("every"), self.rounds
        if self.t_start is None or not isinstance(every, int) or last is None:
            return None if self.t_start is not None else []
        first = self.t_start + (0 if self.settings.get("inclusive", True) else 1)
        origin = 0 if self.settings.get("count") == "rounds" else self.t_start
        return [t for t in range(first, last + 1) if (t - origin) % every == 0]


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an experiment found.

    Arguments:
        experiment: Its name, one of ``EXPERIMENTS``.
        scale: The scale it was made at.
        command: The command that makes it.
        planned: How many evaluations there are to be; None if that is not told.
        missing: What is not there yet, a line each.
        panels: Where it was made.
        rows: What was found.
    """

    experiment: str
    scale: str
    command: str
    planned: int | None
    missing: tuple[str, ...]
    panels: tuple[Panel, ...]
    rows: tuple[Row, ...]

    def of(self, panel: Panel, *, weights: str | None = "model") -> list[Row]:
        """Return the rows of a panel, in the order of its entries and seeds.

        Arguments:
            panel: The panel.
            weights: Whose weights; None: all.
        """
        order = {name: i for i, name in enumerate(panel.entries)}
        mine = [r for r in self.rows if r.panel == panel.name and weights in (None, r.weights)]
        return sorted(mine, key=lambda r: (order.get(r.entry, len(order)), r.entry, r.seed, r.eps))


def read(path: Path) -> Findings:
    """Return the findings that a file holds.

    Arguments:
        path: The file.

    Raises:
        UserError: where it is damaged, of another format or does not agree with itself.
    """
    content = mapping(path, json.loads)
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
    return checked(path, _findings, content)


def _findings(content: Mapping[str, Any]) -> Findings:
    panels = tuple(_panel(panel) for panel in _list(content["panels"]))
    names = [panel.name for panel in panels]
    if len(set(names)) < len(names):
        raise ValueError(f"two panels have one name among {names}")
    rows = tuple(_row(row) for row in _list(content["rows"]))
    for row in rows:
        if row.panel not in names:
            raise ValueError(f"a row is of the panel {row.panel!r}, which is not there")
    keys = [(r.panel, r.entry, r.seed, r.weights, r.eps) for r in rows]
    if len(set(keys)) < len(keys):
        raise ValueError("two rows are of the same weights and radius")
    return Findings(
        experiment=str(content["experiment"]),
        scale=str(content.get("scale", "")),
        command=str(content.get("command", "")),
        planned=_whole(content.get("planned")),
        missing=_texts(content.get("missing", [])),
        panels=panels,
        rows=rows,
    )


def _panel(value: Mapping[str, Any]) -> Panel:
    split = str(value.get("split") or "test")
    if split not in SPLITS:
        raise ValueError(f"images of {split!r}: expected {' or '.join(SPLITS)}")
    return Panel(
        name=str(value["name"]),
        title=str(value.get("title") or value["name"]),
        data=str(value["data"]),
        model=str(value.get("model", "")),
        classes=max(1, int(value.get("classes", 10))),
        norm=str(value.get("norm", "linf")),
        eps=tuple(_finite(eps) for eps in _list(value.get("eps", []))),
        n=_whole(value.get("n")),
        sample=Sample.of_content(value["sample"]) if value.get("sample") else None,
        split=split,
        attacks=_texts(value.get("attacks", [])),
        entries=_texts(value.get("entries", [])),
        seeds=tuple(int(seed) for seed in _list(value.get("seeds", []))),
        budget=_number(value.get("budget")),
        images=_whole(value.get("images")),
        facts=_texts(value.get("facts", [])),
    )


def _row(value: Mapping[str, Any]) -> Row:
    n = int(value["n"])
    if n < 1:
        raise ValueError(f"a row of {value['entry']} is of {n} images")
    correct = {str(name): int(count) for name, count in value["correct"].items()}
    for name, count in correct.items():
        if not 0 <= count <= n:
            raise ValueError(f"{count} of {n} images right under {name}, {value['entry']}")
    return Row(
        panel=str(value["panel"]),
        entry=str(value["entry"]),
        seed=int(value["seed"]),
        weights=str(value.get("weights", "model")),
        eps=_finite(value["eps"]),
        n=n,
        sample=str(value.get("sample") or ""),
        correct=correct,
        verdicts=_verdicts(value.get("verdicts") or {}, correct, n),
        rounds=_whole(value.get("rounds")),
        round=_whole(value.get("round")),
        gamma=_number(value.get("gamma")),
        t_start=_whole(value.get("t_start")),
        gradient_evaluations=_number(value.get("gradient_evaluations")),
        training_seconds=_number(value.get("training_seconds")),
        evaluation_seconds=_number(value.get("evaluation_seconds")),
        settings=dict(value.get("settings") or {}),
        cmmr=_score(value.get("cmmr")),
    )


def _verdicts(
    written: Mapping[str, str], correct: Mapping[str, int], n: int
) -> dict[str, NDArray[np.bool_]]:
    """Return the verdicts, one bit an image; they must agree with the counts."""
    found = {}
    for name, text in written.items():
        packed = np.frombuffer(bytes.fromhex(text), np.uint8)
        if packed.size != -(-n // 8):
            raise ValueError(f"the verdicts of {name} are not of {n} images")
        flags = np.unpackbits(packed)[:n].astype(bool)
        if name in correct and int(flags.sum()) != correct[name]:
            said = f"{correct[name]} images right under {name}, but verdicts of {flags.sum()}"
            raise ValueError(said)
        found[name] = flags
    return found


def _score(value: Mapping[str, Any] | None) -> dict[str, float]:
    keys = ("score", "accuracy", "success", "distortion", *_RAW)
    pairs = ((key, _number((value or {}).get(key))) for key in keys)
    return {key: number for key, number in pairs if number is not None}


def _list(value: object) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(f"a list was expected, got {type(value).__name__}")
    return value


def _texts(value: object) -> tuple[str, ...]:
    texts: Iterable[Any] = _list(value)
    return tuple(str(text) for text in texts)


def _whole(value: object) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


def _number(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"a number was expected, got {value!r}")
    return float(value) if math.isfinite(value) else None


def _finite(value: object) -> float:
    number = _number(value)
    if number is None:
        raise ValueError(f"a finite number was expected, got {value!r}")
    return number
