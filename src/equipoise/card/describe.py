"""Makes a card from what is stored of a run and its evaluations. Nothing is measured here."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from equipoise.card.schema import (
    FORMAT,
    CardEvaluation,
    CardPack,
    CardThreat,
    CardTraining,
    Flags,
    ModelCard,
    sealed,
)
from equipoise.measures.statistics import interval
from equipoise.parsing import load, read_mapping
from equipoise.store.audit import Audit
from equipoise.store.records import Record
from equipoise.store.verdicts import Evaluation, Verdicts

SHARE_OF_RANGE = "fraction of the input range"
TERMS = {
    "source": "NIST AI 100-2 E2025",
    "attack": "evasion",
    "objective": "integrity violation",
    "knowledge": "white-box",
    "capability": "testing data control, within the threat",
}
LIMITS = (
    "The robust accuracy is an upper bound under the attacks listed: others may fool more images.",
    "Only these images, this threat and this model in float32 arithmetic were tested.",
    "An interval is the exact 95 % interval for images drawn like these.",
    "The examples prove which images are not robust.",
    "That the others were attacked is shown by attacking them again, or by repeating the audit.",
    "Of the model's code the named file is recorded, not what that file imports.",
    "A signature says whose card it is, not that its numbers are right.",
)
NOT_RECORDED = (
    "how images were resized before they were stored in the data set",
    "how they were cropped",
    "how they were rotated or flipped to their orientation",
    "how their colours were converted",
)
_BOUNDS = "survivors audited missed method least most lower upper sentence"
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/,()]+/)+")
_LEFT_OUT = ("started", "command", "source")  # times, and paths of this computer


def threat_of(norm: str, eps: float, low: float = 0.0, high: float = 1.0) -> CardThreat:
    """Return a threat as a card has it."""
    parts = round(eps * 255)
    of_bytes = len(repr(eps)) > len("0.25") and parts > 0 and parts / 255 == eps
    return CardThreat(
        kind=norm,
        size=f"{parts}/255" if of_bytes else repr(eps),
        unit=SHARE_OF_RANGE if (low, high) == (0, 1) else f"input units, in [{low}, {high}]",
        low=low,
        high=high,
        terms=TERMS,
    )


def broken_by(verdicts: Verdicts) -> NDArray[np.int64]:
    """Return the position of the first attack that broke each image, or -1, with shape (N,)."""
    first = np.full(len(verdicts.y), -1, np.int64)
    for place, name in reversed([*enumerate(verdicts.outcomes)]):
        first[verdicts.attacked[name] & ~verdicts.verdict[name]] = place
    return first


def counted(verdict: Flags) -> dict[str, Any]:
    """Return a count with its interval, from verdicts with shape (N,)."""
    n, robust = len(verdict), int(verdict.sum())
    low, high = interval(robust, n)
    return {"n": n, "robust": robust, "accuracy": robust / n, "interval": [low, high]}


def results(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the results of a card, from records."""
    return [
        {**counted(record.verdict), "attack": record.attack, "per_class": dict(_classes(record))}
        for record in records
    ]


def _classes(record: Record) -> Iterator[tuple[str, dict[str, Any]]]:
    for label in np.unique(record.y).tolist():
        name = record.classes[label] if record.classes else str(label)
        yield name, counted(record.verdict[record.y == label])


