"""The store of evaluations: for each a sealed file of tensors, whole or not there.

From ``evaluations/NAME.safetensors`` every number is counted (:mod:`equipoise.store.verdicts`); it
is written again every few batches, so that an interrupted evaluation can continue. ``NAME.json``
and ``records.jsonl`` are derived from it; only :mod:`equipoise.jobs.verify` reads them. The models
of a front, in ``front/KEY.safetensors``, are stored in the same way, without inputs.
"""

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor

from equipoise.data.rows import is_large
from equipoise.errors import UserError
from equipoise.evaluation.outcome import Outcome
from equipoise.evaluation.pieces import FOLDER as PIECES
from equipoise.evaluation.pieces import Pieces
from equipoise.evaluation.result import Result
from equipoise.measures import distortion
from equipoise.sample import Sample
from equipoise.store import verdicts
from equipoise.store.audit import Audit
from equipoise.store.finding import Finding
from equipoise.store.runs import Run
from equipoise.store.scores import all_lines
from equipoise.store.sealed import file_digest, read_arrays, seal, stamped
from equipoise.store.verdicts import FOLDER, RECORDS, UNREADABLE
from equipoise.threat import Threat

FRONT = "front"  # the folder of the models of a front


class Store:
    """The file of one evaluation: one model, one threat, one sample of images.

    Arguments:
        run: The run folder.
        name: The name of the file, without its ending.
        folder: The folder in the run folder.
    """

    def __init__(self, run: Run, name: str, folder: str = FOLDER) -> None:
        self.run, self.name, self.folder = run, name, folder
        self.pieces = Pieces(run.path / folder / PIECES / name, run.again)

    @classmethod
    def of(cls, run: Run, threat: Threat, sample: Sample, which: str) -> "Store":
        """Return the store of an evaluation on test images."""
        ending = "" if which == "model" else f"-{which}"
        return cls(run, f"{threat.norm}-{threat.eps:.6g}-n{sample.n}-{sample.short}{ending}")

    @classmethod
    def by_key(
        cls, run: Run, key: Mapping[str, Any], folder: str = FRONT, begins: str = ""
    ) -> "Store":
        """Return the store of a model of a front; the key has all that its verdicts depend on."""
        digest = hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()
        return cls(run, begins + digest[:24], folder)

    @classmethod
    def all(cls, run: Run) -> list["Store"]:
        """Return the stores of all evaluations on test images in a folder, by name."""
        return [cls(run, path.stem) for path in sorted((run.path / FOLDER).glob("*.safetensors"))]

    @property
    def which(self) -> str:
        """Return the name of the weights that were evaluated, from the name of the file."""
        match = re.fullmatch(r".+?-n\d+(?:-(?:[0-9a-f]{8}|first))?(?:-(.+))?", self.name)
        return (match and match[1]) or "model"

    @property
    def path(self) -> Path:
        """Return the path of the tensors."""
        return self.run.path / self.folder / f"{self.name}.safetensors"

    @property
    def summary(self) -> Path:
        """Return the path of the summary."""
        return self.path.with_suffix(".json")

    def lock(self) -> AbstractContextManager[object]:
        """Lock this evaluation; to be taken before any of its files is read.

        Raises:
            UserError: If another process has the lock.
        """
        return Run(self.run.path / FOLDER).lock(f"evaluating {self.name}", self.name)

    @property
    def busy(self) -> bool:
        """Return whether a process may be writing it, so that its files may not agree."""
        return (self.run.path / FOLDER / f".{self.name}.lock").exists()

    @property
    def finished(self) -> bool:
        """Return whether it exists and is finished."""
        return self.path.is_file() and bool(self.about()["finished"])

    def about(self) -> dict[str, Any]:
        """Return the description of the stored evaluation; its tensors are not read.

        Raises:
            UserError: If the file cannot be read.
        """
        try:
            with safe_open(self.path, "pt") as file:
                return _about((file.metadata() or {})["about"])
        except UNREADABLE as error:
            raise self._damaged(error) from None

    def read(self) -> tuple[dict[str, Any], Result, dict[str, Tensor]]:
        """Return the description of the evaluation, its result, and all tensors, verified.

        Raises:
            UserError: If the file is damaged.
        """
        try:
            metadata, tensors = read_arrays(self.path, kind="pt")
            if "pieces" in metadata:
                tensors["x_adv"] = self.pieces.read(metadata["pieces"], tensors["margin"])
            return _about(metadata["about"]), _result(tensors, metadata), tensors
        except UserError:  # a piece is named
            raise
        except (*UNREADABLE, RuntimeError) as error:
            raise self._damaged(error) from None

    def write(
        self, result: Result, x: Tensor, about: Mapping[str, Any], origin: Mapping[str, Any]
    ) -> None:
        """Store a result, whole or not at all, and the files that are derived from it.

        The inputs of a front are not stored, nor those of a large evaluation that is not finished,
        whose examples are in :mod:`equipoise.evaluation.pieces`. ``about`` and ``origin`` are
        described in ``docs/formats.md``.
        """
        tensors, metadata = tensors_of(result), _metadata(result, about)
        large, names = is_large(result.x_adv), list[str]()
        if large and not about["finished"]:
            metadata["pieces"] = self.pieces.write(tensors.pop("x_adv"), result.margin)
            names = self.pieces.names
        elif self.folder == FOLDER:
            tensors["x"] = x.cpu().contiguous()
            if about["finished"] and about.get("asked", {}).get("strongest") and x.ndim == 4:
                values = distortion.measured(tensors["x"], tensors["x_adv"])
                tensors |= {f"distortion.{name}": value for name, value in values.items()}
                metadata["dimensions"] = str(x[0].numel())
        metadata["origin"] = json.dumps(origin)
        arrays = {name: value.numpy() for name, value in tensors.items()}
        sealed = stamped(arrays, metadata)

        def put(file: BinaryIO) -> None:
            if not large:
                file.write(save(tensors, metadata=sealed))
                return
            mode = os.fstat(file.fileno()).st_mode
            try:
                save_file(tensors, file.name, metadata=sealed)  # without a copy in memory
            except SafetensorError as error:
                found = re.search(r"\(os error (\d+)\)", str(error))
                number = int(found[1]) if found else errno.EIO
                raise OSError(number, os.strerror(number)) from None
            os.chmod(file.name, stat.S_IMODE(mode))
            with open(file.name, "r+b") as there:  # which may be a new file
                os.fsync(there.fileno())

        self.run.write(f"{self.folder}/{self.path.name}", put)
        self.pieces.tidy(names)
        if self.folder == FOLDER:
            self.derive()

    def derive(self) -> None:
        """Write what follows from the verdicts: the summary, and the records of the folder."""
        summary = summary_of(verdicts.read(self.path), file_digest(self.path))
        self.run.write_json(f"{FOLDER}/{self.summary.name}", seal(summary))
        with self.run.lock("writing its records", "records", wait=60):
            self.run.write_lines(RECORDS, all_lines(self.run.path))

    def _damaged(self, error: Exception) -> UserError:
        line = " ".join(str(error).split())[:200]
        return UserError(f"{self.path} is damaged ({line}); remove it and evaluate again")


