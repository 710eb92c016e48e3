"""Evaluating as a job: a model on test images, with records and examples in its folder."""

__all__ = ["Options", "evaluate_run", "evaluate_subject"]

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise import plugins
from equipoise.attacks import check_norms, parse_list, without_clean
from equipoise.data import draw, image_digests
from equipoise.errors import UserError
from equipoise.evaluation import Result, evaluate
from equipoise.execution import Layout, Precision
from equipoise.jobs import signals
from equipoise.jobs.autosave import Keeper
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.store import Store, left
from equipoise.jobs.target_model import Subject, of_run, open_folder
from equipoise.parsing import check_seed
from equipoise.sample import Sample
from equipoise.settings import recipe
from equipoise.store import verdicts
from equipoise.store.digests import tensor_digest
from equipoise.store.provenance import provenance
from equipoise.store.runs import Run, model_digest
from equipoise.terminal.progress import Console
from equipoise.threat import Norm, Threat
from equipoise.version import __version__

DEFAULT = ("fgsm", "pgd-20", "mi-fgsm-10", "cw-inf-30")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a model is evaluated.

    Arguments:
        attacks: Names as for :func:`equipoise.attacks.parse`; None: those of :data:`DEFAULT`
            that are defined for the norm, or those with which a resumed evaluation began.
        eps: The radii; none: the subject's.
        norm: The norm; None: the subject's.
        n: How many test images, as a stratified sample: see :func:`equipoise.data.draw`; None:
            all.
        first: Whether the first ``n`` of the test set are taken instead.
        individual: As for :func:`equipoise.evaluate`.
        seed: The seed of the attacks' randomness; None: 0, or that of what is resumed.
        batch_size: How many points are attacked at a time.
        precision: The arithmetic of the search; the judge's is float32 either way.
        layout: How images lie in memory in the search.
        compile: Whether the search is compiled.
        passes: The forward passes of a verdict; None: what the attacks ask for.
        strongest: As for :func:`equipoise.evaluate`.
        checks: Whether to look for what would make the numbers untrustworthy.
        transfer: Folders of other evaluations whose examples are tried on this model.
        resume: Whether to go on with an interrupted evaluation.
        device: ``auto``, ``cpu`` or ``cuda``.
    """

    attacks: Sequence[str] | str | None = None
    eps: Sequence[float] = ()
    norm: Norm | None = None
    n: int | None = None
    first: bool = False
    individual: bool | None = None
    seed: int | None = None
    batch_size: int = 250
    precision: Precision = "auto"
    layout: Layout = "auto"
    compile: bool = False
    passes: int | None = None
    strongest: bool = False
    checks: bool = True
    transfer: Sequence[str | Path] = ()
    resume: bool = False
    device: str = "auto"

    def check(self) -> None:
        """Refuse attacks that do not exist, before anything is read."""
        if self.seed is not None:
            check_seed(self.seed, "--seed")
        if self.attacks is not None:
            found = parse_list(without_clean(self.attacks))
            if self.norm is not None:
                check_norms(found, self.norm)


def evaluate_run(
    path: str | Path,
    *,
    data_dir: str | Path | None = None,
    which: str = "model",
    model: str | None = None,
    trust: bool = False,
    console: Console | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Evaluate the model of a run folder on test images.

    Arguments:
        path: The run folder.
        data_dir: The folder of the data; by default that of the training.
        which: The weights: ``"model"`` for the kept ones, or another name as for
            :meth:`equipoise.store.runs.Run.model`.
        model: As for :func:`equipoise.jobs.target_model.of_run`, as is the next.
        trust: Whether to run the code that the folder names.
        console: Where progress is shown; by default nowhere.
        options: Fields of :class:`Options`.

    Returns:
        The records, as :func:`evaluate_subject` has them.
    """
    console = console or Console(quiet=True)
    asked = Options(**options)
    if not trust:  # else a file that the folder names may add attacks
        asked.check()
    subject = of_run(path, which, data_dir, console, model=model, trust=trust)
    return evaluate_subject(subject, asked, console)