def evaluation_of(evaluation: Evaluation, data: str, pack: CardPack) -> CardEvaluation:
    """Return an evaluation as a card has it.

    Arguments:
        evaluation: The stored evaluation.
        data: The name of the dataset.
        pack: The description of its examples.
    """
    verdicts, about = evaluation.verdicts, evaluation.about
    asked = dict(about["asked"])
    control = next((f for f in evaluation.findings if f.check == "control"), None)
    content = {
        "name": evaluation.name,
        "finished": evaluation.finished,
        "threat": threat_of(verdicts.norm, verdicts.eps).model_dump(),
        "data": {
            "name": data,
            "split": evaluation.split,
            "n": evaluation.n,
            "sample": dict(about["sample"]),
            "inputs_sha256": about["data_sha256"],
            "labels_sha256": about["labels_sha256"],
            "dataset_sha256": evaluation.origin["data_sha256"],
            "classes": list(verdicts.classes),
        },
        "results": results(evaluation.records),
        "audit": audit_of(verdicts.audit) if verdicts.audit else None,
        "control": dict(control.measured) if control and control.measured else None,
        "checks": [_shortened(finding.record()) for finding in evaluation.findings],
        "correct": _bits(verdicts.correct),
        "attacks": list(_attacks(evaluation)),
        "protocol": {**asked, "import": _file(asked.get("import"))},
        "seed": verdicts.seed,
        "passes": verdicts.passes,
        "precision": verdicts.precision,
        "software": software(evaluation.versions),
        "pack": pack.model_dump(),
    }
    return CardEvaluation.model_validate(content)


def audit_of(audit: Audit) -> dict[str, Any]:
    """Return an audit as a card has it: its fields, and what follows from them."""
    return {**asdict(audit), **{name: getattr(audit, name) for name in _BOUNDS.split()}}


def audit_in(content: Mapping[str, Any]) -> Audit:
    """Return the audit of :func:`audit_of`.

    Raises:
        ValueError, TypeError, LookupError: If it is none.
    """
    plain = json.dumps({f.name: content[f.name] for f in fields(Audit)})
    audit = TypeAdapter(Audit).validate_json(plain, strict=True)
    if not (0 < audit.within <= 1 and 0 < audit.budget <= 1 and 0 < audit.confidence < 1):
        raise ValueError("its limits are no shares of one")
    Audit.of(audit.content())  # which checks the counts of the rounds
    return audit


def _attacks(evaluation: Evaluation) -> Iterator[dict[str, Any]]:
    verdicts, first = evaluation.verdicts, broken_by(evaluation.verdicts)
    kept = ("ensemble", "settings", "notes", "finished", "forwards", "backwards", "rejected")
    for place, (name, outcome) in enumerate(verdicts.outcomes.items()):
        yield {
            "name": name,
            **_shortened({key: outcome[key] for key in (*kept, "nonfinite")}),
            "attacked": _bits(verdicts.attacked[name]),
            "robust": _bits(verdicts.verdict[name]),
            "broken_first": int((first == place).sum()),
            "made": dict(outcome["made"]),
        }


def _shortened(content: Any) -> Any:
    """Return plain values, in whose texts paths of this computer have lost their folders."""
    if isinstance(content, str):
        return _FOLDERS.sub("", content)
    if isinstance(content, list | tuple):
        return [_shortened(each) for each in content]
    if isinstance(content, Mapping):
        return {key: _shortened(each) for key, each in content.items()}
    return content


def _bits(flags: Flags) -> str:
    return np.packbits(flags).tobytes().hex()


