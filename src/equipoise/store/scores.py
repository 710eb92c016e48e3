"""The composite scores of stored evaluations. No torch is imported."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.errors import UserError
from equipoise.measures.cmmr import RAW, Parts, sweep
from equipoise.measures.over_attacks import OverAttacks, members
from equipoise.store.verdicts import FOLDER, UNREADABLE, Evaluation, read

Scores = tuple[Parts, OverAttacks | None]
"""``cmmr-1``, and ``cmmr-2``, or None where not each of its attacks was run on all images."""

_Found = tuple[Evaluation, Mapping[str, Sequence[Any]]]  # and a radius as `sweep` takes it


def scores(evaluations: Iterable[Evaluation]) -> dict[str, Scores]:
    """Return the composite scores of evaluations by their names.

    Evaluations of one model on the same images in one norm are a sweep: an adversarial example
    within a small radius counts in the larger ones, in ``cmmr-2`` for its attack. Only finished
    evaluations whose distortions were measured have a score.

    Source: :mod:`equipoise.measures.cmmr`.
    """
    sweeps: dict[tuple[object, ...], list[_Found]] = {}
    for each in evaluations:
        if each.finished and each.distortion:
            images = each.sample.sha256 if each.sample else each.about["data_sha256"]
            same = each.weights, each.model_sha256, images, each.n, each.verdicts.norm
            worst = {"robust": each.verdicts.robust.tolist()}
            worst |= {name: values.tolist() for name, values in each.distortion.items()}
            sweeps.setdefault((*same, ""), []).append((each, worst))
            alone = attacks_alone(each)
            for name, found in alone.items():
                sweeps.setdefault((*same, *alone, name), []).append((each, found))
    by_attack: dict[str, dict[str, Parts]] = {}
    for key, swept in sweeps.items():
        for evaluation, parts in _swept(swept).items():
            by_attack.setdefault(evaluation, {})[str(key[-1])] = parts
    return {name: (one.pop(""), _over(one)) for name, one in by_attack.items() if "" in one}


def attacks_alone(evaluation: Evaluation) -> dict[str, Mapping[str, Sequence[Any]]]:
    """Return what each attack of ``cmmr-2`` left and took by itself, as ``sweep`` takes it.

    Of an ensemble an image has the example of the first stage that fools it. Nothing is returned
    where an attack is missing, its distortions were not measured, or it did not attack all.
    """
    verdicts = evaluation.verdicts
    found: dict[str, Mapping[str, Sequence[Any]]] = {}
    for name in members(verdicts.whole):
        left, values = verdicts.correct.copy(), np.full((evaluation.n, len(RAW)), np.nan)
        for stage in verdicts.stages(name) or [name]:
            own, still = evaluation.own.get(stage), verdicts.verdict[stage]
            if (
                own is None
                or own.shape != values.shape
                or (left & ~verdicts.attacked[stage]).any()
            ):
                return {}
            values[left & ~still] = own[left & ~still]
            left &= still
        found[name] = {"robust": left.tolist(), **dict(zip(RAW, values.T.tolist(), strict=True))}
    return found


def contents(given: Scores) -> Mapping[str, Any]:
    """Return scores as the fields of a record."""
    parts, over = given
    return {"cmmr": parts.to_dict()} | ({"cmmr2": over.to_dict()} if over else {})


def all_lines(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all readable evaluations of a run folder, by evaluation and attack."""
    evaluations: list[Evaluation] = []
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            evaluation = read(path)
            if evaluation.records:  # counted here, so that a damaged file is left out
                evaluations.append(evaluation)
        except UNREADABLE:
            continue
    more = {name: contents(given) for name, given in scores(evaluations).items()}
    return [line for each in evaluations for line in each.lines(more.get(each.name))]


def _swept(found: Sequence[_Found]) -> dict[str, Parts]:
    """Return the scores of a sweep by evaluation."""
    first = found[0][0]
    correct, norm = first.verdicts.correct.tolist(), first.verdicts.norm
    radii = {each.verdicts.eps: radius for each, radius in found}
    try:
        parts = sweep(correct, radii, norm=norm, dimensions=first.dimensions)
    except UserError:  # impossible values, which `equipoise verify` reports
        return {}
    return {each.name: parts[each.verdicts.eps] for each, _ in found}


def _over(attacks: Mapping[str, Parts]) -> OverAttacks | None:
    return OverAttacks(attacks) if members(attacks) else None