def evaluate_subject(subject: Subject, options: Options, console: Console) -> list[dict[str, Any]]:
    """Evaluate a model on ``n`` test images, in one or several radii.

    What is found is kept after every few batches, so that nothing is lost when the job is
    interrupted. Earlier verdicts on the same weights and images count in the worst case.

    Returns:
        The records of what was evaluated, counted from the verdicts that were kept, those of
        earlier evaluations of the same weights on the same points included.

    Raises:
        UserError: If the options do not fit the model, or what is resumed is another's.
        RunError: If the model or an attack failed on the way.
    """
    if options.norm not in (None, subject.norm) and not options.eps:
        raise UserError(f"a radius means another thing in {options.norm}: say which with --eps")
    subject.run.again = subject.resuming
    if options.resume:
        options, threats = _begun(subject, options)
        if not threats:
            console.say(f"nothing was interrupted in {subject.run.path}: all is at its end")
            return []
    else:
        norm = options.norm or subject.norm
        threats = [Threat(norm, eps) for eps in options.eps or [subject.eps]]
    options = replace(options, attacks=_attacks(options.attacks, threats[0].norm))
    job = _Job(subject, replace(options, eps=[t.eps for t in threats]), console)
    with ExitStack() as locks:
        stores = {store.name: store for store in map(job.store, threats)}
        for store in stores.values():  # all of them, before anything is read
            locks.enter_context(store.lock())
        locks.enter_context(signals.handled(_interrupt, signals.ENDING))
        for threat in threats:
            if not (options.resume and job.store(threat).finished):  # meanwhile, by another
                job.evaluate(threat)
    return job.records


def _attacks(asked: Sequence[str] | str | None, norm: Norm) -> list[str]:
    if asked is None:
        known = parse_list(DEFAULT)
        return [name for name, attack in known.items() if norm in getattr(attack, "norms", ())]
    names = without_clean(asked)
    check_norms(parse_list(names), norm)
    return names


def _begun(subject: Subject, options: Options) -> tuple[Options, list[Threat]]:
    """Return options and threats of the evaluation that is to be gone on with.

    Without radii those that were asked for then: the one that was interrupted, and those that it
    had not come to. What is at its end is left alone: of that alone there are no threats.
    """
    found = [about for store in Store.all(subject.run) for about in [store.about()]]
    found = [
        about
        for about in found
        if (sample := Sample.known(about.get("sample")))  # older versions did not say
        and about["weights"] == subject.which
        and options.n in (None, about["n"])
        and (not options.first or sample.seed is None)
        and options.norm in (None, about["norm"])
        and (not options.eps or float(about["eps"]) in options.eps)
    ]
    if not found:
        raise UserError(
            f"there is no evaluation to go on with in {subject.run.path}; start one without "
            "--resume"
        )
    found.sort(key=lambda about: bool(about["finished"]))  # what was interrupted comes first
    first = next((about for about in found if left(about, found, options.eps)), found[-1])
    asked = {key: first["asked"][key] for key in ("attacks", "individual", "seed", "passes")}
    for key, value in asked.items():
        mine = getattr(options, key)
        mine = without_clean(mine) if key == "attacks" and mine is not None else mine
        if mine is not None and mine != value:
            raise UserError(
                f"what was begun has {key} {value}, not {mine}: go on with that, or start anew "
                "without --resume"
            )
    with plugins.explained(first["asked"].get("import")):
        parse_list(asked["attacks"])
    threats = [Threat(first["norm"], eps) for eps in left(first, found, options.eps)]
    if not threats:
        for store in Store.all(subject.run):
            store.derive()  # a process may have been killed before it did
    which = {"n": first["n"], "first": first["sample"]["seed"] is None}
    return replace(options, **asked, **which), threats


