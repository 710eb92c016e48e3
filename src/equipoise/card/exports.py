"""A card's numbers in the formats of others: Hugging Face and SPDX.

Each says that robust accuracy is at most so large, under which attacks and threat, and whether the
card is complete. Nothing is sent anywhere.

References:
    | Model cards: metadata of evaluations (Hugging Face)
    | https://github.com/huggingface/hub-docs/blob/main/modelcard.md
    | Evaluation results (Hugging Face)
    | https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml
    | System Package Data Exchange 3.0.1, AI profile
    | https://spdx.github.io/spdx-spec/v3.0.1/model/AI/Classes/AIPackage
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from equipoise.card.schema import CardEvaluation, CardResult, ModelCard

MODEL_INDEX, RESULTS, SPDX = "model-index.yaml", "eval-results.yaml", "spdx-ai.json"
_INDEX_HEAD = (
    "# For the metadata of README.md on Hugging Face. Put the data set's name on the Hub into "
    "type.\n"
)
_RESULTS_HEAD = (
    "# For .eval_results/NAME.yaml on Hugging Face. Put the benchmark's names on the Hub into id "
    "and task_id.\n"
)


def exports(card: ModelCard) -> dict[str, bytes]:
    """Return the files by their names; the one for SPDX only if the card has a date."""
    files = {MODEL_INDEX: _INDEX_HEAD + _yaml(model_index(card))}
    files[RESULTS] = _RESULTS_HEAD + _yaml(eval_results(card))
    if _day(card):
        files[SPDX] = json.dumps(spdx(card), indent=1) + "\n"
    return {name: text.encode() for name, text in files.items()}


def model_index(card: ModelCard) -> Mapping[str, Any]:
    """Return the results as metadata of a model card on Hugging Face."""
    results = [
        {
            "task": {"type": "image-classification", "name": "Image classification"},
            "dataset": {"type": each.data.name, "name": each.data.name, "split": each.data.split},
            "metrics": [
                {"type": "accuracy", "value": result.accuracy, "name": name}
                for name, result in _measured(card, each)
            ],
        }
        for each in card.evaluations
    ]
    return {"model-index": [{"name": card.model.source, "results": results}]}


def eval_results(card: ModelCard) -> list[Mapping[str, Any]]:
    """Return the results as entries of ``.eval_results`` on Hugging Face."""
    day = {"date": _day(card)} if _day(card) else {}
    return [
        {
            "dataset": {
                "id": each.data.name,
                "task_id": "robust-accuracy" if worst else "accuracy",
            },
            "value": result.accuracy,
            **day,
            "notes": name,
        }
        for each in card.evaluations
        for worst, (name, result) in enumerate(_measured(card, each))
    ]


def _measured(card: ModelCard, each: CardEvaluation) -> Iterator[tuple[str, CardResult]]:
    """Yield clean accuracy and the worst case, each with a name that says what it is."""
    first = "" if card.complete else "NOT COMPLETE, do not rely on it: "
    names = dict.fromkeys(attack.ensemble or attack.name for attack in each.attacks)
    threat = f"{each.threat.kind} {each.threat.size}, {each.threat.unit}"
    said = {
        "clean": "clean accuracy",
        "worst-case": f"robust accuracy, at most (upper bound under {', '.join(names)}; {threat})",
    }
    for attack, text in said.items():
        result = each.result(attack)
        if result is not None:
            low, high = result.interval
            shown = f"{result.n} images, 95 % interval {low:.4f} to {high:.4f}"
            yield f"{first}{text}, {shown}", result


def spdx(card: ModelCard) -> Mapping[str, Any]:
    """Return the model as an AI package of SPDX 3.0.1, in JSON-LD.

    Supplier, place and licence are not in a card: whoever publishes the model adds them. So the
    document claims the core and the software profile alone.
    """
    base = f"urn:equipoise:card:{card.sha256}"
    created = {"creationInfo": "_:creation"}
    measured = [pair for each in card.evaluations for pair in _measured(card, each)]
    hashed = {"type": "Hash", "algorithm": "sha256", "hashValue": card.model.file_sha256}
    settings = card.training.recipe if card.training else {}
    package = {
        "type": "ai_AIPackage",
        "spdxId": f"{base}#model",
        **created,
        "name": card.model.source,
        "summary": "; ".join(card.problems) or "complete",
        "builtTime": f"{_day(card)}T00:00:00Z",
        "releaseTime": f"{_day(card)}T00:00:00Z",
        "suppliedBy": f"{base}#supplier",
        "software_packageVersion": card.model.sha256,
        "software_downloadLocation": f"{base}#not-stated",
        "software_primaryPurpose": "model",
        "verifiedUsing": [hashed] * bool(card.model.file_sha256),
        "ai_metric": [_entry(name, f"{result.accuracy:.6f}") for name, result in measured],
        "ai_limitation": " ".join([*card.problems, *card.limits]),
        "ai_typeOfModel": [card.model.source],
        "ai_modelDataPreprocessing": [card.inputs.scale, card.inputs.normalisation],
        "ai_informationAboutTraining": "; ".join(card.choices),
        "ai_hyperparameter": [_entry(key, json.dumps(value)) for key, value in settings.items()],
    }
    tool = {"type": "SoftwareAgent", "spdxId": f"{base}#tool", **created, "name": "equipoise"}
    supplier = {"type": "Agent", "spdxId": f"{base}#supplier", **created, "name": "not stated"}
    information = {
        "type": "CreationInfo",
        "@id": "_:creation",
        "specVersion": "3.0.1",
        "created": f"{_day(card)}T00:00:00Z",
        "createdBy": [tool["spdxId"]],
    }
    document = {
        "type": "SpdxDocument",
        "spdxId": f"{base}#document",
        **created,
        "profileConformance": ["core", "software"],
        "rootElement": [package["spdxId"]],
        "element": [package["spdxId"], tool["spdxId"], supplier["spdxId"]],
    }
    graph = [information, document, tool, supplier, package]
    return {"@context": "https://spdx.org/rdf/3.0.1/spdx-context.jsonld", "@graph": graph}


def _entry(key: str, value: str) -> Mapping[str, str]:
    return {"type": "DictionaryEntry", "key": key, "value": value}


def _day(card: ModelCard) -> str:
    """Return the date of a card, if it is a day like 2026-11-30; else nothing."""
    return card.date if card.date and re.fullmatch(r"\d{4}-\d{2}-\d{2}", card.date) else ""


def _yaml(content: Any) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=False, width=10_000)
