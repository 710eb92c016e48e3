"""Hardening as a job: from a model and images to a more robust model that keeps a clean floor.

A sequence of other jobs over one folder. Each of them continues where it was stopped, so the same
call goes on after an interruption::

    original/      the scan and the evaluation of the model as it was given
    training/      the training of the branches from its weights, and their front
    hardened/      the picked model and its evaluation: a run folder like any other
    harden.json    what was asked, the plan, and the result
    report.html    all of it as a page
"""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.data import give
from equipoise.data.core import Dataset
from equipoise.data.sampling import draw
from equipoise.errors import RunError, UserError
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.stored import Store
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device
from equipoise.jobs.estimate import Clock
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.front import mark, measure_front, pick
from equipoise.jobs.harden_original import held_out_of, is_transformer, original_of
from equipoise.jobs.harden_plan import ATTACKED, ATTACKS, Planned, plan_for, timed
from equipoise.jobs.hardened import (
    DATA,
    ORIGINAL,
    PHASES,
    TRAINING,
    Hardened,
    counted,
    promise,
    said_of,
)
from equipoise.jobs.initial import initial_model
from equipoise.jobs.scan import scan_model
from equipoise.jobs.target_model import Subject, of_run
from equipoise.jobs.train import resume, train
from equipoise.measures.paired import drop_bound
from equipoise.models import origin
from equipoise.parsing import share
from equipoise.report.page import build
from equipoise.settings import recipe as recipes
from equipoise.settings.schema import differences
from equipoise.store.digests import model_digest
from equipoise.store.runs import HARDENED, HARDENING, PICKED, Run
from equipoise.store.verdicts import read
from equipoise.terminal.progress import Console

METHOD = "a3gt"
USUAL: Mapping[str, Any] = {"validation_attack": "fgsm", "gamma": 1, "keep": "last"}
"""No gamma is chosen at the end of the training: the floor is judged against the original."""
FEWEST = 4  # points of the front
FORMAT = 1


def harden_recipe(
    given: Mapping[str, Any],
    out: str | Path,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    max_clean_drop: float | str = 0.01,
    points: int | None = None,
    n: int | None = None,
    limit: float | None = None,
    console: Console | None = None,
    clock: Clock = time.monotonic,
    began: float | None = None,
) -> Hardened:
    """Harden a model: train it, and keep the most robust result that keeps a clean floor.

    The floor is judged on held-out images: the picked model is the most robust one whose paired
    95 % lower bound against the model as it was given is at least minus ``max_clean_drop``. Where
    no model has that, the nearest one is written, and the result says that it is not promised.

    Arguments:
        given: Settings of the recipe: model, weights, data, eps, and others.
        out: The folder; after an interruption the same call continues.
        model: The model, in place of one that the recipe names.
        dataset: The data, likewise.
        max_clean_drop: How much clean accuracy may be lost: ``0.01`` or ``"1%"``.
        points: The most models of the front; None: as the plan has it.
        n: The test images of the evaluations, a stratified sample; None: as the plan has it.
        limit: The seconds that rounds, points and test images are planned to fit; None: no limit.
        console: Where progress is shown; by default nowhere.
        clock: Returns the seconds since some moment.
        began: What the clock showed when the user began to wait; None: what it shows now.

    Returns:
        The hardened model and its accuracies.

    Raises:
        UserError: If settings, model, data or folder do not fit.
        RunError: If a phase failed or was stopped; what is finished is kept.
    """
    drop = share(max_clean_drop, "--max-clean-drop")
    if not 0 <= drop < 1:
        raise UserError(f"--max-clean-drop must lie in [0, 1), like 0.01 or 1%, got {drop:g}")
    if points is not None and points < FEWEST:
        raise UserError(f"points must be at least {FEWEST}, got {points}")
    named = {} if model is None else {"model": origin.name_of(model)}
    named |= {} if dataset is None else {"data": give(dataset)}
    if given.get("method", METHOD) != METHOD:
        raise UserError(f"a hardening trains with the method {METHOD}, not {given['method']}")
    settings = recipes.combine(USUAL, {**given, **named, "method": METHOD})
    job = _Hardening(
        settings,
        Run(out),
        model,
        dataset,
        asked={"max_clean_drop": drop, "points": points, "n": n},
        console=console or Console(quiet=True),
        clock=clock,
        began=clock() if began is None else began,
    )
    with job.run.lock("hardening", "harden"), signals.interrupting():
        return job.harden(limit)


