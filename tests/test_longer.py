"""More rounds for a finished training: nothing is lost, and what becomes of each schedule."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from blobs import STEPS, small, through_a_file, training
from blobs import finished as finished_blobs
from equipoise.errors import RunError, UserError
from equipoise.jobs import prolong as prolonging
from equipoise.jobs.train import resume, train
from equipoise.settings import recipe as recipes
from equipoise.settings.longer import longer
from equipoise.store.runs import Run
from equipoise.training import Fixed, Training

A3GT = ("method=a3gt", "attack.steps=1", "gamma=0.5", "start=0.5", "eps_ramp=0.5")


def recipe(*items: str, rounds: int = 4) -> recipes.Recipe:
    given: dict[str, Any] = {"method": "pgd-at", "data": "digits", "limit": 160, "validation": 20}
    given |= {"batch_size": 64, "width": 0.25, "rounds": rounds, "eps": 0.1, "device": "cpu"}
    given |= {"validation_attack": "pgd-1"}
    return recipes.parse(recipes.combine(given, recipes.overrides(items)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(recipe(*A3GT), tmp_path_factory.mktemp("longer") / "run").path


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Run:
    return Run(shutil.copytree(finished, tmp_path / "run"))


def bits(path: Path) -> list[bytes]:
    return [(path / f"{name}.safetensors").read_bytes() for name in ("model", "last")]


def test_the_finished_run_stays_whole_and_the_longer_one_goes_on(run, finished):
    (run.path / "evaluations").mkdir()
    (run.path / "evaluations/x.json").write_text("{}")
    resume(run.path, rounds=7)
    former = Run(run.path / "finished-004")
    assert bits(former.path) == bits(finished)
    assert (former.path / "evaluations/x.json").is_file()
    assert not (run.path / "evaluations").exists()
    assert former.read_json("summary.json")["rounds"] == 4
    former.model()
    for name in run.weights():
        assert run.digest(name)
    summary, log = run.read_json("summary.json"), (run.path / "log.jsonl").read_text()
    assert (summary["rounds"], summary["prolonged"], summary["regime"]) == (7, [4], None)
    assert [line.count("") > 1 for line in log.splitlines()] == [True] * 7
    assert (former.path / "log.jsonl").read_text() == "".join(log.splitlines(True)[:4])
    new = recipes.stored(run)
    assert (new.rounds, new.settings.start.round) == (7, 2)
    assert new.eps_ramp == pytest.approx(0.5 * 4 / 7)
    resume(run.path, rounds=8)
    assert run.read_json("summary.json")["prolonged"] == [4, 7]
    assert {path.name for path in run.path.glob("finished-*")} == {"finished-004", "finished-007"}


def test_the_learning_rate_begins_anew_and_gamma_stays():
    before = finished_blobs(small(start=Fixed(round=1), gamma=(1.0, 0.4)), 2)
    job = training(small(start=Fixed(round=1), gamma=(1.0, 0.4)), 5)
    job.load_state_dict(through_a_file(before.state_dict()))
    job.run()
    rates = [record["learners"]["robust"]["lr"] for record in job.history]
    robust = job.learners["robust"].objective
    assert rates[:2] == [record["learners"]["robust"]["lr"] for record in before.history]
    expected = [robust.lr * robust.schedule((t - 1 / STEPS) / 3) for t in range(1, 4)]
    assert rates[2:] == pytest.approx(expected)
    assert [record["weights"]["robust"] for record in job.history[1:]] == [0.4] * 4
    assert [record["rounds"] for record in job.history] == [2, 2, 5, 5, 5]


def test_stopped_anywhere_it_ends_with_the_same_bits(run, finished, tmp_path, monkeypatch):
    whole = Run(shutil.copytree(finished, tmp_path / "whole"))
    resume(whole.path, rounds=6)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    for place in ("_clear", "settle"):  # after the recipe is written, and before
        monkeypatch.setattr(prolonging, place, killed)
        with pytest.raises(KeyboardInterrupt):
            resume(run.path, rounds=6)
        assert bits(run.path / "finished-004") == bits(finished)
        assert run.model() is not None
        monkeypatch.undo()
        if place == "_clear":
            shutil.rmtree(run.path)
            shutil.copytree(finished, run.path)
    once: list[bool] = []
    plain = Training._close_round

    def stops(self: Training, *args: Any) -> Any:
        if not once:
            once.append(True)
            raise RunError("stopped")
        return plain(self, *args)

    monkeypatch.setattr(Training, "_close_round", stops)
    with pytest.raises(RunError):
        resume(run.path)
    resume(run.path)
    assert bits(run.path) == bits(whole.path)


def test_a_training_of_one_learner_keeps_the_better_model(tmp_path):
    run = train(recipe("keep=robust", rounds=2), tmp_path / "run")
    resume(run.path, rounds=3)
    state = run.read_state(print)
    assert state is not None
    assert [record["rounds"] for record in state["history"]] == [2, 2, 3]
    kept = run.read_json("summary.json")["kept_round"]
    values = [record["global"]["robust_accuracy"] for record in state["history"]]
    assert values[kept - 1] == max(values)


def test_what_does_not_fit_is_a_line(run, tmp_path):
    with pytest.raises(UserError, match="the training has had 4: give more"):
        resume(run.path, rounds=3)
    (run.path / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished: first equipoise train --resume"):
        resume(run.path, rounds=9)


@pytest.mark.parametrize(
    ("items", "name", "places"),
    [
        (["method=pgd-at", "awp=0.01", "awp_from=0.5"], "awp_from", 0.25),
        (["method=sat"], "onset", 0.345),
        (["method=gat"], "beta_at", (0.0, 0.43, 0.43, 0.5)),
        (["method=gat", "beta_at=none"], "beta_at", (0.0, 1 / 6, 2 / 6, 0.5)),
        (["method=fat", "tau=[0, 1]", "tau_at=none"], "tau_at", (0.0, 0.25)),
        (["method=fat", "tau=1"], "tau", 1),
    ],
)
def test_schedules_that_are_over_stay_over(items, name, places):
    old = recipe(*items)
    new = longer(old, 8, 4, None)
    found = getattr(new.settings.learners["robust"], name)
    assert found == pytest.approx(places)
