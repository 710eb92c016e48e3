"""Gamma at the end of a training: the rule, what is kept and told, and going on in the middle."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.errors import RunError
from equipoise.fronts.front import CHOSEN, Front
from equipoise.fronts.record import Point
from equipoise.jobs.choice import best
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.front import measure_front, pick
from equipoise.jobs.train import resume, train
from equipoise.measures.regime import Regime
from equipoise.settings.explanation import GRID, explain
from equipoise.settings.recipe import Recipe, parse
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.weight_names import mix
from equipoise.terminal.progress import Console

SMALL: dict[str, Any] = {
    "method": "a3gt",
    "rounds": 4,
    "width": 0.25,
    "limit": 400,
    "validation": 80,
    "batch_size": 40,
    "attack": {"steps": 2},
    "validation_attack": "pgd-2",
    "precision": "float32",
}


def small(**more: Any) -> Recipe:
    return parse(SMALL | more)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run; whoever changes it works on a copy."""
    return train(small(), tmp_path_factory.mktemp("chosen") / "run")


@pytest.fixture
def copy(chosen: Run, tmp_path: Path) -> Run:
    return Run(Path(shutil.copytree(chosen.path, tmp_path / "copy")))


# The rule


@pytest.mark.parametrize(
    ("counts", "least", "gamma"),
    [
        ([(90, 10), (85, 40), (80, 50)], 0.8, 1.0),
        ([(90, 10), (85, 40), (80, 50)], 0.81, 0.5),
        ([(90, 10), (85, 40), (80, 50)], 0.85, 0.5),
        ([(90, 10), (85, 40), (80, 50)], 0.86, 0.0),
        ([(90, 40), (85, 40), (85, 39)], 0.8, 0.0),  # equally robust: the more accurate one
        ([(85, 40), (85, 40), (85, 40)], 0.8, 0.0),  # all equal: the smallest gamma
        ([(80, 10), (79, 40), (78, 50)], 0.9, 0.0),  # none: the most accurate one
        ([(80, 10), (80, 40), (78, 50)], 0.9, 0.5),
        ([(0, 0), (0, 0), (0, 0)], 0.5, 0.0),
        ([(90, 10), (85, 40), (80, 50)], -0.01, 1.0),
    ],
)
def test_the_most_robust_of_those_that_are_accurate_enough_is_kept(counts, least, gamma):
    points = [
        Point(gamma=g, n=100, clean=clean, robust=robust)
        for g, (clean, robust) in zip((0.0, 0.5, 1.0), counts, strict=True)
    ]
    assert best(points, least).gamma == gamma
    assert best(points[::-1], least).gamma == gamma


# What is kept and told


def test_the_model_is_the_mix_that_was_chosen(chosen):
    summary = chosen.read_json("summary.json")
    choice, points = summary["choice"], {p.gamma: p for p in Front(chosen.path).points}
    assert set(points) == set(GRID)
    assert choice["points"] == [
        {"gamma": g, "clean_accuracy": p.clean_accuracy, "robust_accuracy": p.robust_accuracy}
        for g, p in sorted(points.items())
    ]
    gamma = choice["gamma"]
    assert [g for g, point in points.items() if point.mark == CHOSEN] == [gamma]
    assert points[gamma] == best([*points.values()], choice["least_clean_accuracy"])
    clean, robust = (chosen.model(f"learner-{one}").state_dict() for one in ("clean", "robust"))
    for name, value in mix(clean, robust, gamma).items():
        assert torch.equal(chosen.model().state_dict()[name], value), name
    assert model_digest(chosen.model()) == points[gamma].sha256 == summary["sha256"]["model"]
    assert Regime.of(summary["regime"]).gamma == pytest.approx(
        {"clean": 1 - gamma, "robust": gamma}
    )
    assert f"at gamma = {gamma:g}: the most robust model" in summary["rule"]


def test_its_cost_is_part_of_the_training(chosen):
    summary = chosen.read_json("summary.json")
    log = [json.loads(line) for line in (chosen.path / "log.jsonl").read_text().splitlines()]
    trained = sum(record["gradient_evaluations"] for record in log)
    measured = sum(point.backwards for point in Front(chosen.path).points)
    assert summary["choice"]["gradient_evaluations"] == measured > 0
    assert summary["gradient_evaluations"] == trained + measured
    text = "\n".join(explain(small(eps=0.1)))
    assert "gamma is chosen at the end, of 0, 0.25, 0.5, 0.75, 1: the most robust model" in text
    assert "at most 400 gradient evaluations for each of these images" in text
    assert "gamma is chosen" not in "\n".join(explain(small(eps=0.1, gamma=0.5)))


def test_the_reference_is_the_average_of_the_trunk_at_the_branch(chosen):
    log = [json.loads(line) for line in (chosen.path / "log.jsonl").read_text().splitlines()]
    start = log[-1]["start"]["round"]
    choice = chosen.read_json("summary.json")["choice"]
    trunk = choice["trunk_clean_accuracy"]
    assert trunk == pytest.approx(log[start - 1]["global"]["clean_accuracy"])
    assert choice["least_clean_accuracy"] == pytest.approx(trunk - 0.01)
    assert log[-1]["weights"] == {"clean": 0.0, "robust": 1.0}


