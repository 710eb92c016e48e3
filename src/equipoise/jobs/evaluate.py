"""Evaluating a run as a job: its model on the test images, records and examples in its folder."""

__all__ = ["evaluate_run"]

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from equipoise import data, recipe
from equipoise.attacks import check_norms, parse_list, without_clean
from equipoise.data import Dataset
from equipoise.errors import UserError
from equipoise.evaluation import Result, evaluate
from equipoise.jobs.device import choose_device, deterministic
from equipoise.progress import Console
from equipoise.provenance import provenance
from equipoise.runs import Run, model_digest
from equipoise.threat import Norm, Threat

DEFAULT = ("fgsm", "pgd-20", "mi-fgsm-10", "cw-inf-30")


def evaluate_run(
    path: str | Path,
    *,
    attacks: Sequence[str] | str | None = None,
    eps: Sequence[float] = (),
    norm: Norm | None = None,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 500,
    precision: Literal["float32", "bfloat16"] = "float32",
    data_dir: str | Path | None = None,
    which: str = "model",
    device: str = "auto",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Evaluate the model of a run on the first ``n`` test images.

    The records are added to ``records.jsonl`` after each attack, so that nothing is lost when
    the job is interrupted; verdicts and adversarial examples go to ``evaluations/``.

    Arguments:
        path: The run folder.
        attacks: Names as for :func:`equipoise.attacks.parse`; None: those of :data:`DEFAULT`
            that are defined for the norm.
        eps: The radii; by default that of the training.
        norm: The norm; by default that of the training.
        n: How many test images, in their official order; None: all.
        seed: The seed of the attacks' randomness.
        batch_size: How many images are attacked at a time.
        precision: The arithmetic of the search; the judge's is float32 either way.
        data_dir: The folder of the data; by default that of the training.
        which: ``"model"`` for the kept model, ``"last"`` for that of the last round.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.

    Returns:
        The new records.
    """
    run = Run.open(path)
    settings = recipe.parse(recipe.read(run.path / "recipe.yaml"))
    if norm not in (None, settings.norm) and not eps:
        raise UserError(f"a radius means another thing in {norm}: say which with --eps")
    norm = norm or settings.norm
    if attacks is None:
        known = parse_list(DEFAULT)
        attacks = [name for name, attack in known.items() if norm in getattr(attack, "norms", ())]
    check_norms(parse_list(without_clean(attacks)), norm)
    threats = [Threat(norm, radius) for radius in eps]
    dataset = data.load(settings.data, data_dir or settings.data_dir)
    trained = run.read_json("provenance.json").get("data", {}).get("sha256")
    if trained and trained != dataset.sha256:
        raise UserError(f"{path} was trained on other data than is found now (checksums differ)")
    _warn_unfinished(run, console or Console(quiet=True))
    threats = threats or [Threat(norm, settings.threat(dataset.eps).eps)]
    job = _Evaluation(run, dataset, which, device, seed, console or Console(quiet=True), n)
    for threat in threats:
        job.evaluate(threat, attacks, batch_size, precision)
    return job.records


def _warn_unfinished(run: Run, console: Console) -> None:
    """Say so where the training was interrupted: its model is only the best so far."""
    if not run.read_json("summary.json").get("finished"):
        console.warn(
            f"{run.path} is not trained to its end; this is its best model so far. "
            f"Go on with: equipoise train --resume {quote(str(run.path))}"
        )


@dataclass
class _Evaluation:
    run: Run
    dataset: Dataset
    which: str
    device: str
    seed: int
    console: Console
    n: int | None
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.n is not None and not 1 <= self.n <= len(self.dataset.test):
            raise UserError(f"-n must lie in 1..{len(self.dataset.test)}, got {self.n}")
        deterministic()
        device = choose_device(self.device)
        model = self.run.model(self.which).to(device)
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        test = self.dataset.test.take(slice(self.n))
        self.x, self.y = test.pixels().to(device), test.y.to(device)
        self.origin = {
            "split": "test",
            "weights": self.which,
            "model_sha256": model_digest(self.model),
            "data_sha256": self.dataset.sha256["test_x"],
            "versions": provenance(str(device), self.seed),
        }

    def evaluate(
        self,
        threat: Threat,
        attacks: Sequence[str] | str,
        batch_size: int,
        precision: Literal["float32", "bfloat16"],
    ) -> None:
        """Evaluate under one threat, together with what was found before on the same points."""
        names = without_clean(attacks)
        what = f"{self.run.path}, {threat}, n = {len(self.y)}"
        self.console.say(f"evaluating {what}: {', '.join(names) or 'clean'}")
        before = self._stored(threat)
        with self.console.progress(len(self.y) * max(len(names), 1), what="attacking"):
            result = evaluate(
                self.model,
                self.x,
                self.y,
                threat=threat,
                attacks=attacks,
                seed=self.seed,
                batch_size=batch_size,
                precision=precision,
                classes=self.dataset.classes,
                advance=lambda name, n: self.console.advance(n),
                after=lambda found: self._save(found, before),
            )
        if names:
            self._add([result.joined(before).records()[-1]])
        else:
            self._add(result.records())

    def _save(self, result: Result, before: Result | None) -> None:
        """Keep what the last attack found: its verdicts, then its record."""
        self._store(result.joined(before))
        records = result.records()[:-1]
        self._add(records if len(result.verdicts) == 1 else records[-1:])

    def _add(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            self.records.append(record | self.origin)
            self.run.append_line("records.jsonl", self.records[-1])

    def _name(self, threat: Threat) -> str:
        last = "-last" if self.which == "last" else ""
        return f"evaluations/{threat.norm}-{threat.eps:.6g}-n{len(self.y)}{last}.safetensors"

    def _about(self, threat: Threat) -> dict[str, str]:
        """Return what verdicts must agree in to be of the same model and points."""
        return {
            "norm": threat.norm,
            "eps": repr(threat.eps),
            "model_sha256": str(self.origin["model_sha256"]),
            "data_sha256": str(self.origin["data_sha256"]),
        }

    def _stored(self, threat: Threat) -> Result | None:
        """Return what is kept of the same model on the same points."""
        path = self.run.path / self._name(threat)
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata()
                kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        mine = self._about(threat)
        if {key: about.get(key) for key in mine} != mine:
            return None
        return Result(
            threat=threat,
            y=kept["y"],
            prediction=kept["clean_prediction"],
            x_adv=kept["x_adv"],
            margin=kept["margin"],
            adversarial_prediction=kept["adversarial_prediction"],
            verdicts={
                key.removeprefix("verdict."): value
                for key, value in kept.items()
                if key.startswith("verdict.")
            },
        )

    def _store(self, result: Result) -> None:
        """Keep the verdicts and the adversarial examples."""
        tensors: dict[str, Tensor] = {
            "x": self.x.cpu(),
            "x_adv": result.x_adv,
            "y": result.y,
            "clean_prediction": result.prediction,
            "adversarial_prediction": result.adversarial_prediction,
            "margin": result.margin,
            "correct": result.correct,
            "robust": result.robust,
        }
        tensors |= {f"verdict.{name}": verdict for name, verdict in result.verdicts.items()}
        about = self._about(result.threat) | {
            "attacks": json.dumps(list(result.verdicts)),
            "classes": json.dumps(list(self.dataset.classes)),
            "created": result.records()[0]["created"],
            "seed": str(self.seed),
        }
        payload = save({k: v.contiguous() for k, v in tensors.items()}, metadata=about)
        self.run.write(self._name(result.threat), lambda file: file.write(payload))
