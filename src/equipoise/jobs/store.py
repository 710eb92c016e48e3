"""What an evaluation leaves in its folder, and how it is known to be whole.

``evaluations/NAME.safetensors`` holds inputs, labels, verdicts and every adversarial example; its
metadata what the evaluation was of and what each attack did, sealed with a SHA-256 over all of
it. Every number that is shown is counted from these verdicts: see
:mod:`equipoise.store.verdicts`. It is written whole or not at all after every few batches, so
that an interrupted evaluation goes on from there. ``NAME.json`` beside it is the same for people
and programs, without the images: records, costs and findings, with the SHA-256 of both files in
it. ``records.jsonl`` has the records of all evaluations of the folder and is made anew each time.
Nothing reads the two but people, and :mod:`equipoise.jobs.verify`, which compares them with what
follows from the verdicts.
"""

__all__ = ["Store", "left"]

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from equipoise.errors import UserError
from equipoise.evaluation import Finding, Outcome, Result
from equipoise.sample import Sample
from equipoise.store import verdicts
from equipoise.store.runs import Run
from equipoise.store.sealed import file_digest, read_arrays, seal, stamped
from equipoise.store.verdicts import FOLDER, RECORDS, UNREADABLE
from equipoise.threat import Threat


class Store:
    """The file of one evaluation: one model, one threat, one sample of the test images.

    Arguments:
        run: The folder it is in.
        name: The file's name, without its ending.
    """

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name

    @classmethod
    def of(cls, run: Run, threat: Threat, sample: Sample, which: str) -> "Store":
        """Return the place of an evaluation."""
        other = "" if which == "model" else f"-{which}"
        return cls(run, f"{threat.norm}-{threat.eps:.6g}-n{sample.n}-{sample.short}{other}")

    @classmethod
    def all(cls, run: Run) -> list["Store"]:
        """Return every evaluation in a folder, by name."""
        found = sorted((run.path / FOLDER).glob("*.safetensors"))
        return [cls(run, path.stem) for path in found]

    @property
    def which(self) -> str:
        """Return the weights that were evaluated, as the file's name has them."""
        known = re.fullmatch(r".+?-n\d+(?:-(?:[0-9a-f]{8}|first))?(?:-(.+))?", self.name)
        return (known and known[1]) or "model"

    @property
    def path(self) -> Path:
        """Return the path of the tensors."""
        return self.run.path / FOLDER / f"{self.name}.safetensors"

    @property
    def summary(self) -> Path:
        """Return the path of the summary."""
        return self.path.with_suffix(".json")

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes from this evaluation; to be taken before anything of it is read.

        Raises:
            UserError: If another process is at it.
        """
        what = f"evaluating {self.name}"
        return Run(self.run.path / FOLDER).lock(what, self.name)

    @property
    def busy(self) -> bool:
        """Tell whether a process seems to be at it: its files may be some of before, some new."""
        return (self.run.path / FOLDER / f".{self.name}.lock").exists()

    @property
    def finished(self) -> bool:
        """Tell whether it is there, and at its end."""
        return self.path.is_file() and bool(self.about()["finished"])

    def about(self) -> dict[str, Any]:
        """Return what the stored evaluation is of, without a look at its tensors.

        Raises:
            UserError: If the file cannot be read.
        """
        try:
            with safe_open(self.path, "pt") as file:
                return _about((file.metadata() or {})["about"])
        except UNREADABLE as error:
            raise self._damaged(error) from None

    def read(self) -> tuple[dict[str, Any], Result, dict[str, Tensor]]:
        """Return what the evaluation is of, what it found, and all tensors, verified.

        Raises:
            UserError: If the file is not as it was written.
        """
        try:
            metadata, tensors = read_arrays(self.path, kind="pt")
            return _about(metadata["about"]), _result(tensors, metadata), tensors
        except (*UNREADABLE, RuntimeError) as error:
            raise self._damaged(error) from None

    def write(self, result: Result, x: Tensor, about: Mapping[str, Any], origin: Any) -> None:
        """Keep a result, whole or not at all, and what is derived from it."""
        tensors, metadata = _tensors(result, x), _metadata(result, about)
        metadata["origin"] = json.dumps(origin)
        arrays = {name: value.numpy() for name, value in tensors.items()}
        payload = save(tensors, metadata=stamped(arrays, metadata))
        self.run.write(f"{FOLDER}/{self.path.name}", lambda file: file.write(payload))
        self.derive()

    def derive(self) -> None:
        """Write what is derived from the verdicts: the summary, and the folder's records."""
        summary = verdicts.read(self.path).summary(file_digest(self.path))
        self.run.write_json(f"{FOLDER}/{self.summary.name}", seal(summary))
        with self.run.lock("writing its records", "records", wait=60):
            self.run.write_lines(RECORDS, verdicts.all_lines(self.run.path))

    def _damaged(self, error: Exception) -> UserError:
        line = " ".join(str(error).split())[:200]
        return UserError(f"{self.path} is damaged ({line}); remove it and evaluate again")


