"""A training in its run folder: what it starts from, saves, says and ends with."""

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from equipoise import attacks
from equipoise.errors import UserError
from equipoise.evaluation.checks.inputs import in_range
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.initial import initial_model, resolve, threats_of
from equipoise.jobs.summary import RULES, UNCHOSEN
from equipoise.jobs.together import device_of, shared_out
from equipoise.jobs.trackers import Rounds
from equipoise.measures.by_class import unequal
from equipoise.models import origin
from equipoise.plugins import command
from equipoise.report.wording import flatten
from equipoise.settings.recipe import Recipe
from equipoise.settings.split import proportional
from equipoise.store.digests import model_digest
from equipoise.store.provenance import provenance
from equipoise.store.runs import FORMAT, Run
from equipoise.store.weight_names import round_name
from equipoise.terminal.progress import Console
from equipoise.training.augment import Augment
from equipoise.training.collapse import Probe
from equipoise.training.loop import Training
from equipoise.training.processes import Lost
from equipoise.training.ranks import Ranks
from equipoise.training.validation import Validator
from equipoise.training.watch import Interrupted, Watch
from equipoise.version import __version__

SAVE_SECONDS = 300.0
PROBED = 256  # held-out images


class TrainingJob:
    """A training in its run folder.

    Arguments:
        run: The folder.
        recipe: What to train.
        console: Where progress is shown.
        ranks: The processes that share the training.
        parallel: What they divide.
        model: The model to start from, if it was given from Python.
        begun: The ``config.json`` of a training that continues.
    """

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        console: Console,
        ranks: Ranks,
        parallel: str,
        model: nn.Module | None = None,
        begun: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        recipe, dataset, method = resolve(recipe, console)
        self.run, self.recipe, self.dataset, self.console = run, recipe, dataset, console
        self.ranks = ranks
        self.words = origin.words(recipe.model)
        run.again = command("train", "--resume", run.path, *self.words)
        deterministic()
        self.device = choose_device(device_of(recipe.device, ranks))
        self.split = recipe.split(dataset, self.device)
        self.unequal = unequal(self.split.validation.y.bincount().tolist())
        self.rule, value = RULES[str(recipe.keep)]
        self.saved = time.monotonic()
        self.signal, self.stopping = "", False  # the signal that asked for a stop
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
            ranks=ranks,
        )
        initial, self.config = initial_model(recipe, dataset, model, begun, console.say)
        n = len(self.split.train)
        self.division = shared_out(method, recipe, n, x[:2].cpu(), initial, parallel, ranks)
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
            ranks=ranks,
            watch=Watch(
                step=console.advance,
                announce=console.say,
                warn=console.warn,
                save=self._save if ranks.first else lambda finished_round: None,
                stop=self._stop,
                save_due=lambda: time.monotonic() - self.saved > SAVE_SECONDS,
            ),
        )

    def _stop(self) -> bool:
        if self.signal and not self.stopping:
            self.stopping = True
            self.console.say(f"{self.signal}: saving and stopping")
        return self.stopping

    def _heard(self, name: str) -> None:
        """Note a signal, to stop after the step; the second signal stops at once.

        Not under torchrun: its processes get a signal from it and perhaps from the terminal, too.
        """
        if self.signal and self.ranks.size == 1:
            raise KeyboardInterrupt
        self.signal = self.signal or name

    def facts(self) -> dict[str, str]:
        """Return what must be the same in all processes of a training."""
        first = next(iter(self.training.learners.values()))
        return {
            "version of equipoise": __version__,
            "version of torch": torch.__version__,
            **dict(flatten(self.recipe.to_dict())),
            "checksum of the data": str(self.dataset.sha256),
            "checksum of the weights": model_digest(first.model),
        }

    def provenance(self) -> dict[str, Any]:
        """Return the machine, the versions and the data of the run."""
        n, parallel = self.ranks.size, self.division.parallel
        several = {"processes": n, "parallel": parallel} if n > 1 else {}
        return (
            provenance(str(self.device), self.recipe.seed)
            | several
            | {
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
        )

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

    def run_to_end(self, rounds: Rounds) -> bool:
        """Train until the last round; return False if that was done before."""
        self.rounds = rounds
        training, recipe = self.training, self.recipe
        done, path = len(training.history), self.run.path
        self.run.write_lines("log.jsonl", training.history)
        if training.over and self.run.read_json("summary.json").get("finished"):
            early = ", stopped early" if training.stopped_early else ""
            self.console.say(f"{path} is finished: {done} of {recipe.rounds} rounds{early}")
            return False
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
                name = self.signal or "another process was asked to stop"
                raise Interrupted(f"{name}: {error}; continue with: {self.run.again}") from None
            except Lost as error:
                raise Lost(f"{error}; continue with: {self.run.again}") from None
        return True

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
        if self.division.sentence:
            self.console.say(self.division.sentence)
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
