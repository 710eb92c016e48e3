"""Training as a job: from a recipe to a run folder that can be interrupted and resumed."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from equipoise import attacks, data, plugins
from equipoise.data.core import Dataset
from equipoise.errors import RunError, UserError
from equipoise.evaluation.checks.inputs import in_range
from equipoise.jobs import signals
from equipoise.jobs.choice import UNCHOSEN, choose_gamma, in_lines
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.initial import initial_model, resolve, threats_of
from equipoise.jobs.prolong import prolong, settle
from equipoise.jobs.show_data import keep_sheet
from equipoise.jobs.summary import RULES, cost_lines, kept_line, measured, summary, write_learners
from equipoise.jobs.trackers import Rounds, Tracker
from equipoise.measures.by_class import unequal
from equipoise.models import origin
from equipoise.plugins import command
from equipoise.settings import earlier
from equipoise.settings import recipe as recipes
from equipoise.settings.recipe import Recipe
from equipoise.settings.schema import differences
from equipoise.settings.split import proportional
from equipoise.store.digests import model_digest
from equipoise.store.provenance import provenance
from equipoise.store.runs import FORMAT, PICKED, Run
from equipoise.store.weight_names import round_name
from equipoise.terminal.progress import Console
from equipoise.training.collapse import Probe
from equipoise.training.learner import Augment
from equipoise.training.loop import Training
from equipoise.training.validation import Validator
from equipoise.training.watch import Interrupted, Watch

OnRound = Callable[[Mapping[str, Any]], object]
SAVE_SECONDS = 300.0
PROBED = 256  # held-out images


def train(
    recipe: Recipe | str,
    out: str | Path,
    *,
    model: nn.Module | str | None = None,
    dataset: Dataset | None = None,
    console: Console | None = None,
    track: Sequence[str | Tracker] = (),
    on_round: OnRound | None = None,
    **settings: Any,
) -> Run:
    """Train what a recipe describes, in a new run folder.

    Example:
        >>> run = eq.train("a3gt", "runs/x", model=net, data="photos/", rounds=20)

    Arguments:
        recipe: What to train; or the name of a method, with settings of a recipe.
        out: The run folder; it must not exist, or be empty.
        model: The model to start from, in place of the recipe's; it is copied. Its folder cannot
            build it again: whoever reads the folder later gives the model again. With the name of
            a method also the name of a model.
        dataset: The data in place of the recipe's, likewise.
        console: Where progress is shown; by default nowhere.
        track: Trackers, by name or as objects: see :mod:`equipoise.jobs.trackers`.
        on_round: Called with the record of each round (epoch), a line of ``log.jsonl``.
        settings: With the name of a method: data, weights and other settings of a recipe.

    Returns:
        The run, with the kept model and all its records.

    Raises:
        UserError: If the recipe, the data or the folder does not fit; nothing was started.
        RunError: If the training failed or was interrupted; the folder can be resumed.
    """
    out, rounds = Path(out), Rounds(track, on_round)
    _refuse_picked(out)
    if isinstance(model, str):
        model, settings = None, {**settings, "model": model}
    recipe = recipes.of(recipe, settings)
    recipe = replace(
        recipe,
        model=recipe.model if model is None else origin.name_of(model),
        data=recipe.data if dataset is None else data.give(dataset),
    )
    console = console or Console(quiet=True)
    job = _Job(Run(out), recipe, console, model)  # before the folder: it may fail
    if (out / "recipe.yaml").is_file():
        there = recipes.parse(earlier.renewed(recipes.read(out / "recipe.yaml"), job.run))
        changed = differences(there.to_dict(), job.recipe.to_dict())
        if changed:
            raise UserError(
                f"{out} belongs to another recipe ({'; '.join(changed)}): choose another"
            )
    with job.run.lock():
        Run.create(out, job.recipe.to_yaml())
        job.run.write_json("provenance.json", job.provenance())
        keep_sheet(job.run, job.dataset, job.training.augment)
        return job.run_to_end(rounds)


def resume(
    path: str | Path,
    *,
    rounds: int | None = None,
    model: nn.Module | str | None = None,
    dataset: Dataset | None = None,
    trust: bool = False,
    console: Console | None = None,
    track: Sequence[str | Tracker] = (),
    on_round: OnRound | None = None,
) -> Run:
    """Continue an interrupted training; it ends with the weights of an uninterrupted one.

    Arguments:
        path: The run folder.
        rounds: For a finished training: the new number of rounds, those that are done included.
            See :mod:`equipoise.settings.longer`.
        model: For a training on a model of the user's own: the model, or package.module:function.
        dataset: For a training on data that were given from Python: the data.
        trust: Whether to run the code that the folder names.
        console: Where progress is shown; by default nowhere.
        track: Trackers, which may be others than before.
        on_round: Called with the record of each further round.
    """
    run, console = Run.open(path), console or Console(quiet=True)
    trackers = Rounds(track, on_round)
    _refuse_picked(run.path)
    run.allow(model, trust=trust, warn=console.warn)
    if dataset is not None:
        data.give(dataset)
    with run.lock():
        finished = run.read_json("summary.json").get("finished")
        old = earlier.outdated(recipes.read(run.path / "recipe.yaml"))
        if old and not finished:
            raise UserError(
                f"{run.path} was begun by an earlier version ({old}): finish it with that "
                "version, or train anew"
            )
        if rounds is not None:
            prolong(run, rounds, console.say)
        state = run.read_state(console.warn)
        begun = {} if state is None else run.read_json("config.json")
        recipe = settle(run, state or {})
        origin.check_given(recipe.model)
        job = _Job(run, recipe, console, None, begun)
        before = run.read_json("provenance.json")
        if not before:
            run.write_json("provenance.json", job.provenance())
        job.compare(before)
        if state is None:
            console.warn(f"{run.path} has no readable state: starting from the beginning")
        else:
            trained = recipes.parse(earlier.renewed(state["recipe"], run))
            changed = differences(trained.to_dict(), job.recipe.to_dict())
            if changed:
                raise UserError(
                    f"recipe.yaml was changed after {run.path} was started ({'; '.join(changed)})"
                )
            job.training.load_state_dict(state)
        line = plugins.changed(before.get("import"), plugins.imported())
        if line:
            console.warn(f"{run.path}: {line}")
            run.write_json("provenance.json", {**before, "resumed_with": plugins.imported()})
        return job.run_to_end(trackers)


def _refuse_picked(folder: Path) -> None:
    """Raise a UserError for the folder of a picked model, which no training made."""
    if (folder / PICKED).is_file():
        raise UserError(
            f"{folder} holds a model that was picked from a front (see {PICKED}), not a training: "
            "train with another --out, or pick again"
        )


class _Job:
    """A training in its run folder."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        console: Console,
        model: nn.Module | None = None,
        begun: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        recipe, dataset, method = resolve(recipe, console)
        self.run, self.recipe, self.dataset, self.console = run, recipe, dataset, console
        self.words = origin.words(recipe.model)
        run.again = command("train", "--resume", run.path, *self.words)
        deterministic()
        self.device = choose_device(recipe.device)
        self.split = recipe.split(dataset, self.device)
        self.unequal = unequal(self.split.validation.y.bincount().tolist())
        self.rule, value = RULES[str(recipe.keep)]
        self.saved = time.monotonic()
        self.signal = ""  # that asked for a stop
        self.threat = recipe.threat(recipe.eps or 0)
        self.threats = threats_of(method, self.threat)
        x, y = self.split.validation.pixels(), self.split.validation.y
        probed = proportional(self.split.validation, PROBED, len(dataset.classes)).to(self.device)
        self.validate = Validator(
            x=x,
            y=y,
            threats=self.threats,
            attack=attacks.parse(recipe.validation_attack),
            execution=recipe.execution,
        )
        initial, self.config = initial_model(recipe, dataset, model, begun, console.say)
        self.training = Training(
            method=method,
            model=initial,
            images=self.split.train,
            rounds=recipe.rounds,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            augment=Augment.named(recipe.augment, dataset),
            validate=self.validate,
            value=value,
            probe=Probe(x=x[probed], y=y[probed]),
            on_collapse=recipe.on_collapse,
            patience=recipe.patience,
            execution=recipe.execution,
            updates=recipe.updates,
            watch=Watch(
                step=console.advance,
                announce=console.say,
                warn=console.warn,
                save=self._save,
                stop=self._stop,
                save_due=lambda: time.monotonic() - self.saved > SAVE_SECONDS,
            ),
        )

    def _stop(self) -> bool:
        if self.signal:
            self.console.say(f"{self.signal}: saving and stopping")
        return bool(self.signal)

    def _heard(self, name: str) -> None:
        """Note a signal, to stop after the step; the second signal stops at once."""
        if self.signal:
            raise KeyboardInterrupt
        self.signal = name

    def provenance(self) -> dict[str, Any]:
        """Return the machine, the versions and the data of the run."""
        return provenance(str(self.device), self.recipe.seed) | {
            "data": {
                "name": self.dataset.name,
                "source": self.dataset.source,
                "classes": list(self.dataset.classes),
                "train": len(self.split.train),
                "validation": len(self.split.validation),
                "test": len(self.dataset.test),
                "sha256": self.dataset.sha256,
            }
        }

    def compare(self, before: Mapping[str, Any]) -> None:
        """Refuse other data than the run started with; warn of what may change the last bits."""
        now = self.provenance()
        old = dict(before.get("data", {}).get("sha256", {}))
        if old and old != now["data"]["sha256"]:
            raise UserError(f"{self.run.path} was started on other data (checksums differ)")
        device, there = str(self.device), str(before.get("device", self.device))
        if device.partition(":")[0] not in there.split(" ")[0]:
            raise UserError(
                f"{self.run.path} was started on {there}, and its random numbers continue only "
                f"there; this is {device}"
            )
        for key in ("torch", "threads", "device"):
            if key in before and before[key] != now[key]:
                self.console.warn(
                    f"{key} was {before[key]} and is {now[key]}: the result may differ in its "
                    "last bits from that of an uninterrupted run"
                )

    def run_to_end(self, rounds: Rounds) -> Run:
        """Train until the last round, and write the summary."""
        self.rounds = rounds
        training, recipe = self.training, self.recipe
        done, path = len(training.history), self.run.path
        self.run.write_lines("log.jsonl", training.history)
        if training.over and self.run.read_json("summary.json").get("finished"):
            early = ", stopped early" if training.stopped_early else ""
            self.console.say(f"{path} is finished: {done} of {recipe.rounds} rounds{early}")
            return self.run
        self.run.write_json("config.json", self._description())
        self._introduce(done)
        per_round = training.steps * recipe.batch_size
        begun = done * per_round + training.done * recipe.batch_size
        bar = self.console.progress(recipe.rounds * per_round, begun, text="training")
        tracked = rounds.running(self.run, recipe.to_dict(), done + 1, self.console.warn)
        with signals.handled(self._heard), bar, tracked:
            try:
                training.run()
            except Interrupted as error:
                message = f"{self.signal}: {error}; continue with: {self.run.again}"
                raise RunError(message) from None
        self._finish()
        return self.run

    def _introduce(self, done: int) -> None:
        recipe, split = self.recipe, self.split
        again = f"; continuing after round {done}" if done or self.training.done else ""
        self.console.say(
            f"{recipe.method} on {recipe.data}: {len(split.train)} images, {recipe.rounds} rounds "
            f"(epochs) of {self.training.steps} steps, {recipe.model}, {self.threat}, "
            f"{self.device}{again}"
        )
        finding = in_range(split.validation.pixels(), self.threat)
        if finding.status != "ok":
            self.console.warn(f"{finding.check}: {finding.message}; {finding.remedy}")
        if len(self.threats) > 1:
            each = (
                f"{name} {objective.state.threat or 'on clean images'}"
                for name, objective in self.training.method.learners.items()
            )
            self.console.say(f"threats of the learners: {', '.join(each)}")
        self.console.say(f"runs with {self.training.execution}")
        own, n = self.dataset.validation, len(split.validation)
        cut = "" if n >= recipe.validation else f": less than validation={recipe.validation}"
        held_out = f"held-out training images{cut and ', a fifth of all'}{cut}"
        if own is not None:
            held_out = f"of the {len(own):,} validation images of the data"
        self.console.say(
            f"validation on {n} {held_out}; "
            f"kept: {UNCHOSEN if recipe.settings.chooses else self.rule}"
        )

    def _description(self) -> dict[str, Any]:
        threats = [{"norm": threat.norm, "eps": threat.eps} for threat in self.threats]
        return {
            "format": FORMAT,
            "model": self.recipe.model,
            **self.config,
            "method": self.recipe.method,
            "data": self.dataset.name,
            "classes": list(self.dataset.classes),
            "threat": {"norm": self.recipe.norm, "eps": self.recipe.eps},
            "inputs": dict(self.dataset.inputs),
            "input": "floats in [0, 1], shape (B, C, H, W); normalisation is the first layer",
        } | ({"threats": threats} if len(threats) > 1 else {})

    def _save(self, finished_round: bool) -> None:
        """Save the state; after a round also the models and the log."""
        training = self.training
        if finished_round:
            record = training.history[-1]
            weights = training.merged(record["weights"], record["round"]).state_dict()
            self.run.write_model("last.safetensors", weights)
            if record["kept"]:
                self.run.write_model("model.safetensors", weights)
            every, t = self.recipe.snapshots, record["round"]
            if every is not None and (t % every == 0 or training.over):
                self.run.write_model(f"{round_name(t)}.safetensors", weights)
        self.run.write_state(training.state_dict() | {"recipe": self.recipe.to_dict()})
        if finished_round:
            self.run.append_line("log.jsonl", training.history[-1])
            self.console.round(training.history[-1], classes=self.unequal)
            self.rounds.pass_on(training.history[-1])
        self.saved = time.monotonic()

    def _finish(self) -> None:
        write_learners(self.run, self.training)
        run, choice = self.run, None
        if self.recipe.settings.chooses:
            choice = choose_gamma(run, self.training, self.recipe, self.console)
        content = summary(self.training, self.rule, choice)
        if self.recipe.reserve:
            content["measured"] = measured(run, self.validate, self.split)
        content["sha256"] = {name: model_digest(run.model(name)) for name in run.weights()}
        self.run.write_json("summary.json", content)
        for warning in content["warnings"]:
            self.console.warn(warning)
        kept = self.training.history[content["kept_round"] - 1]
        round_ = kept_line(kept, self.rule, classes=self.unequal)
        for line in in_lines(choice) if choice else [round_]:
            self.console.say(line)
        self.console.say(f"the model: {self.run.path}/model.safetensors")
        for line in cost_lines(content):
            self.console.say(line)
        if choice:
            pick = command("pick", self.run.path, *self.words)
            self.console.say(f"another one: {pick} --min-clean 0.9")
        self.console.say(f"next: {command('evaluate', self.run.path, *self.words)}")