def summary_of(evaluation: verdicts.Evaluation, digest: str) -> dict[str, Any]:
    """Return the content of ``NAME.json``; ``digest`` is the SHA-256 of the file of tensors."""
    return {
        "format": 1,
        "about": dict(evaluation.about),
        "finished": evaluation.finished,
        "records": [record.content() for record in evaluation.records],
        "findings": [finding.record() for finding in evaluation.findings],
        "memory": evaluation.memory,
        **_audited(evaluation),
        "origin": dict(evaluation.origin),
        "examples": {"file": evaluation.path.name, "sha256": digest},
    }


def _audited(evaluation: verdicts.Evaluation) -> dict[str, Any]:
    audit = evaluation.verdicts.audit
    if audit is None:
        return {}
    bounds = {"lower": audit.lower, "upper": audit.upper, "method": audit.method}
    counts = {"audited": audit.audited, "missed": audit.missed, "near": list(audit.near)}
    return {"audit": {**audit.content(), **bounds, **counts, "sentence": audit.sentence}}


def _about(text: str) -> dict[str, Any]:
    """Return the description of an evaluation; raise a ValueError if part of it is missing."""
    content = dict(json.loads(text))
    wanted = {"n": int, "sample": dict, "weights": str, "norm": str, "eps": str}
    wanted |= {"model_sha256": str, "asked": dict, "finished": bool}
    wrong = [key for key, kind in wanted.items() if type(content.get(key)) is not kind]
    if wrong:
        raise ValueError(f"expected {', '.join(wrong)} in its description")
    float(content["eps"])
    Sample.of_content(content["sample"])
    return content


def left(
    about: Mapping[str, Any], every: Sequence[Mapping[str, Any]], radii: Sequence[float]
) -> list[float]:
    """Return the radii of the command of an evaluation that are not finished.

    ``every`` has the descriptions of all evaluations of the same weights; ``radii`` restricts the
    answer, if there are any.
    """
    same = [a for a in every if (a["sample"], a["norm"]) == (about["sample"], about["norm"])]
    done = {float(a["eps"]) for a in same if a["finished"]}
    asked = dict.fromkeys([float(about["eps"]), *about["asked"]["radii"]])
    return [eps for eps in asked if eps not in done and (not radii or eps in radii)]


def tensors_of(result: Result) -> dict[str, Tensor]:
    """Return the tensors of a result by their names in the file, without the inputs."""
    names = list(result.outcomes)
    broken_by = [names.index(name) if name else -1 for name in result.broken_by]
    tensors = {
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
        if outcome.distortion is not None:
            tensors[f"{verdicts.OWN}{name}"] = outcome.distortion
    return {key: value.contiguous() for key, value in tensors.items()}


def _metadata(result: Result, about: Mapping[str, Any]) -> dict[str, str]:
    return {
        "about": json.dumps(dict(about)),
        "norm": result.threat.norm,
        "eps": repr(result.threat.eps),
        "attacks": json.dumps([*result.verdicts]),
        "outcomes": json.dumps({k: o.plain for k, o in result.outcomes.items()}),
        "findings": json.dumps([finding.record() for finding in result.findings]),
        "classes": json.dumps(list(result.classes)),
        "seed": str(result.seed),
        "passes": str(result.passes),
        "precision": result.precision,
        "memory": str(result.memory),
    } | ({"audit": json.dumps(result.audit.content())} if result.audit else {})


def _result(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Result:
    outcomes = {
        name: Outcome(
            verdict=tensors[f"verdict.{name}"],
            attacked=tensors[f"attacked.{name}"],
            distortion=tensors.get(f"{verdicts.OWN}{name}"),
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
        audit=Audit.of(stored) if (stored := json.loads(metadata.get("audit", "null"))) else None,
    ).recounted()
