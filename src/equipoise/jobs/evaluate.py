"""Evaluating a model on test images as a job: its run folder gets records and examples."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from equipoise import plugins
from equipoise.data.sampling import draw, rows_among
from equipoise.errors import UserError
from equipoise.evaluation.ahead import read
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.evaluation.saving import evaluate_and_save
from equipoise.evaluation.stored import Store, left
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.estimate import about, pace, whole
from equipoise.jobs.shards import Shard
from equipoise.jobs.target_model import Subject, of_run, open_folder
from equipoise.settings import recipe
from equipoise.store import verdicts
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.provenance import provenance
from equipoise.store.scores import all_lines
from equipoise.terminal.progress import Console, TimeUp
from equipoise.threat import Threat
from equipoise.version import __version__


def evaluate_run(
    what: str | Path | Subject,
    protocol: Protocol | None = None,
    *,
    which: str = "model",
    eps: Sequence[float] = (),
    transfer: Sequence[str | Path] = (),
    resume: bool = False,
    shard: Shard | None = None,
    limit: float | None = None,
    device: str = "auto",
    console: Console | None = None,
    given: Collection[str] = (),
    **fields: Any,
) -> list[dict[str, Any]]:
    """Evaluate a model on test images, with one or several radii.

    The results are saved after every few batches, so that nothing is lost if the job is
    interrupted. Earlier verdicts on the same weights and images count in the worst case.

    Arguments:
        what: The run folder; or a model with its test images.
        protocol: How it is attacked.
        which: With a run folder the weights: ``"model"`` for the kept ones, or another name as
            for :meth:`equipoise.store.runs.Run.model`.
        eps: The radii; none: that of the protocol, or else that of the training.
        transfer: Folders of other evaluations; their adversarial examples are tried, too.
        resume: Whether to continue an interrupted evaluation, with its attacks, threat, images
            and seed.
        shard: The part of the images that is attacked here, or continued; None: all images.
        limit: The seconds after which it stops, with what is known so far; None: no limit.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.
        given: Fields of the protocol that must not differ from an interrupted evaluation.
        fields: Other fields of the protocol (:class:`equipoise.evaluation.Protocol`); they must
            not differ either.

    Returns:
        The records of these evaluations, counted from the stored verdicts, which include those of
        earlier evaluations of the same weights on the same images.

    Raises:
        UserError: If the protocol does not fit the model or the interrupted evaluation.
        RunError: If the model or an attack failed.
    """
    console, radii = console or Console(quiet=True), eps
    if shard is not None and resume:
        raise UserError("a shard is continued by the command that began it: leave --resume out")
    protocol = replace(protocol or Protocol(), **fields)
    subject = what if isinstance(what, Subject) else of_run(what, which, None, console)
    subject.run.again = subject.resuming
    if resume:
        fixed = {*given, *(name for name, value in fields.items() if value is not None)}
        fixed |= {f for f in _FIXED if getattr(protocol, f) != getattr(Protocol(), f)}
        protocol, radii = _begun(subject, protocol, radii, fixed)
        if not radii:
            console.say(f"nothing was interrupted in {subject.run.path}: all is finished")
            return []
    else:
        protocol = replace(protocol, eps=radii[0] if radii else protocol.eps)
        protocol = protocol.complete(subject.norm, subject.eps)
        radii = radii or [protocol.threat.eps]
    threats = [Threat(protocol.threat.norm, eps) for eps in radii]
    job = Evaluations(subject, protocol, threats, console, transfer, resume, device, shard)
    with ExitStack() as locks:
        stores = {store.name: store for store in map(job.store, threats)}
        for store in stores.values():  # all of them, before anything is read
            locks.enter_context(store.lock())
        locks.enter_context(signals.interrupting())
        locks.enter_context(console.within(limit))
        todo = [t for t in threats if not (resume and job.store(t).finished)]  # by another process
        job.foresee(todo, limit)
        try:
            for threat in todo:
                job.evaluate(threat)
        except TimeUp:
            job.report(threat)
    names = list(stores)
    done = all(store.finished for store in stores.values())
    if shard is not None and done and protocol.audited is None:
        console.say(f"{shard} is done; then: {plugins.command('join', subject.run.path)}")
    lines = [line for line in all_lines(subject.run.path) if line["evaluation"] in names]
    return sorted(lines, key=lambda line: names.index(line["evaluation"]))


def _begun(
    subject: Subject, protocol: Protocol, radii: Sequence[float], given: Collection[str]
) -> tuple[Protocol, list[float]]:
    """Return protocol and radii of the interrupted evaluation.

    Without ``radii`` all its radii that are not finished; none are left if all are finished.
    """
    stores = Store.all(subject.run)
    candidates = [
        about
        for about in (store.about() for store in stores)
        if about["weights"] == subject.which
        and protocol.n in (None, about["n"])
        and (not protocol.first or about["sample"]["seed"] is None)
        and protocol.norm in (None, about["norm"])
        and (not radii or float(about["eps"]) in radii)
    ]
    if not candidates:
        raise UserError(
            f"there is no evaluation to continue in {subject.run.path}; start one without --resume"
        )
    candidates.sort(key=lambda about: bool(about["finished"]))  # interrupted ones come first
    first = next((a for a in candidates if left(a, candidates, radii)), candidates[-1])
    asked = first["asked"]
    for key in _FIXED:
        value = list(protocol.names) if key == "attacks" else getattr(protocol, key)
        if key in given and value != asked.get(key):
            raise UserError(
                f"the interrupted evaluation has {key} {asked.get(key)}, not {value}: leave it "
                "out, or start a new evaluation without --resume"
            )
    todo = left(first, candidates, radii)
    if not todo:
        for store in stores:
            store.derive()  # a process may have been killed before it did
    strongest = protocol.strongest or asked.get("strongest", False)
    with plugins.explained(asked.get("import")):
        as_begun = {key: asked[key] for key in _AS_BEGUN if key in asked}
        usual, begun = Protocol(), Protocol.of(asked)
        for key in ("batch_size", "execution"):  # the same batches and search: the same bits
            if getattr(protocol, key) == getattr(usual, key):
                as_begun[key] = getattr(begun, key)
        return replace(protocol, strongest=strongest, **as_begun), todo


_FIXED = ("attacks", "individual", "seed", "passes", "nonce")
_AS_BEGUN = (*_FIXED, "norm", "eps", "n", "first")


class Evaluations:
    """Evaluates a subject under one threat after the other."""

    def __init__(
        self,
        subject: Subject,
        protocol: Protocol,
        threats: Sequence[Threat],
        console: Console,
        transfer: Sequence[str | Path],
        resume: bool,
        device: str,
        shard: Shard | None = None,
    ) -> None:
        self.shard = shard
        self.subject, self.protocol, self.console = subject, protocol, console
        self.threats, self.transfer, self.resume = threats, transfer, resume
        test = subject.dataset.test
        deterministic()
        place = choose_device(device)
        self.model = subject.model.to(place)
        images, self.sample = draw(test, protocol.n, first=protocol.first)
        there, every = (len(set(labels.tolist())) for labels in (images.y, test.y))
        if there < every and len(images) >= every:
            console.warn(
                f"there are images of {there} of {every} classes in "
                f"{self.sample.words('test images')}: the accuracy does not cover the others; "
                "leave -n out"
            )
        self.x, self.y = images.pixels().to(place), images.y.to(place)
        shared = {
            "sample": self.sample.content(),
            "weights": subject.which,
            "model_sha256": model_digest(self.model),
        }
        self.about = {
            "n": len(self.y),
            **shared,
            "data_sha256": tensor_digest(self.x),
            "labels_sha256": tensor_digest(self.y),
            "version": __version__,
        }
        if shard is not None:
            shard.check(len(self.y))
            self.x, self.y = self.x[shard.rows], self.y[shard.rows]
            self.about["shard"] = [*shard]
        self.origin = {
            "split": "test",
            **shared,
            "data_sha256": subject.dataset.sha256["test_x"],
            "versions": provenance(str(place), protocol.seed) | {"source": subject.source},
        }

    def foresee(self, threats: Sequence[Threat], limit: float | None) -> None:
        """Say beforehand about how long it will take; with a limit choose smaller batches."""
        attacks = [*self.protocol.named.values()]
        if not attacks or not threats:
            return
        norm, n, size = threats[0].norm, len(self.y) * len(threats), self.protocol.batch(self.x)
        x, y, most = self.x[:size], self.y[:size], whole(attacks, norm, n)
        timed = pace(self.model, x, y, threats[0], self.protocol.execution, most)
        if timed is None:
            return
        if told := about(*timed.needed(attacks, norm, n)):
            what = "the whole evaluation" if self.resume else "this"
            self.console.say(f"{what} takes {told} on this machine")
        if limit is not None and not self.resume:
            size = timed.batch(attacks, norm, size, limit)
            self.protocol = replace(self.protocol, batch_size=size)

    def report(self, threat: Threat) -> None:
        """Say how far an evaluation has come that has used up its time."""
        if self.shard is not None:
            self.console.say(f"the time is over: {self.shard} is not finished")
            return
        known = verdicts.read(self.store(threat).path).verdicts
        if known.audit is not None and known.audit.rounds:
            self.console.say(f"the time is over: {known.audit.sentence}")
            return
        for name in (name for name, o in known.outcomes.items() if not o["finished"]):
            attacked = known.attacked[name]
            fooled = int((attacked & ~known.verdict[name]).sum())
            said = f"{name} has attacked {int(attacked.sum())} images, and fooled {fooled} of them"
            self.console.say(f"the time is over: {said}")

    def store(self, threat: Threat) -> Store:
        """Return the place of an evaluation."""
        whole = Store.of(self.subject.run, threat, self.sample, self.subject.which)
        return whole if self.shard is None else self.shard.store(whole)

    def identity(self, threat: Threat) -> dict[str, Any]:
        """Return what an evaluation is of: model, images and threat."""
        return {"norm": threat.norm, "eps": repr(threat.eps), **self.about}

    def evaluate(self, threat: Threat) -> None:
        """Evaluate under one threat; earlier verdicts on the same points are kept."""
        names, protocol = list(self.protocol.names), self.protocol.under(threat)
        run, subject, store = self.subject.run, self.subject, self.store(threat)
        which = "" if subject.which == "model" else f", {subject.which}"
        part = "" if self.shard is None else f"{self.shard} of "
        what = f"{run.path}{which}, {threat}, {part}{self.sample.words('test images')}"
        self.console.say(f"evaluating {what}: {', '.join(names) or 'clean'}")
        identity = self.identity(threat)
        asked = {"radii": [t.eps for t in self.threats], "import": plugins.imported()}
        asked |= protocol.content()
        about = {**identity, "asked": asked, "described": run.described()}
        if self.shard is not None and self.shard.done(store, about):
            self.console.say(f"{self.shard} was finished before")
            return
        before = self.before(store, identity)
        checked = protocol.checks and bool(names)
        going_on = self.resume or (self.shard is not None and before is not None)
        others, control = self.others(threat, None if going_on else before)
        audit = protocol.audited is not None and not part
        found = read(run, store.name, identity, self.console.warn) if audit else {}
        with self.console.progress():
            result = evaluate_and_save(
                replace(protocol, checks=checked and not part, part=bool(part)),
                self.model,
                self.x,
                self.y,
                store=store,
                about=about,
                origin=self.origin,
                console=self.console,
                before=before,
                resume=going_on,
                again="the same command" if part else subject.resuming,
                others=others,
                warm=audit,
                ahead=found,
                control=control,
                classes=subject.dataset.classes,
            )
        if result.audit is not None:
            self.console.say(f"audit: {result.audit.sentence}")
        elif before is not None and before.audit is not None:
            self.console.warn(
                "the earlier audit does not hold for these verdicts: run audited again"
            )
        if result.findings:
            counts = Counter(finding.status for finding in result.findings)
            shown = ", ".join(f"{count} {status}" for status, count in counts.items())
            self.console.say(f"checks of the evaluation: {shown}")

    def before(self, store: Store, identity: Mapping[str, Any]) -> Result | None:
        """Return the stored result of the same model on the same points, if there is one."""
        if not store.path.exists():
            if self.resume:
                self.console.say(f"{store.name} is not there yet: it starts from the beginning")
            return None
        try:
            about, result, _ = store.read()
        except UserError as error:
            if self.resume:
                raise
            self.console.warn(f"{error} (its verdicts do not count)")
            return None
        differs = [key for key, value in identity.items() if about.get(key) != value]
        if differs and self.resume:
            names = " and ".join(key.removesuffix("_sha256") for key in differs)
            raise UserError(
                f"cannot continue {store.path}: it was begun with another {names}; start a new "
                "evaluation without --resume"
            )
        if not (differs or about.get("finished") or self.resume or self.shard):
            self.console.warn(
                "an earlier evaluation was interrupted and can be continued: "
                f"{self.subject.resuming}"
            )
        return None if differs else result

    def others(
        self, threat: Threat, earlier: Result | None
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return adversarial examples of other evaluations for the same images, by their source.

        The second value is which images stay correct on an undefended model among them, or None.
        """
        kin = self.protocol.audited and not self.shard
        others = self._kin(threat) if kin else {}
        if self.protocol.audited and earlier is not None and earlier.outcomes:
            others = {"an earlier evaluation": earlier.x_adv, **others}
        control = None
        for folder in self.transfer:
            run, before = open_folder(folder), len(others)
            recipes = run.path / "recipe.yaml"
            undefended = recipes.is_file() and recipe.read(recipes).get("method") == "standard"
            for store in Store.all(run):
                about, result, tensors = store.read()
                rows = self._rows(tensors.get("x"), result, threat)
                if rows is None:
                    continue
                kept = about["weights"] == "model"
                which = "" if kept else f", {about['weights']}"
                others[f"{folder} ({result.threat}{which})"] = result.x_adv[rows].to(self.x)
                if result.threat == threat and undefended and (kept or control is None):
                    control = result.robust[rows].to(self.y.device)
            if len(others) == before:
                raise UserError(
                    f"--transfer {folder}: it holds no adversarial examples for the same images "
                    f"({self.sample.words('test images')}) within {threat}; evaluate it first"
                )
        return others, control

    def _kin(self, threat: Threat) -> dict[str, Tensor]:
        """Return the adversarial examples of the folder's other evaluations, by name."""
        kin = {}
        for store in Store.all(self.subject.run):
            if store.name == self.store(threat).name:
                continue
            try:
                _, result, tensors = store.read()
            except UserError:  # verify reports it
                continue
            rows = self._rows(tensors.get("x"), result, threat)
            if rows is not None:
                kin[store.name] = result.x_adv[rows].to(self.x)
        return kin

    def _rows(self, x: Tensor | None, result: Result, threat: Threat) -> Tensor | None:
        """Return the rows of our images among those of an evaluation within a threat.

        None: some are missing, or it is an evaluation under another threat.
        """
        if x is None or result.threat.norm != threat.norm or result.threat.eps > threat.eps:
            return None
        return rows_among(self.x, self.y, x, result.y)