def _about(text: str) -> dict[str, Any]:
    """Return what an evaluation is of, with all that is asked of it later."""
    content = dict(json.loads(text))
    wanted = {"n": int, "weights": str, "norm": str, "eps": str, "asked": dict, "finished": bool}
    wrong = [key for key, kind in wanted.items() if type(content.get(key)) is not kind]
    if wrong:
        raise ValueError(f"it does not say {', '.join(wrong)}")
    float(content["eps"])
    return content


def left(
    about: Mapping[str, Any], found: Sequence[Mapping[str, Any]], radii: Sequence[float]
) -> list[float]:
    """Return the radii that were asked for with an evaluation and are not at their end.

    Arguments:
        about: What the evaluation is of.
        found: What all evaluations of the same weights are of.
        radii: Those that are wanted; none: all.
    """
    same = [a for a in found if (a["sample"], a["norm"]) == (about["sample"], about["norm"])]
    done = {float(one["eps"]) for one in same if one["finished"]}
    asked = dict.fromkeys([float(about["eps"]), *about["asked"]["radii"]])
    return [eps for eps in asked if eps not in done and (not radii or eps in radii)]


def _tensors(result: Result, x: Tensor) -> dict[str, Tensor]:
    names = list(result.outcomes)
    broken_by = [names.index(name) if name else -1 for name in result.broken_by]
    tensors = {
        "x": x.cpu(),
        "x_adv": result.x_adv,
        "y": result.y,
        "clean_prediction": result.prediction,
        "adversarial_prediction": result.adversarial_prediction,
        "margin": result.margin,
        "distance": result.distance,
        "correct": result.correct,
        "robust": result.robust,
        "broken_by": torch.tensor(broken_by, dtype=torch.int64),
    }
    for name, outcome in result.outcomes.items():
        tensors |= {f"verdict.{name}": outcome.verdict, f"attacked.{name}": outcome.attacked}
    return {key: value.contiguous() for key, value in tensors.items()}


def _metadata(result: Result, about: Mapping[str, Any]) -> dict[str, str]:
    return {
        "about": json.dumps(dict(about)),
        "norm": result.threat.norm,
        "eps": repr(result.threat.eps),
        "attacks": json.dumps([*result.verdicts]),
        "outcomes": json.dumps({k: o.told for k, o in result.outcomes.items()}),
        "findings": json.dumps([finding.record() for finding in result.findings]),
        "classes": json.dumps(list(result.classes)),
        "seed": str(result.seed),
        "passes": str(result.passes),
        "precision": result.precision,
        "memory": str(result.memory),
    }


def _result(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Result:
    outcomes = {
        name: Outcome(
            verdict=tensors[f"verdict.{name}"],
            attacked=tensors[f"attacked.{name}"],
            **{**plain, "notes": tuple(plain["notes"])},
        )
        for name, plain in json.loads(metadata["outcomes"]).items()
    }
    return Result(
        threat=Threat(metadata["norm"], float(metadata["eps"])),  # type: ignore[arg-type]
        y=tensors["y"],
        prediction=tensors["clean_prediction"],
        x_adv=tensors["x_adv"],
        margin=tensors["margin"],
        adversarial_prediction=tensors["adversarial_prediction"],
        distance=tensors["distance"],
        outcomes=outcomes,
        findings=tuple(map(Finding.of, json.loads(metadata["findings"]))),
        seed=int(metadata["seed"]),
        passes=int(metadata["passes"]),
        precision=metadata["precision"],
        memory=int(metadata["memory"]),
        classes=tuple(json.loads(metadata["classes"])),
    )
