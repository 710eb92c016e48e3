"""The front between two ends: where to measure, what is measured, what is kept, what is picked."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import equipoise as eq
from browser import browser
from equipoise import data
from equipoise.attacks import APGD
from equipoise.errors import RunError, UserError
from equipoise.evaluation import Protocol, Result
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.stored import Store
from equipoise.execution import Execution
from equipoise.fronts import picking, survey
from equipoise.fronts.barrier import barrier, in_words
from equipoise.fronts.constraint import Constraint
from equipoise.fronts.picking import bounds, choose, level
from equipoise.fronts.record import FINEST, FrontRecord, Point, following, initial
from equipoise.jobs.front import measure_front
from equipoise.jobs.train import train
from equipoise.report import build
from equipoise.settings.recipe import parse
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.verdicts import Verdicts
from equipoise.store.weight_names import mix
from equipoise.training.shares import averaged_names
from problems import held_out, linear_problem, small_net

FULL = Execution(precision="float32")
QUICK = {"attacks": "pgd-3", "points": 6, "execution": FULL}


def point(gamma: float, clean: int, robust: int, n: int = 100) -> Point:
    return Point(gamma=gamma, n=n, clean=clean, robust=robust)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A finished run of two learners, without a front."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def fronted(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a measured front, which nobody changes."""
    folder = tmp_path_factory.mktemp("fronted") / "run"
    shutil.copytree(trained, folder)
    measure_front(folder, **QUICK)
    return folder


@pytest.fixture
def measured(fronted: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(fronted, tmp_path / "measured"))


# Points, choice, barrier


def test_a_point_survives_its_plain_values_and_refuses_impossible_counts():
    original = replace(point(0.25, 90, 60), file="front/a", sha256="b", seconds=0.5)
    content = json.loads(json.dumps(original.content()))
    assert Point.of(content) == original
    assert content["clean_accuracy"] == 0.9
    assert content["robust_interval"][0] < 0.6 < content["robust_interval"][1]
    for wrong in ({"robust": 91}, {"clean": 101}, {"n": 0}):
        with pytest.raises((ValueError, ZeroDivisionError)):
            Point.of(content | wrong)


def test_the_neighbours_that_differ_most_are_parted():
    points = [point(0, 90, 0), point(0.5, 88, 60), point(1, 80, 70)]
    assert following(points) == 0.25  # 60 points of robust accuracy
    assert following([*points, point(0.25, 89, 58)]) == 0.125
    steep_clean = [point(0, 90, 50), point(0.5, 60, 50), point(1, 59, 49)]
    assert following(steep_clean) == 0.25
    equal = [point(0, 90, 40), point(0.5, 80, 50), point(1, 70, 60)]
    assert following(equal) == 0.75  # of equals the one at the robust end


def test_nothing_is_parted_that_is_flat_or_too_close():
    assert following([point(0, 90, 50), point(1, 90, 50)]) is None
    assert following([point(0, 90, 50)]) is None
    assert following([point(0, 90, 0), point(1.5 * FINEST, 90, 80)]) is None
    gammas = [0.0, 1.0]
    step = [point(0, 90, 10), point(1, 80, 70)]
    while (gamma := following(step)) is not None:
        gammas.append(gamma)
        step.append(point(gamma, *((90, 10) if gamma < 0.4 else (80, 70))))
    assert len(gammas) == 2 + 6  # halved down to the finest, around 0.4
    assert min(abs(g - 0.4) for g in gammas) < FINEST


def test_the_first_places_are_the_ends_the_middle_and_what_is_marked():
    assert initial([0.4, 0.5], 0.0) == [1.0, 0.0, 0.5, 0.4]
    assert initial([], 0.1) == [1.0, 0.0, 0.5, 1.1, -0.1]


