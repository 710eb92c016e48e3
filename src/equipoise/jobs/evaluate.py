"""Evaluating as a job: a model on test images, with records and examples in its folder."""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise import plugins
from equipoise.data.sampling import draw, image_digests
from equipoise.errors import UserError
from equipoise.evaluation.autosave import evaluate_and_save
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store, left
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.target_model import Subject, of_run, open_folder
from equipoise.settings import recipe
from equipoise.store import verdicts
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.provenance import provenance
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console
from equipoise.threat import Threat
from equipoise.version import __version__


def evaluate_run(
    path: str | Path,
    *,
    which: str = "model",
    eps: Sequence[float] = (),
    transfer: Sequence[str | Path] = (),
    resume: bool = False,
    device: str = "auto",
    console: Console | None = None,
    **protocol: Any,
) -> list[dict[str, Any]]:
    """Evaluate the model of a run folder on test images.

    Arguments:
        path: The run folder.
        which: The weights: ``"model"`` for the kept ones, or another name as for
            :meth:`equipoise.store.runs.Run.model`.
        eps: The radii, as for :func:`evaluate_subject`, as are the next three.
        transfer: Folders of other evaluations.
        resume: Whether to go on with an interrupted evaluation.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.
        protocol: Fields of :class:`equipoise.evaluation.Protocol`.

    Returns:
        The records, as :func:`evaluate_subject` has them.
    """
    asked, console = Protocol(**protocol), console or Console(quiet=True)
    how: dict[str, Any] = {"radii": eps, "transfer": transfer, "resume": resume, "device": device}
    return evaluate_subject(of_run(path, which, None, console), asked, console, **how)


def evaluate_subject(
    subject: Subject,
    protocol: Protocol,
    console: Console,
    *,
    radii: Sequence[float] = (),
    transfer: Sequence[str | Path] = (),
    resume: bool = False,
    device: str = "auto",
) -> list[dict[str, Any]]:
    """Evaluate a model on test images, in one or several radii.

    What is found is kept after every few batches, so that nothing is lost when the job is
    interrupted. Earlier verdicts on the same weights and images count in the worst case.

    Arguments:
        subject: The model, with its test images.
        protocol: How it is attacked.
        console: Where progress is shown.
        radii: The radii; none: that of the protocol, or else that of the subject.
        transfer: Folders of other evaluations whose examples are tried on this model.
        resume: Whether to go on with an interrupted evaluation; what the protocol leaves open
            is then as it was begun.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The records of what was evaluated, counted from the verdicts that were kept, those of
        earlier evaluations of the same weights on the same points included.

    Raises:
        UserError: If the protocol does not fit the model, or what is resumed is another's.
        RunError: If the model or an attack failed on the way.
    """
    subject.run.again = subject.resuming
    if resume:
        protocol, radii = _begun(subject, protocol, radii)
        if not radii:
            console.say(f"nothing was interrupted in {subject.run.path}: all is at its end")
            return []
    else:
        protocol = replace(protocol, eps=radii[0] if radii else protocol.eps)
        protocol = protocol.complete(subject.norm, subject.eps)
        radii = radii or [protocol.threat.eps]
    threats = [Threat(protocol.threat.norm, eps) for eps in radii]
    job = _Evaluations(subject, protocol, threats, console, transfer, resume, device)
    with ExitStack() as locks:
        stores = {store.name: store for store in map(job.store, threats)}
        for store in stores.values():  # all of them, before anything is read
            locks.enter_context(store.lock())
        locks.enter_context(signals.interrupting())
        for threat in threats:
            if not (resume and job.store(threat).finished):  # meanwhile, by another
                job.evaluate(threat)
    names = list(stores)
    lines = [line for line in verdicts.all_lines(subject.run.path) if line["evaluation"] in names]
    return sorted(lines, key=lambda line: names.index(line["evaluation"]))


