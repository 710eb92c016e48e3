"""Scanning a model as a job: a sample that fits the time, the stored scan, and its page."""

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from equipoise.data.sampling import draw
from equipoise.evaluation.evaluate import place_of
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.scan import FIRST, Scanner, ScanState, evaluations
from equipoise.execution.policy import Execution
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.estimate import LONG, Clock, about, pace
from equipoise.jobs.target_model import Subject
from equipoise.plugins import command
from equipoise.report.scan import build
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.finding import Finding
from equipoise.store.runs import Run
from equipoise.store.scan import FILE, FORMAT, Scan
from equipoise.store.sealed import read_arrays, stamped
from equipoise.store.verdicts import UNREADABLE
from equipoise.terminal.progress import Console, TimeUp
from equipoise.threat import Norm, Threat
from equipoise.version import __version__

SIZES = (16, 32, 64, 100, 200, 500, 1000, 2000, 5000, 10_000)  # images of a sample
USUAL = 200  # the most without --time and -n
TIMED = 64  # images of the batch that is timed
SHARE = 0.8  # of the time that is given; the rest is for what is not estimated
SAVE_SECONDS = 5.0
FULL = "audited"
_TENSORS = {  # of the file, by field of the state
    "x": "x",
    "y": "y",
    "prediction": "clean_prediction",
    "x_adv": "x_adv",
    "answer": "adversarial_prediction",
    "size": "size",
    "start": "start",
    "quick": "quick",
    "blind": "blind",
}


def affordable(seconds: float, norm: Norm, time: float, most: int) -> int:
    """Return the largest usual size of a sample whose scan fits a time; at least the smallest.

    Arguments:
        seconds: The time of a gradient evaluation of one image.
        norm: The norm of the scan.
        time: The time for the whole scan.
        most: The most images.
    """
    fits = [n for n in SIZES if evaluations(norm, n) * seconds <= time]
    return min(max(fits, default=SIZES[0]), most)


def scan_model(
    subject: Subject,
    *,
    norm: Norm | None = None,
    eps: float | None = None,
    n: int | None = None,
    first: bool = False,
    seed: int = 0,
    limit: float | None = None,
    out: Path | None = None,
    device: str = "auto",
    console: Console | None = None,
    clock: Clock = time.monotonic,
    began: float | None = None,
) -> Scan:
    """Scan a model on a sample of its test images, store the scan and write its page.

    A scan that was stopped is continued.

    Arguments:
        subject: The model with its test images.
        norm: The norm; None: that of the training.
        eps: The radius in question; None: that of the training.
        n: The number of images; None: as many as fit the time, at most :data:`USUAL` without one.
        first: Whether to take the first ``n`` images instead of a stratified sample.
        seed: The seed of the attacks.
        limit: The seconds after which it stops, with what is known so far; None: no limit.
        out: The folder of the scan; None: that of the subject.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.
        clock: Returns the seconds since some moment.
        began: What the clock showed when the user began to wait; None: what it shows now.

    Returns:
        The scan; not finished if the time was over.

    Raises:
        UserError: If radius, sample or folder are invalid.
        RunError: If the model failed.
    """
    console = console or Console(quiet=True)
    began = clock() if began is None else began
    threat = Protocol(attacks=(), norm=norm, eps=eps, n=n, first=first, seed=seed).complete(
        subject.norm, subject.eps
    ).threat  # fmt: skip
    given = {"--norm": norm, "--eps": eps, "--seed": seed or None}
    job = Scanning(
        subject, threat, seed, Run(out or subject.run.path), given, console, clock, began
    )
    with job.run.lock("scanning", "scan"), signals.interrupting():
        return job.scan(n, first, choose_device(device), limit)