class _Job:
    """The evaluation of a subject under one threat after the other."""

    records: list[dict[str, Any]]

    def __init__(self, subject: Subject, options: Options, console: Console) -> None:
        self.subject, self.options, self.console = subject, options, console
        self.run, test = subject.run, subject.dataset.test
        deterministic()
        device = choose_device(options.device)
        self.model = subject.model.to(device)
        images, self.sample = draw(test, options.n, first=options.first)
        there, every = (len(set(labels.tolist())) for labels in (images.y, test.y))
        if there < every and len(images) >= every:
            console.warn(
                f"{there} of {every} classes are in {self.sample.words('test images')}: the "
                "accuracy says little about the others; leave -n out"
            )
        self.x, self.y = images.pixels().to(device), images.y.to(device)
        self.seed = options.seed or 0
        self.records = []
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
            "versions": provenance(str(device), self.seed) | {"source": subject.source},
        }

    def store(self, threat: Threat) -> Store:
        """Return the place of an evaluation."""
        return Store.of(self.run, threat, self.sample, self.subject.which)

    def evaluate(self, threat: Threat) -> None:
        """Evaluate under one threat, together with what was found before on the same points."""
        names, options = list(self.options.attacks or ()), self.options
        which = "" if self.subject.which == "model" else f", {self.subject.which}"
        what = f"{self.run.path}{which}, {threat}, {self.sample.words('test images')}"
        self.console.say(f"evaluating {what}: {', '.join(names) or 'clean'}")
        store = self.store(threat)
        asked = {
            "attacks": names,
            "individual": options.individual,
            "seed": self.seed,
            "passes": options.passes,
            "eps": list(options.eps),
            "import": plugins.imported(),
        }
        about = {**self.of(threat), "asked": asked, "described": self.run.described()}
        others, control = self._others(threat)
        keeper = Keeper(self, store, about, self._before(store, threat))
        with keeper.keeping(), self.console.progress():
            result = evaluate(
                self.model,
                self.x,
                self.y,
                threat=threat,
                attacks=names or "clean",
                individual=options.individual,
                seed=self.seed,
                batch_size=options.batch_size,
                precision=options.precision,
                layout=options.layout,
                compile=options.compile,
                passes=options.passes,
                strongest=options.strongest,
                checks=options.checks and bool(names),
                others=others,
                control=control,
                classes=self.subject.dataset.classes,
                begun=keeper.before if options.resume else None,
                advance=keeper.advance,
                after=keeper.after,
            )
            keeper.end(result)
        self.records += verdicts.read(store.path).lines()

    def keep(self, store: Store, result: Result, about: Mapping[str, Any]) -> None:
        """Keep a result."""
        store.write(result, self.x, about, self.origin)

    def of(self, threat: Threat) -> dict[str, Any]:
        """Return what verdicts must agree in to be of the same model and points."""
        return {"norm": threat.norm, "eps": repr(threat.eps), **self.about}

    def _before(self, store: Store, threat: Threat) -> Result | None:
        """Return what is kept of the same model on the same points."""
        if not store.path.exists():
            if self.options.resume:
                self.console.say(f"nothing is kept of {threat} yet: it starts from the beginning")
            return None
        try:
            about, result, _ = store.read()
        except UserError as error:
            if self.options.resume:
                raise
            self.console.warn(f"{error} (its verdicts do not count)")
            return None
        mine = self.of(threat)
        other = [key for key in mine if about.get(key) != mine[key]]
        if other and self.options.resume:
            raise UserError(
                f"cannot go on with {store.path}: it was begun with another "
                f"{' and '.join(_WORDS.get(key, key) for key in other)}; evaluate anew without "
                "--resume"
            )
        if not other and not about.get("finished") and not self.options.resume:
            self.console.warn(
                "an earlier evaluation was interrupted; --resume would go on with it: "
                f"{self.subject.resuming}"
            )
        return None if other else result

    def _others(self, threat: Threat) -> tuple[dict[str, Tensor], Tensor | None]:
        """Return adversarial examples of other evaluations on the same images.

        With them comes who withstood on an undefended model, where one of them is that.
        """
        found: dict[str, Tensor] = {}
        control = None
        for folder in self.options.transfer:
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


def _interrupt(name: str) -> None:
    """End a job as Ctrl-C does: with what was found kept."""
    del name
    raise KeyboardInterrupt