def software(versions: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the bits of a computation depend on, without times and paths."""
    kept = {key: value for key, value in versions.items() if key not in (*_LEFT_OUT, "data")}
    return {**kept, "import": _file(kept.get("import"))}


def _file(source: Any) -> dict[str, str] | None:
    """Return a recorded source without its folder."""
    if not isinstance(source, Mapping) or "file" not in source:
        return None
    return {"file": Path(str(source["file"])).name, "sha256": str(source.get("sha256"))}


def problems(evaluations: Sequence[CardEvaluation], training: CardTraining | None) -> list[str]:
    """Return why the numbers of a card are preliminary or cannot be trusted, a sentence each."""
    found = []
    if training is not None and not training.finished:
        found.append("the training is not finished")
    for each in evaluations:
        if not each.finished:
            found.append(f"{each.name}: the evaluation is not finished")
        if not each.attacks:
            found.append(f"{each.name}: no attack was run")
        elif not each.checked:
            found.append(f"{each.name}: its checks were not run")
        failed = (f for f in each.checks if f.status == "failed")
        found += [f"{each.name}: the check {f.check} failed: {f.message}" for f in failed]
    return found


def card_of(
    folder: Path,
    model: Mapping[str, Any],
    shape: Sequence[int],
    grid: str | None,
    evaluations: Sequence[Evaluation],
    packs: Sequence[CardPack],
    date: str | None,
) -> ModelCard:
    """Return the card of a run folder.

    Arguments:
        folder: The run folder.
        model: The fields of :class:`equipoise.card.schema.CardModel`.
        shape: The shape of an image.
        grid: The distance between values of the images, if all are multiples of it.
        evaluations: The evaluations of the model.
        packs: Their packs.
        date: A date for the card; None: it has none.
    """
    recipe = read_mapping(folder / "recipe.yaml", load)
    own, summary = (read_mapping(folder / name) for name in ("own-model.json", "summary.json"))
    trained = bool(recipe)
    data = Path(str((recipe if trained else own).get("data"))).name
    pairs = zip(evaluations, packs, strict=True)
    parts = [evaluation_of(each, data, pack) for each, pack in pairs]
    training = _training(folder, recipe, summary, data) if trained else None
    found = problems(parts, training)
    return sealed(
        {
            "format": FORMAT,
            "complete": not found,
            "problems": found,
            "limits": list(LIMITS),
            "date": date,
            "model": dict(model),
            "inputs": _inputs(folder, own, shape, grid),
            "training": training and training.model_dump(),
            "choices": list(_choices(folder, summary, str(model["weights"]), trained)),
            "evaluations": [part.model_dump() for part in parts],
        }
    )


def _inputs(
    folder: Path, own: Mapping[str, Any], shape: Sequence[int], grid: str | None
) -> dict[str, Any]:
    settings = read_mapping(folder / "config.json").get("settings") or {}
    constants, remarks = own.get("normalise"), _shortened(own.get("remarks") or [])
    if "mean" in settings:
        how = f"the first layer of the model: mean {settings['mean']}, std {settings['std']}"
    elif isinstance(constants, Mapping):
        how = f"in front of the model: mean {constants['mean']}, std {constants['std']}"
    else:
        how = f"as the remarks say; asked for: {constants or 'nothing'}"
    return {
        "shape": list(shape),
        "low": 0.0,
        "high": 1.0,
        "grid": grid,
        "scale": "bytes divided by 255 in float32"
        if grid
        else "float32 as stored, of which some are no byte divided by 255",
        "normalise": constants,
        "normalisation": how,
        "remarks": [str(line) for line in remarks],
        "not_recorded": list(NOT_RECORDED),
    }


def _training(
    folder: Path, recipe: Mapping[str, Any], summary: Mapping[str, Any], data: str
) -> CardTraining:
    provenance = read_mapping(folder / "provenance.json")
    return CardTraining(
        method=str(recipe.get("method")),
        finished=bool(summary.get("finished")),
        data=data,
        data_sha256=dict((provenance.get("data") or {}).get("sha256") or {}),
        recipe={**recipe, "data": data, "data_dir": None},
        kept=f"round {summary.get('kept_round')}: {summary.get('rule')}" if summary else "",
        software=software(provenance),
    )


def _choices(
    folder: Path, summary: Mapping[str, Any], weights: str, trained: bool
) -> Iterator[str]:
    """Yield what was chosen, and on which data."""
    held_out = (read_mapping(folder / "provenance.json").get("data") or {}).get("validation")
    picked = read_mapping(folder / "picked.json")
    if picked:
        three = "weights" in (picked.get("front") or {})
        what = "a mix of three ends" if three else f"gamma {picked.get('gamma')}"
        yield f"{what} was picked on {picked.get('n')} held-out images: {picked.get('in_words')}"
    elif not trained:
        yield "how this model was trained and chosen is not recorded"
    elif weights == "model" and summary:
        yield (
            f"round {summary.get('kept_round')} was kept, by {held_out} held-out training images: "
            f"{summary.get('rule')}"
        )
    else:
        yield f"the weights {weights} were named by whoever made the card"
    yield (
        "of the attacks none was chosen afterwards: every attack that was run on these images "
        "counts in the worst case"
    )