def test_the_barrier_is_the_largest_drop_below_the_straight_line():
    n = 1000

    def first(share: float) -> np.ndarray:
        return np.arange(n) < share * n

    verdicts = {0.0: first(0.9), 1.0: first(0.5), 0.25: first(0.6), 0.5: first(0.65)}
    drop = barrier(verdicts)
    assert drop is not None
    assert drop.gamma == 0.25
    assert drop.drop == pytest.approx(0.75 * 0.9 + 0.25 * 0.5 - 0.6)
    assert drop.low < drop.drop < drop.high
    assert drop.seen
    above = barrier({0.0: first(0.9), 1.0: first(0.5), 0.5: first(0.8)})
    assert above is not None
    assert above.drop == pytest.approx(-0.1)
    assert not above.seen
    assert barrier({0.0: first(0.9), 0.5: first(0.8)}) is None
    assert "20.0 points of clean accuracy at gamma = 0.25" in in_words(drop, above)
    assert in_words(above, above).startswith("No barrier")
    assert "no estimate" in in_words(None, above)


# Ends


def test_the_ends_are_the_learners_and_the_middle_is_the_mix_of_weights(run):
    front = eq.Front(run)
    for gamma, which in ((0, "learner-clean"), (1, "learner-robust"), (0.4, "gamma-0.4")):
        assert model_digest(front.model(gamma)) == model_digest(eq.load(run, which))
    beyond = front.model(1.3).state_dict()
    ends = [eq.load(run, f"learner-{name}").state_dict() for name in ("clean", "robust")]
    raw = mix(*ends, 1.3)
    assert any((raw[name] < 0).any() for name in raw if name.endswith("running_var")) or all(
        torch.equal(beyond[name], raw[name]) for name in raw
    )
    assert all((v >= 0).all() for name, v in beyond.items() if name.endswith("running_var"))
    assert set(averaged_names(front.model(0.5))) <= set(beyond)
    with pytest.raises(UserError, match=r"gamma must lie in \[-1, 2\]"):
        front.model(2.5)


def test_a_variance_beyond_an_end_is_never_negative(run):
    front = eq.Front(run)
    for end, value in ((front.ends.clean, 5.0), (front.ends.robust, 0.1)):
        for name, tensor in end.model.state_dict().items():
            if name.endswith("running_var"):
                tensor.fill_(value)
    far = [v for k, v in front.model(1.5).state_dict().items() if k.endswith("running_var")]
    assert far
    assert all(bool((v == 0).all()) for v in far)


def test_estimated_statistics_are_those_of_a_mix_and_repeatable(run):
    first = measure_front(run, batchnorm="estimate", n=20, **(QUICK | {"points": 4}))
    front = eq.Front(run)
    assert front.batchnorm == "estimate"
    middle = front.model(0.5)
    assert model_digest(middle) == next(p.sha256 for p in first.points if p.gamma == 0.5)
    averaged = eq.Front(run, batchnorm="average").model(0.5).state_dict()
    for name, value in middle.state_dict().items():
        same = torch.equal(value, averaged[name])
        assert same != ("running_" in name or name.endswith("num_batches_tracked"))
    assert model_digest(front.model(1)) == model_digest(eq.load(run, "learner-robust"))
    with pytest.raises(UserError, match="batchnorm=estimate"):
        _ = eq.Front(run, batchnorm="average").points


def test_ends_that_cannot_be_mixed_are_refused(run, tmp_path, small):
    words = dict(word.split("=") for word in small[1:])
    given = {"method": "pgd-at", "data": "digits", "rounds": 1, "limit": 300, "validation": 60}
    given |= {"batch_size": 40, "attack": {"steps": 1}, "validation_attack": "pgd-1"}
    assert words["limit"] == "300"
    other = train(parse(given | {"width": 0.5}), tmp_path / "wide").path
    with pytest.raises(UserError, match=r"width 0.25 and 0.5.*cannot be mixed"):
        eq.Front(run, ends=[run, other])
    alone = train(parse(given | {"width": 0.25}), tmp_path / "alone").path
    with pytest.raises(UserError, match=r"learner-clean and learner-robust.*--ends A B"):
        eq.Front(alone)
    learned = train(parse(given | {"width": 0.25, "validation": 30}), tmp_path / "learned").path
    with pytest.raises(UserError, match="validation 30 there, 60 here"):
        eq.Front(run, ends=[run, learned])
    with pytest.raises(UserError, match="validation 30 there, 60 here"):
        eq.Front(run).measure(others=[learned], **QUICK)
    between = eq.Front(run, ends=["learner-robust", alone])
    points = between.measure(n=30, others=[other], attacks="pgd-1", points=3)
    assert [p.gamma for p in points] == [0, 0.5, 1]
    assert eq.Front(run).ends.names == ("learner-robust", str(alone))  # those that were measured
    assert between.record.others[0].method == "pgd-at"
    file = eq.Front(run, ends=[run / "learner-clean.safetensors", "last"])
    assert model_digest(file.model(0)) == model_digest(eq.load(run, "learner-clean"))


