"""The front between three ends: its places, its measurements in two threats, what is picked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import equipoise as eq
from equipoise.errors import RunError, UserError
from equipoise.execution import Execution
from equipoise.fronts import survey
from equipoise.fronts.constraint import Constraint
from equipoise.fronts.picking import bounds, choose, level
from equipoise.fronts.record import FrontRecord, Point, Third, lattice, shares
from equipoise.jobs.front import measure_front
from equipoise.jobs.train import train
from equipoise.report import build
from equipoise.settings.recipe import parse
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run
from equipoise.store.verdicts import Verdicts, read
from equipoise.store.weight_names import mix, weighted

GIVEN = {
    "method": "a3gt", "data": "digits", "rounds": 3, "width": 0.25, "limit": 300, "validation": 60,
    "batch_size": 40, "gamma": 0.5, "eps": 0.1, "validation_attack": "pgd-1",
    "robust": {"attack": {"steps": 2}}, "trunk": {"attack": {"steps": 2}},
    "more": {"l2": {"objective": "mix-at", "norm": "l2", "eps": 0.8, "attack": {"steps": 2}}},
}  # fmt: skip
QUICK = {"attacks": "pgd-3", "points": 6, "execution": Execution(precision="float32")}
NAMES = ("max_clean_drop", "min_clean", "min_robust", "gamma")


@pytest.fixture(scope="module")
def trained_three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a branch that is robust in L2, without a front."""
    return train(parse(GIVEN), tmp_path_factory.mktemp("three") / "run").path


