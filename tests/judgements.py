"""Sealed evaluations without a model: verdicts on each image that come to given records."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from equipoise.evaluation.stored import summary_of
from equipoise.store.scores import all_lines
from equipoise.store.sealed import seal, stamped
from equipoise.store.verdicts import read

VERSIONS = {"device": "cpu (an example)", "command": "equipoise evaluate r --attacks autoattack"}
TOLD = {"ensemble": "", "settings": "", "notes": [], "finished": True, "forwards": 0}
TOLD |= {"backwards": 0, "seconds": 0.0, "rejected": 0, "nonfinite": 0, "made": {}}


def write(
    path: Path,
    arrays,
    outcomes,
    *,
    norm="linf",
    eps=0.15,
    classes=(),
    findings=(),
    finished=True,
    weights="model",
    model_sha256="aa",
    data_sha256="bb",
    sample=None,
    seed=0,
    precision="float32",
    raw=(),
    asked=None,
    audit=None,
):
    """Write a sealed evaluation.

    Arguments:
        path: The file; the summary is written beside it.
        arrays: x, x_adv, y, clean_prediction and what else is not worked out from the outcomes.
        outcomes: Verdict, attacked, and what is told, by attack.
        raw: The records that were asked for, kept to go on from.
        asked: What the evaluation was asked for.
        audit: Its audit.
    """
    n = len(arrays["y"])
    correct = arrays["clean_prediction"] == arrays["y"]
    robust, broken_by = correct.copy(), np.full(n, -1)
    for verdict, _, _ in outcomes.values():
        robust &= verdict
    for index, (verdict, attacked, _) in reversed([*enumerate(outcomes.values())]):
        broken_by[attacked & ~verdict] = index
    arrays = dict(arrays)
    fooled, index = correct & ~robust, np.arange(n)
    margin = np.where(fooled, -0.01 * (1 + index), 0.02 * (1 + index))
    margin[~correct] = np.inf
    wrong = (arrays["y"] + 1) % max(len(classes), 2)
    defaults = {"correct": correct, "robust": robust, "broken_by": broken_by, "margin": margin}
    defaults |= {"distance": np.full(n, float(eps))}
    defaults |= {"adversarial_prediction": np.where(robust, arrays["y"], wrong)}
    arrays = {**defaults, **arrays}
    for name, (verdict, attacked, _) in outcomes.items():
        arrays |= {f"verdict.{name}": verdict, f"attacked.{name}": attacked}
    arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    about = {"norm": norm, "eps": repr(eps), "n": n, "weights": weights, "finished": finished}
    about |= {"model_sha256": model_sha256, "data_sha256": data_sha256, "sample": sample}
    about |= {} if asked is None else {"asked": asked}
    said = {
        "about": about,
        "outcomes": {name: {**TOLD, **told} for name, (_, _, told) in outcomes.items()},
        "origin": {"split": "test", "weights": weights, "versions": VERSIONS},
        "findings": list(findings),
        "classes": list(classes),
        "raw": list(raw),
    }
    metadata = {name: json.dumps(value) for name, value in said.items()}
    metadata |= {"norm": norm, "eps": repr(eps), "seed": str(seed), "passes": "1"}
    metadata |= {} if audit is None else {"audit": json.dumps(audit.content())}
    metadata |= {"precision": precision, "memory": str(400 * 2**20)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, metadata=stamped(arrays, metadata))
    summary = seal(summary_of(read(path), "ef" * 32))
    path.with_suffix(".json").write_text(json.dumps(summary), encoding="utf-8")
    run = path.parents[1]
    lines = (json.dumps(line) + "\n" for line in all_lines(run))
    (run / "records.jsonl").write_text("".join(lines), encoding="utf-8")
    return path


def judge(run, *records, findings=(), finished=True, shape=(1, 2, 2)):
    """Write evaluations whose verdicts come to these records, beside those of before.

    A record takes the place of an earlier one of the same attack in the same evaluation.
    """
    groups = {}
    for record in records:
        name = f"{record['norm']}-{record['eps']:g}-n{record['n']}"
        name += f"-{record['sample']['sha256'][:8]}" if record.get("sample") else ""
        name += f"-{record['weights']}" if record.get("weights", "model") != "model" else ""
        groups.setdefault(name, {})[record["attack"]] = record
    for name, found in groups.items():
        path = run / "evaluations" / f"{name}.safetensors"
        before = _raw(path) if path.exists() else {}
        _judge(path, {**before, **found}, findings, finished, shape)


def _raw(path):
    header = path.read_bytes()
    size = int.from_bytes(header[:8], "little")
    raw = json.loads(json.loads(header[8 : 8 + size])["__metadata__"]["raw"])
    return {record["attack"]: record for record in raw}


def _judge(path, records, findings, finished, shape):
    first = next(iter(records.values()))
    n, classes = first["n"], [*(first["per_class"] or {})]
    clean, worst = records.get("clean"), records.get("worst-case")
    y = np.arange(n) % max(len(classes), 1)
    correct = np.arange(n) < (clean["robust"] if clean else n)
    left, outcomes = correct.copy(), {}
    for record in records.values():
        if record.get("stages"):
            left = left & _stages(record, correct, outcomes)
    for record in records.values():
        if not _single(record, records):
            continue
        gone = int(correct.sum()) - record["robust"]
        spare = int((correct & ~left).sum())
        most = int(left.sum()) - worst["robust"] if worst else max(gone - spare, 0)
        verdict, left = _without(correct, left, gone, min(gone, most))
        outcomes[record["attack"]] = (verdict, correct.copy(), _told(record))
    if worst and finished:
        assert int(left.sum()) == worst["robust"], (path, int(left.sum()), worst["robust"])
    whole = worst or first
    x = np.zeros((n, *shape), np.float32)
    arrays = {"x": x, "x_adv": x + np.float32(first["eps"]), "y": y}
    arrays["clean_prediction"] = np.where(correct, y, (y + 1) % max(len(classes), 2))
    names = (
        "norm",
        "eps",
        "weights",
        "model_sha256",
        "data_sha256",
        "sample",
        "seed",
        "precision",
    )
    given = {key: whole[key] for key in names if key in whole}
    write(
        path,
        arrays,
        outcomes,
        classes=classes,
        findings=findings,
        finished=finished,
        raw=[*records.values()],
        **given,
    )


def _single(record, records):
    """Tell whether a record is of an attack alone, and not one that its ensemble brings along."""
    name = record["attack"]
    if name in ("clean", "worst-case") or record.get("stages"):
        return False
    stages = [s for r in records.values() for s in r.get("stages", ()) if s["attack"] == name]
    return all(stage["alone"] != record["accuracy"] for stage in stages)


def _stages(record, correct, outcomes):
    left = correct.copy()
    for stage in record["stages"]:
        entered, n = left, len(left)
        alone = stage["alone"]
        gone = stage["broken"]
        if alone is not None:
            gone = int(correct.sum()) - round(alone * n)
        verdict, left = _without(correct, left, gone, stage["broken"])
        attacked = correct.copy() if alone is not None else entered.copy()
        if alone is None and attacked.sum() == correct.sum():  # not all of them after all
            attacked[np.flatnonzero(left)[0]] = False
        name = f"{record['attack']}/{stage['attack']}"
        outcomes[name] = (verdict, attacked, _told(stage) | {"ensemble": record["attack"]})
    return left


def _without(correct, left, gone, new):
    """Take images from those that are left, and the others from those that are gone already."""
    lost = np.flatnonzero(left)[::-1][:new]
    again = np.flatnonzero(correct & ~left)[: gone - new]
    assert len(lost) + len(again) == gone, (len(lost), len(again), gone)
    verdict, left = correct.copy(), left.copy()
    verdict[[*lost, *again]] = False
    left[lost] = False
    return verdict, left


def _told(record):
    names = ("settings", "notes", "finished", "forwards", "backwards", "seconds", "rejected")
    told = {name: record[name] for name in names if name in record}
    made = {key: record[key] for key in ("seed", "precision") if key in record}
    return told | {"made": made}