def test_a_front_adds_points_and_a_pick_needs_none(copy, tmp_path):
    before = {p.gamma: (p.seconds, p.sha256) for p in Front(copy.path).points}
    picked = pick(copy.path, tmp_path / "picked", gamma=0.25)
    assert model_digest(picked.model) == before[0.25][1]
    pick(copy.path, tmp_path / "accurate", min_clean=0.01)
    said: list[str] = []
    console = Console(quiet=True)
    console.say = said.append  # type: ignore[method-assign]
    after = {p.gamma: p for p in measure_front(copy.path, points=7, console=console).points}
    assert {g: (p.seconds, p.sha256) for g, p in after.items() if g in before} == before
    assert sum(line.endswith("[stored]") for line in said) == len(GRID)
    assert [p.mark for p in after.values()].count(CHOSEN) == 1
    assert evaluate_run(copy.path, attacks="fgsm", n=20)


def test_a_gamma_that_is_given_is_the_mix_and_nothing_is_measured(chosen, tmp_path):
    run = train(small(gamma=0.5), tmp_path / "run")
    learners = [f"learner-{one}" for one in ("clean", "robust")]
    for name in learners:
        ours, theirs = run.model(name).state_dict(), chosen.model(name).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    clean, robust = (run.model(name).state_dict() for name in learners)
    for name, value in mix(clean, robust, 0.5).items():
        if value.is_floating_point():
            torch.testing.assert_close(run.model("last").state_dict()[name], value, msg=name)
    assert "choice" not in run.read_json("summary.json")
    assert not (run.path / "front.json").exists()


def test_what_makes_a_choice_doubtful_is_said(chosen, tmp_path, capsys):
    settings = {"min_clean": 0.999, "more": {"l2": {"norm": "l2", "eps": 1}}}
    run = train(small(**settings, snapshots=1, patience=1), tmp_path / "run", console=Console())
    said = " ".join(capsys.readouterr().err.split())
    choice = run.read_json("summary.json")["choice"]
    missed, coarse = choice["warnings"]
    assert "no model between the branches has 99.90% clean accuracy" in missed
    assert "1/sqrt(n) = 11 points" in coarse
    assert missed in said
    assert f"kept gamma = {choice['gamma']:g}: the most robust model with at least 0.999" in said
    clean = {p["gamma"]: p["clean_accuracy"] for p in choice["points"]}
    assert clean[choice["gamma"]] == max(clean.values())
    assert "learner-l2" in run.weights()
    first, *_, last = [name for name in run.weights() if name.startswith("round")]
    assert first == "round-001"
    assert model_digest(run.model(last)) == model_digest(run.model("last"))


def test_branches_that_stayed_the_same_leave_nothing_to_choose(tmp_path, capsys):
    still = {"lr": 1e-30, "weight_decay": 0.0}
    run = train(small(robust=still, clean=still), tmp_path / "run", console=Console())
    assert "there is no gamma to choose" in capsys.readouterr().err
    assert "choice" not in run.read_json("summary.json")
    assert run.read_json("summary.json")["finished"]


def test_images_of_one_class_are_trained_on_to_the_end(tmp_path):
    y = np.zeros(120, np.int64)
    x = np.random.default_rng(0).integers(0, 255, (120, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "one.npz", train_x=x, train_y=y, test_x=x[:20], test_y=y[:20])
    path = str(tmp_path / "one.npz")
    run = train(small(data=path, limit=None, eps=0.1), tmp_path / "run")
    assert run.read_json("summary.json")["finished"]


# Going on


class Stopped(Console):
    """Stops a training when the second model is measured, as Ctrl-C does."""

    def say(self, sentence: str) -> None:
        if sentence.startswith("gamma = 0:"):
            raise KeyboardInterrupt


def test_stopped_in_the_choice_it_ends_with_the_same_files(chosen, tmp_path):
    with pytest.raises(RunError, match=r"stopped while gamma was chosen.*train --resume"):
        train(small(), tmp_path / "run", console=Stopped(quiet=True))
    run = Run.open(tmp_path / "run")
    assert not run.read_json("summary.json").get("finished")
    resume(tmp_path / "run")
    for name in chosen.weights():
        one, other = (r.model(name).state_dict() for r in (run, chosen))
        assert all(torch.equal(value, other[key]) for key, value in one.items())
    ours, theirs = (r.read_json("summary.json") for r in (run, chosen))
    for choice in (ours["choice"], theirs["choice"]):
        del choice["seconds"]
    assert ours["choice"] == theirs["choice"]
    assert ours["sha256"] == theirs["sha256"]
    assert ours["gradient_evaluations"] == theirs["gradient_evaluations"]