# Measuring


WARM = Protocol(
    attacks="pgd-5,apgd-ce-5", norm="linf", eps=0.15, execution=FULL, batch_size=30,
    individual=False, strongest=True, checks=False,
)  # fmt: skip


def searched(result: Result) -> int:
    """Return how many images the first attack searched."""
    return int(result.outcomes["pgd-5"].attacked.sum())


def neighbour() -> torch.nn.Module:
    """A network near the small one."""
    near = copy.deepcopy(small_net(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.mul_(1 + 0.05 * torch.randn(parameter.shape, generator=generator))
    return near


def test_warm_verdicts_are_at_least_as_strong_and_save_searches():
    model, (x, y) = small_net(0), held_out(80)
    before = evaluate_by(WARM, neighbour(), x, y)
    cold = evaluate_by(WARM, model, x, y)
    warm = evaluate_by(WARM, model, x, y, others={"near": before.x_adv}, warm=True)
    assert torch.equal(cold.correct, warm.correct)
    assert not bool((warm.robust & ~cold.robust).any())
    transferred = int(warm.outcomes["transfer"].broken.sum())
    assert transferred > 0
    assert searched(warm) == int(warm.correct.sum()) - transferred < searched(cold)
    assert warm.outcomes["pgd-5"].backwards < cold.outcomes["pgd-5"].backwards
    with torch.no_grad():  # every verdict can be checked again
        answers = model(warm.x_adv).argmax(1)
    fooled = warm.correct & ~warm.robust
    assert bool((answers[fooled] != y[fooled]).all())
    assert bool(WARM.threat.contains(x, warm.x_adv).all())


def test_what_lies_outside_the_ball_or_fools_nobody_is_not_taken_over():
    model, (x, y) = small_net(0), held_out(80)
    cold = evaluate_by(WARM, model, x, y)
    wide = evaluate_by(replace(WARM, eps=0.5), model, x, y)
    for name, points in {"outside": wide.x_adv, "clean": x}.items():
        warm = evaluate_by(WARM, model, x, y, others={name: points}, warm=True)
        inside = WARM.threat.contains(x, points) & wide.correct
        assert int(warm.outcomes["transfer"].broken.sum()) <= int(inside.sum())
        assert torch.equal(warm.robust, cold.robust)


def test_robust_is_exact_where_the_answer_is_known():
    problem = linear_problem(3, classes=4)
    attacks = {"apgd-t": APGD(steps=10, targets=3, loss="margin")}
    asked = replace(WARM, attacks=attacks, eps=0.03)
    result = evaluate_by(asked, problem.model, problem.x, problem.y)
    assert torch.equal(result.robust, problem.robust(asked.threat))


def test_later_finds_are_tried_at_earlier_points():
    model, (x, y) = small_net(0), held_out(80)
    weak = evaluate_by(replace(WARM, attacks="pgd-1(step_size=0.01)"), model, x, y)
    strong, none = evaluate_by(WARM, model, x, y), replace(WARM, attacks=())
    others = {"clean": x, "strong": strong.x_adv}
    again = evaluate_by(none, model, x, y, begun=weak, others=others, warm=True)
    assert int(weak.robust.sum()) > int(again.robust.sum())
    assert torch.equal(again.robust, weak.robust & strong.robust)
    transferred = int(again.outcomes["transfer"].broken.sum())
    assert transferred == int((weak.robust & ~strong.robust).sum())
    more = evaluate_by(none, model, x, y, begun=again, others={"clean": x}, warm=True)
    assert torch.equal(more.robust, again.robust)


# The store


def test_a_stored_point_is_found_by_all_that_its_verdicts_depend_on(tmp_path):
    run, device = Run(tmp_path), torch.device("cpu")

    def name(protocol: Protocol, model: str = "a") -> str:
        return Store.by_key(run, protocol.key(device) | {"model_sha256": model}).name

    changes = (
        {"eps": 0.1},
        {"attacks": "pgd-6"},
        {"seed": 1},
        {"execution": Execution(precision="bfloat16")},
    )
    others = {name(replace(WARM, **change)) for change in changes} | {name(WARM, "b")}
    assert len(others) == 5
    assert name(WARM) not in others
    assert name(replace(WARM, batch_size=7)) == name(WARM)


def test_a_damaged_point_is_measured_again(measured, capsys):
    before = FrontRecord.read(measured)
    path = measured / before.points[0].file
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    after = measure_front(measured, **QUICK)
    assert "damaged" in capsys.readouterr().err
    assert [(p.clean, p.robust, p.file) for p in after.points] == [
        (p.clean, p.robust, p.file) for p in before.points
    ]


# The job


@pytest.mark.slow
def test_a_front_is_measured_drawn_and_said(command, run, tmp_path):
    ended = command(
        "front", run, "--attacks", "pgd-3", "--points", 6, "--with", run, "--beyond", ".1"
    )
    assert ended.code == 0, ended.err
    record = FrontRecord.read(run)
    assert record is not None
    assert len(record.points) == 6
    assert [p.gamma for p in record.points] == sorted(p.gamma for p in record.points)
    assert {-0.1, 0, 0.4, 0.5, 1, 1.1} == {p.gamma for p in record.points}
    assert [p.gamma for p in record.points if p.mark] == [0.4, 0.5]
    assert record.others[0].method == "a3gt"
    content = json.loads((run / "front.json").read_text())
    assert content["split"] == "validation"
    assert content["n"] == 60
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
    svg = (run / "front.svg").read_text()
    assert "learner-clean" in svg
    assert "robust accuracy (pgd-3)" in svg
    assert "held-out images; pgd-3" in ended.out
    assert record.words in " ".join(ended.out.split())
    assert "written: " in ended.err


def test_what_is_known_is_not_measured_again(measured, monkeypatch):
    before = FrontRecord.read(measured)

    def never(*_, **__):
        raise AssertionError("it was measured again")

    monkeypatch.setattr(survey, "evaluate_and_save", never)
    again = measure_front(measured, **QUICK)
    assert before is not None
    assert again == before
    monkeypatch.undo()
    more = measure_front(measured, **(QUICK | {"points": 7}))
    assert {p.gamma for p in again.points} <= {p.gamma for p in more.points}


def test_no_test_image_has_a_part_in_it(run, monkeypatch, tmp_path):
    real = data.load
    monkeypatch.setattr(data, "load", lambda *a, **k: replace(real(*a, **k), test=None))
    measure_front(run, **QUICK)
    eq.Front(run).pick(min_clean=0.01).write(tmp_path / "picked")
    train_y = real("digits").train.y
    assert len(eq.Front(run).images.validation) == 60
    assert len(train_y) == 1297


KILL = """
import os, signal
import equipoise.fronts.survey as survey
real, calls = survey.evaluate_and_save, []
def evaluate_and_save(*given, **more):
    calls.append(given)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.{name})
    return real(*given, **more)
survey.evaluate_and_save = evaluate_and_save
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_front_that_was_stopped_goes_on(command, run, fronted, name):
    words = ("front", run, "--attacks", "pgd-3", "--points", 6, "--precision", "float32")
    ended = command(*words, before=KILL.format(name=name))
    assert ended.code == (-signal.SIGKILL if name == "SIGKILL" else 130)
    if name != "SIGKILL":
        assert "equipoise front " in ended.err
    assert len(list((run / "front").glob("[0-9a-f]*.safetensors"))) == 3
    ended = command(*words)
    assert ended.code == 0
    assert ended.err.count("[stored]") == 3
    resumed, whole = FrontRecord.read(run), FrontRecord.read(fronted)
    assert resumed is not None
    assert whole is not None
    pairs = [(p.gamma, p.clean, p.robust, p.sha256) for p in resumed.points]
    assert pairs == [(p.gamma, p.clean, p.robust, p.sha256) for p in whole.points]


def test_two_at_once_are_kept_apart(command, run):
    (run / "front").mkdir()
    with Run(run / "front").lock("measuring the front"):
        ended = command("front", run, "--attacks", "pgd-1")
    assert ended.code == 2
    assert "another process is measuring the front" in ended.err


WRONG = {
    "--points 2": "points must be at least 3",
    "--points 3": "points must be at least 4, for gamma = 1, 0, 0.5, 0.4",
    "--beyond 2": "beyond must lie in",
    "--eps 0.1,0.2": "a front has one radius",
    "--norm l2": "give the radius with --eps",
    "--attacks pgf-3": "did you mean 'pgd'",
    "--attacks clean": "at least one attack",
    "--n 61": "n must lie in 1..60 held-out images",
    "--batchnorm averaged": "did you mean 'average'",
    "--ends learner-clean round-7": "unknown weights 'round-007'",
    "--with nowhere": "no run folder at nowhere",
    "--ends last last": "the same weights",
}


@pytest.mark.slow
@pytest.mark.parametrize("words", WRONG)
def test_what_will_not_do_is_one_line(command, run, words):
    ended = command("front", run, "-q", *words.split())
    assert ended.code == 2
    assert WRONG[words] in ended.line


# Picking


def measured_model(
    gamma: float, correct: np.ndarray, robust: np.ndarray
) -> tuple[Point, Verdicts]:
    """Return a measured model with one attack."""
    verdicts = Verdicts(
        norm="linf", eps=0.1, y=np.zeros(len(correct), int), correct=correct,
        verdict={"a": robust}, attacked={"a": correct}, outcomes={"a": {"ensemble": ""}},
    )  # fmt: skip
    return point(gamma, int(correct.sum()), int(robust.sum()), len(correct)), verdicts


def models(clean, robust, n=400):
    order = np.random.default_rng(0).permutation(n)
    measured = []
    for gamma, accuracies in enumerate(zip(clean, robust, strict=True)):
        flags = np.zeros((2, n), bool)
        for row, accuracy in zip(flags, accuracies, strict=True):
            row[order[: round(accuracy * n)]] = True
        measured.append(measured_model(gamma / (len(clean) - 1), *flags))
    return measured


def wanted(**given) -> Constraint:
    names = ("max_clean_drop", "min_clean", "min_robust", "gamma")
    apart = {name: given.pop(name, None) for name in ("reference", "standard")}
    return Constraint.of(dict.fromkeys(names) | given, **apart)


def test_the_most_robust_model_whose_bound_meets_the_constraint_is_picked():
    front = models([0.95, 0.94, 0.9, 0.8], [0.3, 0.5, 0.6, 0.7])
    choice = choose(wanted(min_clean=0.86), front)
    assert choice.gamma == pytest.approx(2 / 3)
    assert choice.bound is not None
    assert 0.86 <= choice.bound < 0.9
    assert choose(wanted(min_clean=0.88), front).gamma == pytest.approx(1 / 3)
    robust = choose(wanted(min_robust=0.43), front)
    assert robust.gamma == pytest.approx(1 / 3)  # the most accurate of those
    assert choose(wanted(max_clean_drop=0.05, reference=0.91), front).gamma == pytest.approx(2 / 3)
    with pytest.raises(RunError, match=r"cannot be met; the nearest is gamma = 0: clean 95.00%"):
        choose(wanted(min_clean=0.95), front)


def test_a_paired_reference_makes_bounds_tighter():
    front = models([0.95, 0.94, 0.9], [0.3, 0.5, 0.6])
    same, alone = front[0][1].correct, [verdicts for _, verdicts in front]
    against = wanted(max_clean_drop=0.02, standard="runs/standard")
    lower, alpha = bounds(against, alone, same)
    assert lower[0] > -0.011  # the model itself: nothing differs
    assert lower[0] > lower[1] > lower[2]
    assert choose(against, front, same).gamma == 0
    unpaired, _ = bounds(wanted(min_clean=0.5), alone)
    assert 0.94 - unpaired[1] > -0.01 - lower[1]
    assert picking.ALPHA / 3 <= alpha <= picking.ALPHA


def test_the_level_lies_between_bonferroni_and_a_single_bound():
    generator = np.random.default_rng(1)
    apart = (generator.random((4000, 8)) < 0.7).astype(float)
    assert level(apart) == pytest.approx(1 - 0.95 ** (1 / 8), rel=0.1)
    alike = np.repeat(apart[:, :1], 8, 1)
    assert level(alike) == pytest.approx(0.05, rel=0.05)
    assert level(np.ones((50, 4))) == pytest.approx(0.05 / 4, rel=0.1)
    assert level(apart[:, :1]) == 0.05


def test_the_constraint_holds_for_what_is_picked(monkeypatch):
    """Of 300 validation sets at most one in twenty may pick a model that misses it."""
    monkeypatch.setattr(picking, "DRAWS", 4000)
    generator = np.random.default_rng(2)
    truth = np.linspace(0.93, 0.86, 9)
    wrong = trials = 0
    for _ in range(300):
        common = generator.standard_normal((500, 1))
        own = generator.standard_normal((500, 9))
        latent = 0.9 * common + np.sqrt(1 - 0.81) * own
        from scipy.stats import norm

        correct = latent < norm.ppf(truth)
        order = np.cumsum(correct, 0)  # of the correct images the first i / 8 are robust
        front = [
            measured_model(i / 8, c, c & (count <= c.sum() * i // 8))
            for i, (c, count) in enumerate(zip(correct.T, order.T, strict=True))
        ]
        try:
            choice = choose(wanted(min_clean=0.88), front)
        except RunError:
            continue
        trials += 1
        wrong += truth[round(8 * choice.gamma)] < 0.88
    assert trials > 250
    assert wrong / trials <= 0.05


def test_a_constraint_is_given_once_and_makes_sense():
    for given, message in (
        ({}, "got none"),
        ({"min_clean": 0.5, "gamma": 0.5}, "exactly one"),
        ({"min_clean": 88}, "did you mean 0.88"),
        ({"min_robust": -0.1}, "must be an accuracy"),
        ({"min_clean": 0.5, "reference": 0.9}, "need --max-clean-drop"),
        ({"max_clean_drop": 0.1, "reference": 0.9, "standard": "x"}, "not both"),
        ({"max_clean_drop": 1.0, "reference": 0.9}, "one percentage point is 0.01 or 1%"),
        ({"max_clean_drop": "100%", "reference": 0.9}, "one percentage point is 0.01 or 1%"),
        ({"min_clean": True}, "takes an accuracy like 0.01 or 1%"),
        ({"min_robust": "much"}, "takes an accuracy like 0.01 or 1%"),
    ):
        with pytest.raises(UserError, match=message):
            wanted(**given)


def test_accuracies_are_parts_of_one_or_percents():
    assert wanted(max_clean_drop="1%", reference="93%") == wanted(
        max_clean_drop=0.01, reference=0.93
    )
    assert wanted(min_clean=" 88 % ") == wanted(min_clean="0.88") == wanted(min_clean=0.88)
    assert wanted(min_robust="100%").value == wanted(min_robust=1).value == 1
    assert wanted(min_clean="0.5%").value == 0.005


@pytest.mark.slow
def test_a_picked_model_is_a_run_like_any_other(command, measured, tmp_path):
    out = tmp_path / "picked"
    ended = command("pick", measured, "--min-clean", "0.05", "--out", out)
    assert ended.code == 0, ended.err
    picked = json.loads((out / "picked.json").read_text())
    front = eq.Front(measured)
    best = max(front.points, key=lambda p: (p.robust, p.clean))
    assert (picked["gamma"], picked["n"]) == (best.gamma, 60)
    assert picked["constraint"]["kind"] == "min_clean"
    assert picked["bound"] >= 0.05
    assert picked["front"]["attacks"] == ["pgd-3"]
    model = eq.load(out)
    assert model_digest(model) == best.sha256 == picked["sha256"]
    assert torch.equal(
        model(torch.zeros(1, 1, 8, 8)), front.model(best.gamma)(torch.zeros(1, 1, 8, 8))
    )
    ended = command("evaluate", out, "--attacks", "pgd-2", "-n", 50)
    assert ended.code == 0, ended.err
    assert command("verify", out).code == 0
    page = build([out, measured], tmp_path / "report.html").read_text()
    assert "Picked" in page
    assert "clean accuracy at least 5 %" in page
    for words in (("train", "--resume", out), ("train", "a3gt", "--out", out)):
        ended = command(*words)
        assert ended.code == 2
        assert "picked from a front" in ended.line
    ended = command("pick", measured, "--gamma", "0.4", "--out", out)
    assert (ended.code, "exists; choose another --out" in ended.line) == (2, True)


def test_without_out_the_picked_model_lies_beside_its_run(command, measured):
    ended = command("pick", measured, "--gamma", "0.4", "-q")
    assert ended.code == 0
    out = measured.with_name(f"{measured.name}-picked")
    assert {"picked.json", "model.safetensors"} <= {path.name for path in out.iterdir()}
    assert "choose another --out" in command("pick", measured, "--gamma", "0.4").line


@pytest.mark.slow
def test_what_cannot_be_met_writes_nothing_and_exits_with_1(command, measured, tmp_path):
    ended = command("pick", measured, "--min-robust", "0.999", "--out", tmp_path / "p", "-q")
    assert ended.code == 1
    assert "cannot be met; the nearest is gamma = " in ended.line
    assert not (tmp_path / "p").exists()
    for words, message in (
        ("--max-clean-drop 1%", "--standard runs/standard, or its accuracy with --reference"),
        ("--max-clean-drop 1.0 --reference .9", "is 0.01 or 1%"),
        ("--max-clean-drop 2 --reference .9", "did you mean 0.02, or 2%"),
        ("--max-clean-drop 150% --reference .9", "must be an accuracy in [0, 1]"),
        ("--min-clean -3%", "must be an accuracy in [0, 1]"),
        ("--min-clean .5% --reference 93", "did you mean 0.93, or 93%"),
        ("--min-clean 88", "did you mean 0.88"),
        ("", "expected exactly one of"),
        ("--min-clean .5 --gamma .4", "got --min-clean and --gamma"),
    ):
        ended = command("pick", measured, "--out", tmp_path / "p", "-q", *words.split())
        assert (ended.code, message in ended.line) == (2, True), ended.err


def test_a_drop_is_counted_from_a_standard_model_on_the_same_images(measured, tmp_path):
    given = {"method": "standard", "data": "digits", "rounds": 1, "limit": 300, "validation": 60}
    given |= {"batch_size": 40, "width": 0.25}
    standard = train(parse(given), tmp_path / "standard").path
    front = eq.Front(measured)
    there = front.pick(max_clean_drop=0.9, standard=standard).choice
    assert there.constraint.standard == str(standard)
    assert there.bound is not None
    assert there.bound >= -0.9
    front.measure(others=[standard], **QUICK)
    assert front.pick(max_clean_drop=0.9).choice.bound == there.bound
    assert front.pick(max_clean_drop=0.9, reference=0.95).choice.constraint.standard is None


def test_the_clean_accuracies_are_compared_on_all_held_out_images(run):
    front, standard = eq.Front(run), Run.open(run).model("learner-robust")
    front.measure(n=30, **{**QUICK, "points": 4})
    choice = front.pick(max_clean_drop=0.5, standard=standard).choice
    assert choice.point is not None
    assert (choice.point.n, choice.compared, choice.looked) == (30, 60, 4)
    assert "on 60 held-out images" in str(choice)
    images = front.images.validation
    with torch.no_grad():
        right = [
            (model(images.pixels()).argmax(1) == images.y).double()
            for model in (front.model(choice.gamma), standard)
        ]
    difference = (right[0] - right[1]).numpy()
    assert choice.level is not None
    assert choice.bound == pytest.approx(picking._difference(difference, choice.level))


def test_a_place_can_be_picked_without_a_front(run, tmp_path):
    with pytest.raises(UserError, match="has no measured front; measure it: equipoise front"):
        eq.Front(run).pick(min_clean=0.5)
    picked = eq.Front(run).pick(gamma=0.3)
    picked.write(tmp_path / "picked")
    content = json.loads((tmp_path / "picked" / "picked.json").read_text())
    assert (content["gamma"], content["bound"], content["point"]) == (0.3, None, None)
    assert model_digest(eq.load(tmp_path / "picked")) == model_digest(eq.load(run, "gamma-0.3"))


def test_damage_is_said_before_anything_is_picked(measured):
    front = eq.Front(measured)
    file = measured / front.points[0].file
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged or missing; measure it again"):
        front.pick(min_clean=0.05)
    (measured / "front.json").write_text("{")
    with pytest.raises(UserError, match=r"front.json is damaged"):
        eq.Front(measured)


# The report


@pytest.mark.slow
def test_the_report_has_a_panel_that_says_everything_without_a_script(fronted, tmp_path):
    page = build([fronted], tmp_path / "report.html").read_text()
    record = FrontRecord.read(fronted)
    assert record is not None
    assert f'max="{len(record.points) - 1}"' in page
    assert page.count("held-out image") >= 16
    assert f"All {len(record.points)} measured models" in page
    assert record.words in page
    assert build([fronted], tmp_path / "again.html").read_text() == page
    os.replace(fronted / "front.json", fronted / "front.hidden")
    try:
        without = build([fronted], tmp_path / "without.html").read_text()
    finally:
        os.replace(fronted / "front.hidden", fronted / "front.json")
    assert "front-slider" not in without.partition("</style>")[2]


def test_images_that_are_gone_are_said_not_fatal(measured, tmp_path):
    (measured / "front" / "gallery.safetensors").unlink()
    page = build([measured], tmp_path / "report.html").read_text()
    assert "The images of the front could not be read" in page


@pytest.mark.slow
@pytest.mark.browser
def test_the_slider_moves_everything(run, tmp_path):
    given = {"method": "standard", "data": "digits", "rounds": 12, "limit": 300, "validation": 60}
    standard = train(parse(given | {"batch_size": 40, "width": 0.25}), tmp_path / "standard").path
    measure_front(run, ends=[str(standard), "learner-robust"], **QUICK)
    out = build([run], tmp_path / "report.html")
    record = FrontRecord.read(run)
    assert record is not None
    with browser() as view:
        for width in (400, 1280):
            view.show(out, width=width)
            assert view.console() == []
            asked = [url for url in view.requests() if not url.startswith("data:")]
            assert asked == [out.resolve().as_uri()]
            assert view.ask("document.documentElement.scrollWidth") <= width
            assert view.ask("document.querySelector('.front-control').offsetHeight") > 100
            if shots := os.environ.get("EQUIPOISE_SCREENSHOTS"):
                view.screenshot(Path(shots) / f"front-{width}.png")
        slider = "document.querySelector('.front input[type=range]')"
        label = view.ask(f"{slider}.labels[0].textContent")
        assert "gamma" in label
        pictures = []
        view.driver.find_element("css selector", ".front input").send_keys("\ue011")  # Home
        for place, at in enumerate(record.points):
            assert view.ask(f"{slider}.value") == str(place)
            shown = view.ask("document.querySelector('[data-field=gamma]').textContent")
            assert shown == f"{at.gamma:g}"
            assert view.ask(f"{slider}.getAttribute('aria-valuetext')").startswith(
                f"gamma {at.gamma:g}: clean "
            )
            rings = view.ask(
                "[...document.querySelectorAll('[id*=\"-halo-\"]')]"
                ".filter(r => r.style.visibility === 'visible').map(r => r.id)"
            )
            assert rings == [f"front-0-halo-{place}"]
            pictures.append(
                view.ask(
                    "[...document.querySelectorAll('.front .shots > :last-child img')]"
                    ".map(i => i.src).join()"
                )
            )
            view.driver.find_element("css selector", ".front input").send_keys("\ue014")  # right
        assert len(set(pictures)) > 1
        broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
        assert view.ask(broken) == 0
        assert view.console() == []


@pytest.mark.long
def test_trials_of_pick_are_kept_and_counted(tmp_path):
    program = Path(__file__).parents[1] / "benchmarks" / "pick_trials.py"
    small = ("-n", "60", "limit=600", "validation=200", "rounds=2")
    words = (sys.executable, program, "trials", "--data", "digits", "--seeds", "1", *small)
    done = [
        subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=250)
        for _ in range(2)
    ]
    assert [run.returncode for run in done] == [0, 0], done[0].stderr
    trial = json.loads((tmp_path / "trials/digits-1.json").read_text(encoding="utf-8"))
    first, again = (run.stdout.splitlines()[-2:] for run in done)
    assert first == again
    assert len(done[1].stdout.splitlines()) == 2  # nothing is done twice
    for kind, line in zip(("min_clean", "min_robust"), again, strict=True):
        met = trial[kind]["gamma"] is not None
        held = met and trial[kind]["correct"] >= trial[kind]["n"] * trial[kind]["wanted"]
        assert line.startswith(f"{kind}: of 1 trials {met:d} had a model; held in {held:d}")