class _Hardening:
    """A hardening in its folder."""

    def __init__(
        self,
        given: Mapping[str, Any],
        run: Run,
        model: nn.Module | None,
        dataset: Dataset | None,
        *,
        asked: Mapping[str, Any],
        console: Console,
        clock: Clock,
        began: float,
    ) -> None:
        self.run, self.console, self.clock, self.began = run, console, clock, began
        self.given, self.model, self.dataset = given, model, dataset
        recipe, remarks = recipes.parse(given), list[str]()
        self.data = dataset or recipe.dataset(console=console)
        initial, about = initial_model(recipe, self.data, model, {}, remarks.append)
        if is_transformer(initial) and not _names(given, "optimizer"):
            recipe = recipes.parse(recipes.combine(given, {"optimizer": "adamw"}))
            remarks.append("it has LayerNorm and no BatchNorm: trained with AdamW, not with SGD")
        if "validation" not in given:
            recipe = replace(recipe, validation=held_out_of(recipe, self.data))
        self.recipe = recipe
        self.threat = recipe.threat(self.data.eps)
        for line in remarks:
            console.say(line)
        if heads := about.get("origin", {}).get("heads"):
            raise UserError(
                f"{recipe.model} has another number of outputs than the {len(self.data.classes)} "
                f"classes of the data: with a new head ({', '.join(heads)}) there is no accuracy "
                "to keep; first train it for these classes: equipoise train standard --model ..."
            )
        self.original = initial.eval()
        tested = asked["n"]
        if tested is not None and not 1 <= tested <= len(self.data.test):
            raise UserError(f"n must lie in 1..{len(self.data.test)} test images, got {tested}")
        self.asked = {
            **asked,
            "recipe": recipe.to_dict(),
            "eps": self.threat.eps,
            "model_sha256": model_digest(self.original),
            "data_sha256": dict(self.data.sha256),
        }
        self.remarks = remarks
        self.record: dict[str, Any] = {}

    def harden(self, limit: float | None) -> Hardened:
        """Run all phases that are not done yet."""
        self._begin()
        with self._phase("scan"):
            self._scan()
        with self._phase("plan"):
            plan = self._plan(limit)
        with self._phase("training"):
            self._train(plan)
        with self._phase("front"):
            self._measure(plan)
        with self._phase("pick"):
            self._pick()
        with self._phase("evaluation"):
            for subject in (self._hardened(), self._subject()):
                self._evaluate(subject, plan)
        with self._phase("report"):
            return self._finish(plan)

    def _begin(self) -> None:
        """Read what an earlier call left, or begin the folder."""
        path = self.run.path
        self.record = self.run.read_json(HARDENING)
        others = [each for each in path.iterdir() if each.name[0] != "." and each.name != DATA]
        if not self.record and others:
            raise UserError(f"{path} holds something else; choose another --out")
        if not self.record:
            self.record = {"format": FORMAT, "asked": self.asked}
            self.run.write_json(HARDENING, self.record)
        changed = differences(self.record.get("asked", {}), self.asked)
        if changed:
            raise UserError(
                f"{path} belongs to another hardening ({'; '.join(changed)}): choose another --out"
            )

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Announce a phase; say how to go on where it is stopped."""
        try:
            self.console.say(f"[{PHASES.index(name) + 1}/{len(PHASES)}] {name}")
            yield
        except (KeyboardInterrupt, RunError):
            self.console.say(
                f"stopped in the phase {name}: what is finished is kept in {self.run.path}, and "
                "the same command goes on"
            )
            raise

    def _note(self, **content: Any) -> None:
        self.record |= content
        self.run.write_json(HARDENING, self.record)

    # The phases

    def _subject(self) -> Subject:
        run = Run(self.run.path / ORIGINAL)
        return original_of(run, self.recipe, self.data, self.original, self.remarks)

    def _hardened(self) -> Subject:
        subject = of_run(self.run.path / HARDENED, "model", None, self.console)
        return replace(subject, dataset=self.data)

    def _scan(self) -> None:
        """Say how breakable the model is today."""
        scan = self.record.get("scan")
        if scan is None:
            found = scan_model(
                self._subject(),
                norm=self.threat.norm,
                eps=self.threat.eps,
                device=self.recipe.device,
                console=self.console,
                clock=self.clock,
                began=self.began,
            )
            scan = said_of(found)
            self._note(scan=scan)
        at = ", ".join(f"{right:.1%} within eps = {eps:.4g}" for eps, right in scan["robust"])
        self.console.say(
            f"today: of {scan['n']} test images it classifies {scan['clean']:.1%} correctly, and "
            f"under a short attack at most {at}"
        )

    def _plan(self, limit: float | None) -> Planned:
        """Return the plan; where there is none yet, make it from timed steps."""
        if "plan" in self.record:
            plan = Planned.of(self.record["plan"])
        else:
            split = self.recipe.split(self.data, choose_device(self.recipe.device))
            held_out = len(split.validation)
            pace = timed(self.recipe, self.original, self.data, split.train, held_out)
            self.original.cpu()
            plan = plan_for(
                pace,
                rounds=self.recipe.rounds if "rounds" in self.given else None,
                points=self.asked["points"],
                n=self.asked["n"],
                images=len(self.data.test),
                limit=None if limit is None else limit - (self.clock() - self.began),
            )
            self._note(plan=plan.content(), held_out=held_out)
            if self.data.validation is None:
                self.console.say(
                    f"the floor is judged on {held_out:,} images held out of the training images: "
                    "if the model was trained on them, it looks better there than it is, and the "
                    "floor is harder to keep; own validation images (photos/val) are better"
                )
        for line in plan.lines():
            self.console.say(line)
        return plan

    def _train(self, plan: Planned) -> None:
        out, recipe = self.run.path / TRAINING, replace(self.recipe, rounds=plan.rounds)
        if Run(out).read_json("summary.json").get("finished"):
            self.console.say(f"{out} is finished")
        elif (out / "recipe.yaml").is_file():
            own = self.model or (recipe.model if origin.is_own(recipe.model) else None)
            resume(out, model=own, dataset=self.dataset, console=self.console)
        else:
            train(recipe, out, model=self.model, dataset=self.dataset, console=self.console)

    def _measure(self, plan: Planned) -> None:
        if not (self.run.path / HARDENED / "summary.json").is_file():
            measure_front(
                self.run.path / TRAINING,
                n=None if self.record["held_out"] <= ATTACKED else ATTACKED,
                device=self.recipe.device,
                points=plan.points,
                console=self.console,
            )

    def _pick(self) -> None:
        """Write the picked model; one that was not written to its end is written again."""
        out = self.run.path / HARDENED
        if not (out / "summary.json").is_file():
            shutil.rmtree(out, ignore_errors=True)
            pick(
                self.run.path / TRAINING,
                out,
                device=self.recipe.device,
                console=self.console,
                max_clean_drop=self.asked["max_clean_drop"],
                standard=self.original,
                nearest=True,
            )
            self.original.cpu()
        mark(self.run.path / TRAINING, self._picked()["gamma"], "the hardened model")
        self.console.say(promise(self._picked(), self.asked["max_clean_drop"]))

    def _picked(self) -> Mapping[str, Any]:
        return Run(self.run.path / HARDENED).read_json(PICKED)

    def _evaluate(self, subject: Subject, plan: Planned) -> None:
        """Evaluate a model on test images, or finish its evaluation."""
        store = self._store(subject, plan)
        if store.finished:
            self.console.say(f"{subject.run.path} is evaluated")
            return
        n = None if plan.n == len(self.data.test) else plan.n
        begun = store.path.is_file()
        evaluate_run(
            subject,
            Protocol(attacks=ATTACKS, norm=self.threat.norm, eps=self.threat.eps, n=n),
            eps=[self.threat.eps],
            resume=begun,
            device=self.recipe.device,
            console=self.console,
        )

    def _store(self, subject: Subject, plan: Planned) -> Store:
        _, sample = draw(self.data.test, plan.n)
        return Store.of(subject.run, self.threat, sample, subject.which)

    def _finish(self, plan: Planned) -> Hardened:
        """Write the result and the report."""
        picked = self._picked()
        stores = [self._store(subject, plan) for subject in (self._subject(), self._hardened())]
        before, after = (read(store.path).verdicts for store in stores)
        lost = int((before.correct & ~after.correct).sum())
        gained = int((after.correct & ~before.correct).sum())
        result = {
            "promised": bool(picked.get("met", True)),
            "in_words": picked["in_words"],
            "promise": promise(picked, self.asked["max_clean_drop"]),
            "n": len(after.y),
            ORIGINAL: counted(before),
            HARDENED: counted(after),
            "lost": lost,
            "gained": gained,
            "drop_at_most": drop_bound(lost, gained, len(after.y)),
        }
        page = self.run.path / "report.html"
        build([self.run.path / name for name in (ORIGINAL, HARDENED, TRAINING)], page)
        self._note(result=result, seconds=round(self.clock() - self.began, 1))
        self.console.say(f"report: {page}")
        return Hardened(self.run.path)


def _names(given: Mapping[str, Any], key: str) -> bool:
    """Return whether settings have a key, or one of their groups has."""
    groups = [value for value in given.values() if isinstance(value, Mapping)]
    return any(key in group for group in (given, *groups))