@pytest.fixture(scope="module")
def fronted(trained_three: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a measured front, which nobody changes."""
    folder = tmp_path_factory.mktemp("fronted") / "run"
    shutil.copytree(trained_three, folder)
    measure_front(folder, **QUICK)
    return folder


@pytest.fixture
def run(trained_three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained_three, tmp_path / "run"))


# Places and mixes


@pytest.mark.parametrize(("points", "many"), [(3, 3), (5, 3), (6, 6), (9, 6), (10, 10), (15, 15)])
def test_the_places_are_an_even_grid_with_the_ends_first(points, many):
    places = lattice(points)
    assert places == lattice(points)
    assert len(places) == len(set(places)) == many
    assert places[:3] == [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]
    q = round((2 * many) ** 0.5) - 1
    assert {tuple(round(q * share, 9) for share in shares(place)) for place in places} == {
        (q - i - j, i, j) for i in range(q + 1) for j in range(q + 1 - i)
    }


def test_a_mix_is_the_plain_weighted_sum_bit_for_bit(trained_three):
    front = eq.Front(trained_three)
    names = ("learner-clean", "learner-robust", "learner-l2")
    assert front.ends.names == names
    a, b, c = (eq.load(trained_three, name).state_dict() for name in names)
    mixed = front.model((0.25, 0.6)).state_dict()
    share = 1 - (0.25 + 0.6)
    for name, value in mixed.items():
        if value.is_floating_point():
            plain = share * a[name].double() + 0.25 * b[name].double() + 0.6 * c[name].double()
            assert torch.equal(value, plain.to(value.dtype)), name
    for place, name in (((0.0, 0.0), names[0]), ((1.0, 0.0), names[1]), ((0.0, 1.0), names[2])):
        assert model_digest(front.model(place)) == model_digest(eq.load(trained_three, name))
    pair = eq.Front(trained_three, ends=names[:2])  # two ends keep their bits
    assert model_digest(front.model((0.4, 0.0))) == model_digest(pair.model(0.4))
    assert model_digest(pair.model(0.4)) == model_digest(eq.load(trained_three, "gamma-0.4"))
    for wrong in ((0.8, 0.3), (-0.1, 0.5), 0.5):
        with pytest.raises(UserError, match="both at least 0"):
            front.model(wrong)
    with pytest.raises(UserError, match="one gamma"):
        pair.model((0.5, 0.5))


def test_two_states_are_mixed_as_before_and_a_weight_of_0_has_no_part():
    generator = torch.Generator().manual_seed(0)
    a, b = ({"w": torch.randn(99, generator=generator), "n": torch.tensor(k)} for k in (1, 2))
    for gamma in (0.3, 0.5, 1.3, -0.2):
        plain = ((1 - gamma) * a["w"].double() + gamma * b["w"].double()).float()
        assert torch.equal(mix(a, b, gamma)["w"], plain)
        assert int(mix(a, b, gamma)["n"]) == 2
    nowhere = {"w": torch.full((99,), torch.nan), "n": torch.tensor(3)}
    assert torch.equal(weighted([a, b, nowhere], [0.5, 0.5, 0])["w"], mix(a, b, 0.5)["w"])
    zero = {"w": torch.tensor([-0.0]), "n": torch.tensor(0)}
    assert torch.signbit(mix(zero, {**zero}, 0.5)["w"]).all()


# What is stored


def test_three_ends_have_their_own_format_and_two_keep_theirs(fronted):
    record = FrontRecord.read(fronted)
    assert record is not None
    content = record.content()
    assert (content["format"], content["also"]) == (3, ("l2", 0.8))
    assert FrontRecord.of(json.loads(json.dumps(content))) == record
    plain = [replace(point, third=None) for point in record.points[:2]]
    two = replace(record, ends=record.ends[:2], sha256=record.sha256[:2], also=None, points=plain)
    old = json.loads(json.dumps(two.content()))
    assert old["format"] == 2
    assert "also" not in old
    assert "third" not in old["points"][0]
    assert FrontRecord.of(old).content() == two.content()
    with pytest.raises(ValueError, match="format is 4"):
        FrontRecord.of(content | {"format": 4})


def test_counts_that_cannot_be_are_refused():
    third = Third(weight=0.5, threat="l2", robust=5, union=4)
    good = Point(gamma=0.5, n=10, clean=9, robust=6, third=third)
    assert (good.union, good.place) == (4, (0.5, 0.5))
    for wrong in ({"union": 6}, {"union": -1}, {"robust": 10}):
        with pytest.raises(ValueError, match="not possible"):
            replace(good, third=replace(third, **wrong))


# Measuring


def test_every_model_is_measured_in_both_threats(fronted):
    record = FrontRecord.read(fronted)
    assert record is not None
    assert [p.place for p in record.points] == sorted(lattice(6))
    assert (record.norm, record.eps, record.also) == ("linf", 0.1, ("l2", 0.8))
    assert record.threats == ("linf", "l2")
    for p in record.points:
        assert p.third is not None
        first, second = read(fronted / p.file).verdicts, read(fronted / p.third.file).verdicts
        assert (first.norm, first.eps, second.norm, second.eps) == ("linf", 0.1, "l2", 0.8)
        both = first.robust & second.robust
        counts = (first.correct.sum(), first.robust.sum(), second.robust.sum(), both.sum())
        assert counts == (p.clean, p.robust, p.third.robust, p.union)
    text = record.shown().text()
    assert "weights" in text
    assert "learner-l2" in text
    assert "against both" in record.words


def test_what_was_measured_is_taken_up_after_a_stop(run, fronted, monkeypatch):
    real, calls = survey.evaluate_and_save, []

    def stopping(*given, **more):
        calls.append(given)
        if len(calls) == 4:  # the second model has been attacked in neither threat but one
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(survey, "evaluate_and_save", stopping)
    with pytest.raises(KeyboardInterrupt):
        measure_front(run, **QUICK)
    assert FrontRecord.read(run) is None
    calls[:] = range(5)
    after = measure_front(run, **QUICK)
    assert len(calls) - 5 == 2 * 6 - 3
    whole = FrontRecord.read(fronted)
    assert whole is not None
    assert [(p.place, p.clean, p.robust, p.union, p.sha256) for p in after.points] == [
        (p.place, p.clean, p.robust, p.union, p.sha256) for p in whole.points
    ]
    calls.clear()
    assert measure_front(run, **QUICK).points == after.points
    assert not calls


def test_the_third_end_may_be_a_run_of_another_threat(run, fronted, tmp_path):
    alone = {
        k: v for k, v in GIVEN.items() if k not in ("more", "gamma", "trunk", "robust", "eps")
    }
    alone |= {"method": "pgd-at", "norm": "l2", "eps": 0.5, "rounds": 1, "attack": {"steps": 1}}
    other = train(parse(alone), tmp_path / "other").path
    ends = ["learner-clean", "learner-robust", str(other)]
    front = eq.Front(run, ends=ends)
    front.measure(attacks="pgd-1", points=3, n=30, others=[other])
    assert front.record.also == ("l2", 0.5)
    assert front.record.others[0].third.weight == 0
    assert eq.Front(run).ends.names == tuple(ends)  # those that were measured
    first = eq.Front(run, ends=ends[:2]).measure(attacks="pgd-1", points=4, n=30)
    assert all(p.third is None for p in first)


WRONG = {
    "--third last": "trained in the threat of the front",
    "--third nowhere": "unknown weights 'nowhere'",
    "--third learner-robust": "the same weights",
    "--beyond 0.1": "beyond is for two ends",
    "--batchnorm estimate": "is for two ends",
    "--points 2": "points must be at least 3",
    "--norm l2 --eps 0.8": "trained in the threat of the front",
}


@pytest.mark.parametrize("words", WRONG)
def test_what_cannot_be_measured_is_refused(command, run, words):
    ended = command("front", run, "--attacks", "pgd-1", *words.split())
    assert ended.code == 2
    assert WRONG[words] in " ".join(ended.err.split())
    assert not (run / "front.json").exists()


# Picking


def model(place: int, clean, robust, third) -> tuple[Point, Verdicts, np.ndarray]:
    robust, third = robust & clean, third & clean
    verdicts = Verdicts(
        norm="linf", eps=0.1, y=np.zeros(len(clean), int), correct=clean,
        verdict={"a": robust}, attacked={"a": clean}, outcomes={"a": {"ensemble": ""}},
    )  # fmt: skip
    union = int((robust & third).sum())
    measured = Third(weight=place / 9, threat="l2", robust=int(third.sum()), union=union)
    counts = {"n": len(clean), "clean": int(clean.sum()), "robust": int(robust.sum())}
    return Point(gamma=0.0, third=measured, **counts), verdicts, third


def made_up(rows, n=1000):
    """Models with these clean accuracies and robust ones in two threats, of nested images."""
    first = [[np.arange(n) < share * n for share in row] for row in rows]
    return [model(i, *flags) for i, flags in enumerate(first)]


def asked(**given) -> Constraint:
    return Constraint.among_three(dict.fromkeys(NAMES) | given, None, None, ("linf", "l2"))


def picked(front, constraint: Constraint) -> int:
    points, verdicts, third = zip(*front, strict=True)
    choice = choose(constraint, list(zip(points, verdicts, strict=True)), None, third)
    assert choice.point is not None
    return points.index(choice.point)


def test_the_best_in_the_rest_is_picked():
    rows = [(0.95, 0.2, 0.3), (0.9, 0.6, 0.3), (0.88, 0.35, 0.6), (0.85, 0.5, 0.5)]
    front = made_up(rows)
    assert picked(front, asked(min_clean=0.8)) == 3  # the most robust one in both threats
    assert picked(front, asked(min_clean=0.85)) == 2  # that of the others
    assert picked(front, asked(min_robust="linf=0.3")) == 1  # the most accurate one
    assert picked(front, asked(min_robust="l2=0.4")) == 2
    assert picked(front, asked(min_robust=0.4)) == 3
    assert picked(front, asked(min_robust="linf=0.4,l2=0.4")) == 3
    assert picked(front, asked(min_clean=0.8, min_robust="linf=0.3")) == 2  # the best in L2
    assert picked(front, asked(min_clean=0.8, min_robust="l2=0.2")) == 1  # the best in Linf
    with pytest.raises(RunError, match=r"clean accuracy at least 85 % and robust accuracy \(both"):
        picked(front, asked(min_clean=0.85, min_robust=0.4))


def test_all_bounds_of_all_constraints_share_one_level():
    front = made_up([(0.95, 0.2, 0.3), (0.9, 0.6, 0.3), (0.88, 0.35, 0.6)])
    _, verdicts, third = zip(*front, strict=True)
    both, alpha = bounds(asked(min_clean=0.8, min_robust="l2=0.2"), verdicts, None, third)
    columns = [v.correct for v in verdicts] + list(third)
    assert alpha == level(np.stack(columns, 1).astype(float))
    alone, wider = bounds(asked(min_clean=0.8), verdicts, None, third)
    assert alpha < wider
    assert all(b < a for a, b in zip(alone, both, strict=False))
    assert len(both) == 6
    choice = choose(
        asked(min_clean=0.8, min_robust="l2=0.2"),
        [(p, v) for p, v, _ in front], None, third,
    )  # fmt: skip
    assert choice.content()["further_bounds"] == (both[4],)
    assert "% clean, " in str(choice)
    assert "robust (l2)" in str(choice)


def test_the_bounds_hold_together_in_repeated_samples():
    draws, held, n = np.random.default_rng(1), 0, 200
    true = np.array([(0.9, 0.5, 0.4), (0.85, 0.6, 0.45), (0.8, 0.55, 0.6)])
    constraint = asked(min_clean=0.5, min_robust="linf=0.2,l2=0.2")
    for _ in range(100):
        flags = draws.random((n, 1, 1)) < true  # an image is equally hard for all
        front = [model(i, *(flags[:, i, k] for k in range(3))) for i in range(3)]
        _, verdicts, third = zip(*front, strict=True)
        lower, _ = bounds(constraint, verdicts, None, third)
        held += all(b <= t for b, t in zip(lower, true.T.ravel(), strict=True))
    assert held >= 89  # 0.95 of 100, less 2.6 standard deviations


def test_constraints_that_make_no_sense_are_refused():
    for given, message in (
        ({"min_robust": "linf=0.5,linf=0.4"}, "linf=0.5,l2=0.5"),
        ({"min_robust": "l1=0.5"}, "linf=0.5,l2=0.5"),
        ({"min_robust": "linf=50"}, "--min-robust linf"),
        ({"min_clean": 0.5, "max_clean_drop": 0.1, "min_robust": 0.2}, "expected exactly one"),
        ({"gamma": 0.5}, "picked by its accuracies"),
        ({}, "got none"),
    ):
        with pytest.raises(UserError, match=message):
            asked(**given)


def test_a_picked_model_is_a_run_that_names_its_weights(command, fronted, tmp_path):
    out = tmp_path / "picked"
    ended = command("pick", fronted, "--min-clean", "1%", "--min-robust", "l2=0", "--out", out)
    assert ended.code == 0, ended.err
    about = json.loads((out / "picked.json").read_text())
    weights = about["front"]["weights"]
    assert list(weights) == ["learner-clean", "learner-robust", "learner-l2"]
    assert sum(weights.values()) == 1
    assert about["front"]["also"] == ["l2", 0.8]
    assert about["constraint"]["also"][0]["kind"] == "min_third"
    states = [eq.load(fronted, name).state_dict() for name in weights]
    expected = weighted(states, list(weights.values()))
    got = eq.load(out).state_dict()
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    ended = command(
        "evaluate", out, "--attacks", "pgd-1", "-n", "20", "--norm", "l2", "--eps", ".8"
    )
    assert ended.code == 0, ended.err
    assert command("verify", out).code == 0
    assert "third" in Run.open(out).read_json("summary.json")["rule"]
    for suffix in ("html", "md"):
        build([fronted, out], tmp_path / f"page.{suffix}")
    page = (tmp_path / "page.html").read_text()
    assert "Accuracies of mixes of learner-clean, learner-robust and learner-l2" in page
    assert "robust, both" in page


def test_it_is_drawn(fronted):
    assert (fronted / "front.png").read_bytes().startswith(b"\x89PNG")
    svg = (fronted / "front.svg").read_text()
    for text in ("clean", "robust, linf", "robust, l2", "robust, both"):
        assert f">{text}<" in svg