def _begun(
    subject: Subject, protocol: Protocol, radii: Sequence[float]
) -> tuple[Protocol, list[float]]:
    """Return protocol and radii of the evaluation that is to be gone on with.

    Without radii those that were asked for then: the one that was interrupted, and those that it
    had not come to. What is at its end is left alone: of that alone there are no radii.
    """
    found = [
        about
        for store in Store.all(subject.run)
        for about in [store.about()]
        if about["weights"] == subject.which
        and protocol.n in (None, about["n"])
        and (not protocol.first or about["sample"]["seed"] is None)
        and protocol.norm in (None, about["norm"])
        and (not radii or float(about["eps"]) in radii)
    ]
    if not found:
        raise UserError(
            f"there is no evaluation to go on with in {subject.run.path}; start one without "
            "--resume"
        )
    found.sort(key=lambda about: bool(about["finished"]))  # what was interrupted comes first
    first = next((about for about in found if left(about, found, radii)), found[-1])
    asked, usual = first["asked"], Protocol()
    for key in ("attacks", "individual", "seed", "passes"):
        mine = getattr(protocol, key)
        mine = list(protocol.names) if key == "attacks" and mine is not None else mine
        if mine != getattr(usual, key) and mine != asked[key]:
            raise UserError(
                f"what was begun has {key} {asked[key]}, not {mine}: go on with that, or start "
                "anew without --resume"
            )
    todo = left(first, found, radii)
    if not todo:
        for store in Store.all(subject.run):
            store.derive()  # a process may have been killed before it did
    with plugins.explained(asked.get("import")):
        return replace(protocol, **{key: asked[key] for key in _AS_BEGUN}), todo


_AS_BEGUN = ("attacks", "norm", "eps", "n", "first", "individual", "seed", "passes")