class Scanning:
    """The scan of one subject.

    Arguments:
        subject: The model with its test images.
        threat: The norm and the radius in question.
        seed: The seed of the attacks.
        run: The folder of the scan.
        given: The options of the command that repeats it.
        console: Where progress is shown.
        clock: Returns the seconds since some moment.
        began: What the clock showed when the user began to wait.
    """

    def __init__(
        self,
        subject: Subject,
        threat: Threat,
        seed: int,
        run: Run,
        given: Mapping[str, object],
        console: Console,
        clock: Clock,
        began: float,
    ) -> None:
        self.subject, self.threat, self.seed, self.run = subject, threat, seed, run
        self.given, self.console, self.clock, self.began = given, console, clock, began
        self.path = run.path / FILE
        self.before = 0.0  # seconds of the part that is continued
        self.saved = clock()

    def scan(self, n: int | None, first: bool, place: torch.device, limit: float | None) -> Scan:
        """Scan, and write the page."""
        deterministic()
        model, test = self.subject.model.to(place), self.subject.dataset.test
        self.digest = model_digest(model)
        if n is None and not first:
            n = self._stopped_with() or self._size(model, place, limit)
        images, sample = draw(test, n, first=first)
        x, y = images.pixels(), images.y.to(place)
        x = x.to(*place_of(model, x))
        named = () if self.subject.which == "model" else ("--weights", self.subject.which)
        where = (self.subject.run.path, *self.subject.given, *named)
        drawn = ("-n", n, *(("--first",) if first else ()))
        again = [w for o, value in self.given.items() if value is not None for w in (o, value)]
        if self.run.path != self.subject.run.path:
            drawn = (*drawn, "--out", self.run.path)
        self.about: dict[str, Any] = {
            "model": self.subject.run.path.resolve().name,
            "weights": self.subject.which,
            "model_sha256": self.digest,
            "data_sha256": tensor_digest(x),
            "labels_sha256": tensor_digest(y),
            "sample": sample.content(),
            "version": __version__,
            "command": command("scan", *where, *again, *drawn),
            "verdict": command("evaluate", *where, "--attacks", FULL, *again),
        }
        self.run.again = self.about["command"]
        self.console.say(f"scanning {self.run.path}, {self.threat}, {sample.words('test images')}")
        begun = self._begun(x)
        classes = self.subject.dataset.classes
        self.scanner = Scanner(
            model, x, y, self.threat, seed=self.seed, classes=classes, begun=begun
        )
        left = None if limit is None else max(limit - (self.clock() - self.began), 0.0)
        with self.console.progress(), self.console.within(left, self.clock):
            try:
                self.scanner.run(self.console.attack, self._first, self._save_sometimes)
            except KeyboardInterrupt as stop:
                self._save()
                self.console.say(f"the scan so far is kept; continue with: {self.run.again}")
                if not isinstance(stop, TimeUp):
                    raise
        scan = self._save()
        self.console.say(f"page: {build(self.run.path)}")
        return scan

    def _size(self, model: torch.nn.Module, place: torch.device, limit: float | None) -> int:
        """Return the size of a sample whose scan fits the time, and say how long it takes."""
        test, norm = self.subject.dataset.test, self.threat.norm
        few, _ = draw(test, min(TIMED, len(test)))
        x = few.pixels()
        batch = x.to(*place_of(model, x)), few.y.to(place)
        most = len(test) if limit is not None else min(USUAL, len(test))
        whole = evaluations(norm, most)
        timed = pace(model, *batch, self.threat, Execution(precision="float32"), whole)
        if timed is None:
            return min(SIZES[0], most)
        budget = LONG if limit is None else SHARE * (limit - (self.clock() - self.began))
        n = affordable(timed.seconds, norm, budget, most)
        longest = evaluations(norm, n) * timed.seconds
        if told := about(longest / 2, longest):
            soon = n * (FIRST.steps + 1) * timed.seconds
            self.console.say(
                f"this takes {told} on this machine for {n} images; the first number comes in "
                f"about {soon:.0f} s"
            )
        return n

    def _first(self) -> None:
        scan = self.scanner.result()
        self.console.say(
            f"after {self.clock() - self.began:.0f} s: {scan.clean_accuracy:.1%} of {scan.n} "
            f"images are classified correctly, and at most {scan.robust_accuracy:.1%} within "
            f"{self.threat} (a first short attack)"
        )

    # The stored scan

    def _save_sometimes(self) -> None:
        if self.clock() - self.saved > SAVE_SECONDS:
            self._save()

    def _save(self) -> Scan:
        """Store the scan so far, and return it."""
        seconds = self.before + self.clock() - self.began
        scan = replace(self.scanner.result(), seconds=round(seconds, 1), about=self.about)
        state = self.scanner.state
        tensors = {
            name: getattr(state, key).cpu().contiguous()
            for key, name in _TENSORS.items()
            if not (scan.finished and key == "start")
        }
        said = {name: getattr(scan, name) for name in _SAID} | {
            "findings": [finding.record() for finding in scan.findings],
            "done": state.done,
        }
        arrays = {name: value.numpy() for name, value in tensors.items()}
        metadata = stamped(arrays, {"format": str(FORMAT), "scan": json.dumps(said)})
        self.run.write(FILE, save(tensors, metadata))
        self.saved = self.clock()
        return scan

    def _read(self, *names: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
        metadata, arrays = read_arrays(self.path, lambda name: name in names, kind="pt")
        return json.loads(metadata["scan"]), arrays

    def _unfinished(self) -> dict[str, Any] | None:
        """Return what is said of a stored scan of the same model, if that is not finished."""
        try:
            said, _ = self._read()
            about, threat = said["about"], (said["norm"], said["eps"])
            same = (about["model_sha256"], threat, said["seed"]) == (
                self.digest, (self.threat.norm, self.threat.eps), self.seed
            )  # fmt: skip
            return said if same and not said["finished"] else None
        except UNREADABLE:
            return None

    def _stopped_with(self) -> int | None:
        """Return the size of a stratified sample whose scan was stopped."""
        sample = (self._unfinished() or {"about": {}})["about"].get("sample")
        return sample["n"] if sample and sample["seed"] is not None else None

    def _begun(self, x: Tensor) -> ScanState | None:
        """Return the state of a scan of the same model and images that was stopped."""
        said = self._unfinished()
        if said is None or said["about"]["data_sha256"] != self.about["data_sha256"]:
            return None
        try:
            said, arrays = self._read(*_TENSORS.values())
            tensors = {key: arrays[name].to(x.device) for key, name in _TENSORS.items()}
            findings = tuple(map(Finding.of, said["findings"]))
            state = ScanState(**tensors, done=int(said["done"]), findings=findings)
            self.before = float(said["seconds"])
        except UNREADABLE:
            return None
        whole = (state.x, state.x_adv, state.start)
        if not torch.equal(state.x, x) or any(part.shape != x.shape for part in whole):
            return None
        if any(tensor.shape[:1] != x.shape[:1] for tensor in tensors.values()):
            return None
        self.console.say("a scan of the same was stopped; it is continued")
        return state


_SAID = ("norm", "eps", "radii", "classes", "seed", "finished", "seconds", "about")
