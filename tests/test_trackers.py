"""Trackers get the numbers of each round once; one that fails costs a warning, no more."""

import json
from pathlib import Path

import pytest
import torch

import equipoise as eq
from equipoise.errors import RunError, UserError
from equipoise.jobs import trackers
from equipoise.jobs.train import resume
from equipoise.settings import recipe
from equipoise.store.digests import model_digest
from equipoise.terminal.progress import Console

RECIPE = {
    "method": "generalist",
    "data": "digits",
    "rounds": 3,
    "width": 0.25,
    "limit": 200,
    "validation": 40,
    "attack": {"steps": 1},
    "validation_attack": "fgsm",
}


class Kept:
    """A tracker that keeps what it gets; it fails in one of its calls, if told so."""

    def __init__(self, fails=""):
        self.fails, self.calls = fails, []

    def _note(self, name, *given):
        self.calls.append((name, *given))
        if name == self.fails:
            raise OSError("no connection\nto the server")

    def start(self, run, identity, settings, first):
        self._note("start", run, identity, settings, first)

    def log(self, step, values):
        self._note("log", step, values)

    def end(self):
        self._note("end")

    @property
    def names(self):
        return [name for name, *_ in self.calls]


class Heard(Console):
    """A console that keeps its warnings."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warnings = []

    def warn(self, sentence):
        self.warnings.append(sentence)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A training without a tracker."""
    return eq.train(recipe.parse(RECIPE), tmp_path_factory.mktemp("alone") / "run")


def lines(run):
    return [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]


def test_each_round_is_passed_on_and_nothing_else_changes(alone, tmp_path):
    records, kept = [], Kept()
    given = {"track": [kept], "on_round": records.append}
    run = eq.train(recipe.parse(RECIPE), tmp_path / "run", **given)
    assert [json.loads(json.dumps(record)) for record in records] == lines(run)
    assert kept.names == ["start", "log", "log", "log", "end"]
    _, path, _, settings, first = kept.calls[0]
    assert (path, first, settings["rounds"], settings["clean.lr"] > "0") == (
        run.path,
        1,
        "3",
        True,
    )
    for (_, step, values), record in zip(kept.calls[1:-1], records, strict=True):
        assert step == record["round"]
        assert values["global/clean_accuracy"] == record["global"]["clean_accuracy"]
        assert values["learners/robust/loss"] == record["learners"]["robust"]["loss"]
        assert values["gradient_evaluations"] == record["gradient_evaluations"]
        assert all(type(value) is float for value in values.values())
    assert values["start/round"] == record["start"]["round"]
    assert model_digest(run.model()) == model_digest(alone.model())


@pytest.mark.parametrize(
    ("call", "wanted"),
    [
        ("start", ["start"]),
        ("log", ["start", "log"]),
        ("end", ["start", "log", "log", "log", "end"]),
    ],
)
def test_a_tracker_that_fails_costs_one_warning(alone, tmp_path, call, wanted):
    broken, sound, console = Kept(call), Kept(), Heard()
    run = eq.train(recipe.parse(RECIPE), tmp_path / "run", console=console, track=[broken, sound])
    assert broken.names == wanted
    assert sound.names == ["start", "log", "log", "log", "end"]
    (line,) = (line for line in console.warnings if "Kept failed" in line)
    assert "\n" not in line
    assert model_digest(run.model()) == model_digest(alone.model())


def test_a_training_that_goes_on_is_the_same_for_a_tracker(tmp_path):
    def stop(record):
        raise RunError("enough")

    kept = Kept()
    with pytest.raises(RunError, match="enough"):
        eq.train(recipe.parse(RECIPE), tmp_path / "run", track=[kept], on_round=stop)
    assert kept.names == ["start", "log", "end"]
    again = Kept()
    run = resume(tmp_path / "run", track=[again])
    assert [call[1] for call in again.calls if call[0] == "log"] == [2, 3]
    assert again.calls[0][2] == kept.calls[0][2]  # the identity
    assert again.calls[0][4] == 2
    assert len(lines(run)) == 3


@pytest.mark.parametrize("name", ["tensorbord", *trackers.TRACKERS])
def test_what_cannot_be_tracked_is_refused_before_the_training(name, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(UserError) as error:
        eq.train(recipe.parse(RECIPE), tmp_path / "run", track=[name])
    assert ("equipoise[" in str(error.value)) == (name in trackers.TRACKERS)
    assert not (tmp_path / "run").exists()


def interrupted(folder, names):
    """A training with trackers by name that was interrupted after its first round."""
    console = Heard()

    def stop(record):
        raise RunError("enough")

    with pytest.raises(RunError, match="enough"):
        eq.train(recipe.parse(RECIPE), folder, track=names, on_round=stop, console=console)
    run = resume(folder, track=names, console=console)
    assert not [line for line in console.warnings if "failed" in line]
    return run


@pytest.mark.extras
def test_tensorboard_has_every_round_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted(tmp_path / "run", ["tensorboard"])
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    wanted = {record["round"]: record["global"]["robust_accuracy"] for record in lines(run)}
    found = {event.step: event.value for event in events.Scalars("global/robust_accuracy")}
    assert found == pytest.approx(wanted)
    assert len(events.Scalars("global/robust_accuracy")) == 3
    assert "learners/clean/loss" in events.Tags()["scalars"]


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore")  # of its own calls of SQLAlchemy
def test_mlflow_has_every_round_once_in_one_run(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    from mlflow import MlflowClient

    run = interrupted(tmp_path / "run", ["mlflow"])
    client = MlflowClient()
    place = client.get_experiment_by_name("equipoise").experiment_id
    (found,) = client.search_runs([place])
    history = client.get_metric_history(found.info.run_id, "global/robust_accuracy")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert [m.value for m in history] == [r["global"]["robust_accuracy"] for r in lines(run)]
    assert found.data.params["rounds"] == "3"
    assert found.info.status == "FINISHED"


@pytest.mark.extras
def test_weights_and_biases_is_written_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = interrupted(tmp_path / "run", ["wandb"])
    files = sorted(Path(run.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len({path.name for path in files}) == 1  # one identity
    assert len(files) == 2
    content = b"".join(path.read_bytes() for path in files)
    assert content.count(b"global/robust_accuracy") >= 3
    assert torch.isfinite(torch.tensor(lines(run)[-1]["global"]["robust_loss"]))