class _Evaluations:
    """The evaluation of a subject under one threat after the other."""

    def __init__(
        self,
        subject: Subject,
        protocol: Protocol,
        threats: Sequence[Threat],
        console: Console,
        transfer: Sequence[str | Path],
        resume: bool,
        device: str,
    ) -> None:
        self.subject, self.protocol, self.console = subject, protocol, console
        self.threats, self.transfer, self.resume = threats, transfer, resume
        self.run, test = subject.run, subject.dataset.test
        deterministic()
        place = choose_device(device)
        self.model = subject.model.to(place)
        images, self.sample = draw(test, protocol.n, first=protocol.first)
        there, every = (len(set(labels.tolist())) for labels in (images.y, test.y))
        if there < every and len(images) >= every:
            console.warn(
                f"{there} of {every} classes are in {self.sample.words('test images')}: the "
                "accuracy says little about the others; leave -n out"
            )
        self.x, self.y = images.pixels().to(place), images.y.to(place)
        self.about = {
            "n": len(self.y),
            "sample": self.sample.content(),
            "weights": subject.which,
            "model_sha256": model_digest(self.model),
            "data_sha256": tensor_digest(self.x),
            "labels_sha256": tensor_digest(self.y),
            "version": __version__,
        }
        self.origin = {
            "split": "test",
            "sample": self.sample.content(),
            "weights": subject.which,
            "model_sha256": self.about["model_sha256"],
            "data_sha256": subject.dataset.sha256["test_x"],
            "versions": provenance(str(place), protocol.seed) | {"source": subject.source},
        }

    def store(self, threat: Threat) -> Store:
        """Return the place of an evaluation."""
        return Store.of(self.run, threat, self.sample, self.subject.which)

    def evaluate(self, threat: Threat) -> None:
        """Evaluate under one threat, together with what was found before on the same points."""
        names, protocol = list(self.protocol.names), self.protocol.under(threat)
        which = "" if self.subject.which == "model" else f", {self.subject.which}"
        what = f"{self.run.path}{which}, {threat}, {self.sample.words('test images')}"
        self.console.say(f"evaluating {what}: {', '.join(names) or 'clean'}")
        store = self.store(threat)
        asked = {"radii": [t.eps for t in self.threats], "import": plugins.imported()}
        asked |= protocol.content()
        about = {**self.of(threat), "asked": asked, "described": self.run.described()}
        others, control = self._others(threat)
        with self.console.progress():
            result = evaluate_and_save(
                replace(protocol, checks=protocol.checks and bool(names)),
                self.model,
                self.x,
                self.y,
                store=store,
                about=about,
                origin=self.origin,
                console=self.console,
                before=self._before(store, threat),
                resume=self.resume,
                again=self.subject.resuming,
                others=others,
                control=control,
                classes=self.subject.dataset.classes,
            )
        if result.findings:
            counts = Counter(finding.status for finding in result.findings)
            shown = ", ".join(f"{count} {status}" for status, count in counts.items())
            self.console.say(f"checks of the evaluation: {shown}")

    def of(self, threat: Threat) -> dict[str, Any]:
        """Return what verdicts must agree in to be of the same model and points."""
        return {"norm": threat.norm, "eps": repr(threat.eps), **self.about}

    def _before(self, store: Store, threat: Threat) -> Result | None:
        """Return what is kept of the same model on the same points."""
        if not store.path.exists():
            if self.resume:
                self.console.say(f"nothing is kept of {threat} yet: it starts from the beginning")
            return None
        try:
            about, result, _ = store.read()
        except UserError as error:
            if self.resume:
                raise
            self.console.warn(f"{error} (its verdicts do not count)")
            return None
        mine = self.of(threat)
        other = [key for key in mine if about.get(key) != mine[key]]
        if other and self.resume:
            raise UserError(
                f"cannot go on with {store.path}: it was begun with another "
                f"{' and '.join(_WORDS.get(key, key) for key in other)}; evaluate anew without "
                "--resume"
            )
        if not other and not about.get("finished") and not self.resume:
            self.console.warn(
                "an earlier evaluation was interrupted; --resume would go on with it: "
                f"{self.subject.resuming}"
            )
        return None if other else result

    def _others(self, threat: Threat) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return adversarial examples of other evaluations on the same images.

        With them come the examples that stay correct on an undefended model, if one is there.
        """
        found: dict[str, Tensor] = {}
        control = None
        for folder in self.transfer:
            run, before = open_folder(folder), len(found)
            for store in Store.all(run):
                about, result, tensors = store.read()
                within = result.threat.norm == threat.norm and result.threat.eps <= threat.eps
                rows = self._among(tensors["x"], result.y) if within else None
                if rows is None:
                    continue
                x_adv = result.x_adv[rows].to(self.x)
                kept = about.get("weights", "model") == "model"
                which = "" if kept else f", {about['weights']}"
                found[f"{folder} ({result.threat}{which})"] = x_adv
                if result.threat == threat and _undefended(run) and (kept or control is None):
                    control = result.robust[rows].to(self.y.device)
            if len(found) == before:
                raise UserError(
                    f"--transfer {folder}: it holds no adversarial examples for the same images "
                    f"({self.sample.words('test images')}) within {threat}; evaluate it first"
                )
        return found, control

    def _among(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Return the places of my images among others; None: some are not there."""
        there = {pair: row for row, pair in enumerate(_named(x, y))}
        rows = [there.get(pair, -1) for pair in _named(self.x, self.y)]
        return None if -1 in rows else torch.tensor(rows)


def _named(x: Tensor, y: Tensor) -> list[tuple[bytes, int]]:
    """Return what tells each image from another with its label, wherever it lies."""
    return list(zip(image_digests(x), y.tolist(), strict=True))


def _undefended(run: Run) -> bool:
    path = run.path / "recipe.yaml"
    return path.is_file() and recipe.read(path).get("method") == "standard"


_WORDS = {
    "model_sha256": "model (its weights differ)",
    "data_sha256": "data (the images differ)",
    "labels_sha256": "labels",
    "sample": "sample of the images",
    "version": "version of equipoise",
    "eps": "eps",
    "norm": "norm",
}
