"""Classes of unequal size: balanced accuracy, and models picked by their worst class."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from equipoise.data import load
from equipoise.errors import RunError
from equipoise.fronts.constraint import Constraint
from equipoise.fronts.picking import choose
from equipoise.fronts.record import Point
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.measures.by_class import by_class, unequal
from equipoise.measures.statistics import interval
from equipoise.store.verdicts import Verdicts, read
from equipoise.terminal.progress import round_line

SIZES = (300, 150, 50)
Y = np.repeat(np.arange(3), SIZES)
NAMES = ("max_clean_drop", "min_clean", "min_worst_class", "min_robust", "gamma")


def measured(gamma: float, correct: np.ndarray, robust: np.ndarray, y=Y):
    verdicts = Verdicts(
        norm="linf", eps=0.1, y=y, correct=correct, verdict={"a": robust & correct},
        attacked={"a": correct}, outcomes={"a": {"ensemble": ""}}, classes=("x", "y", "z"),
    )  # fmt: skip
    counts = int(correct.sum()), int((robust & correct).sum())
    return Point(gamma=gamma, n=len(y), clean=counts[0], robust=counts[1]), verdicts


def right(*shares: float) -> np.ndarray:
    """Return flags of which the first images of each class are right."""
    parts = zip(SIZES, shares, strict=True)
    return np.concatenate([np.arange(n) < round(share * n) for n, share in parts])


def worst(least: float) -> Constraint:
    return Constraint.of(dict.fromkeys(NAMES) | {"min_worst_class": least})


MODELS = [
    measured(0.0, right(0.99, 0.98, 0.96), right(0.3, 0.3, 0.3)),
    measured(0.5, right(0.97, 0.96, 0.94), right(0.5, 0.5, 0.5)),
    measured(1.0, right(0.99, 0.98, 0.50), right(0.7, 0.7, 0.7)),
]


def test_the_most_robust_model_of_which_every_class_meets_it_is_picked():
    assert choose(worst(0.75), MODELS).gamma == 0.5
    assert choose(worst(0.2), MODELS).gamma == 1.0
    clean = Constraint.of(dict.fromkeys(NAMES) | {"min_clean": 0.85})
    assert choose(clean, MODELS).gamma == 1.0  # the mean over all images hides the small class


def test_the_bound_is_that_of_the_worst_class_among_all_classes_and_models():
    choice = choose(worst(0.75), MODELS)
    assert choice.bound == interval(47, 50, 1 - 2 * 0.05 / 9)[0]
    assert "clean in every class" in str(choice)
    assert "clean accuracy of every class at least 75 %" in str(choice.constraint)


def test_together_the_bounds_fail_in_at_most_5_percent_of_samples():
    random, shares, failures = np.random.default_rng(0), np.repeat((0.95, 0.9, 0.85), SIZES), 0
    nothing = np.zeros(len(Y), bool)
    for _ in range(400):
        front = [measured(g / 4, random.random(len(Y)) < shares, nothing) for g in range(5)]
        failures += choose(worst(0.0), front, nearest=True).bound > 0.85
    assert failures <= 20


def test_a_class_without_held_out_images_meets_no_bound():
    kept = Y < 2
    front = [measured(0.0, right(1, 1, 1)[kept], right(1, 1, 1)[kept], Y[kept])]
    with pytest.raises(RunError, match="cannot be met"):
        choose(worst(0.1), front)


def test_balanced_accuracy_counts_each_class_the_same():
    _, verdicts = MODELS[2]
    clean = verdicts.records()[0]
    assert clean.balanced == pytest.approx((0.99 + 0.98 + 0.50) / 3)
    assert clean.accuracy == pytest.approx((297 + 147 + 25) / 500)
    assert clean.content()["balanced"] == clean.balanced


def test_it_is_recorded_and_records_of_earlier_versions_lack_it(trained, tmp_path, command):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    (record, *_) = evaluate_run(folder, attacks="fgsm", n=40, checks=False)
    per_class = [each["accuracy"] for each in record["per_class"].values()]
    assert record["balanced"] == pytest.approx(np.mean(per_class))
    path = folder / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]

    def written() -> None:
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    for line in lines:
        del line["balanced"]
    written()
    assert verify_run(folder)
    lines[0]["balanced"] = 0.123
    written()
    with pytest.raises(RunError, match=r"balanced is 0\.123"):
        verify_run(folder)


def test_the_command_line_picks_by_it(trained, tmp_path, command):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    assert command("front", folder, "--attacks", "pgd-1", "--points", "5").code == 0
    done = command("pick", folder, "--min-worst-class", "0%", "--out", tmp_path / "picked")
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "picked/picked.json").read_text())["constraint"]["kind"] == (
        "min_worst_class"
    )
    done = command("pick", folder, "--min-worst-class", "99%", "--out", tmp_path / "other")
    assert done.code == 1
    assert "clean accuracy of every class at least 99 % cannot be met" in done.line


@pytest.fixture(scope="module")
def lopsided(command, tmp_path_factory):
    """Return a run on classes of unequal size, and what its training said."""
    folder, data = tmp_path_factory.mktemp("unequal"), load("digits")
    arrays = {}
    parts = {"train": (data.train, (90, 50, 25)), "test": (data.test, (9, 5, 3))}
    for name, (images, sizes) in parts.items():
        rows = [np.flatnonzero(images.y == k)[:n] for k, n in enumerate(sizes)]
        kept = np.concatenate(rows)
        arrays |= {f"x_{name}": images.x.numpy()[kept], f"y_{name}": images.y.numpy()[kept]}
    np.savez(folder / "three.npz", eps=0.05, classes=["nought", "one", "two"], **arrays)
    small = ("rounds=2", "width=0.25", "batch_size=33", "attack.steps=1", "validation=33")
    done = command(
        "train", "a3gt", "--data", folder / "three.npz", *small, "--out", folder / "run"
    )
    assert done.code == 0, done.err
    return folder / "run", done.err


def test_where_classes_are_unequal_rounds_choices_and_fronts_say_both(lopsided, command):
    run, said = lopsided
    rounds = [line for line in said.splitlines() if line.startswith("round ")]
    last = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["global"]
    assert "worst class" in rounds[-1]
    assert f"balanced {last['clean_balanced']:.2%} / {last['robust_balanced']:.2%}" in rounds[-1]
    front = json.loads((run / "front.json").read_text())
    for point in front["points"]:
        clean, *_, under_attack = read(run / point["file"]).verdicts.records()
        for name, record in (("clean", clean), ("robust", under_attack)):
            shares = [*record.per_class.values()]
            assert point["by_class"][f"{name}_balanced"] == pytest.approx(np.mean(shares))
            assert point["by_class"][f"{name}_worst_class"] == pytest.approx(min(shares))
    choice = json.loads((run / "summary.json").read_text())["choice"]["points"]
    places = {point["gamma"]: point["by_class"] for point in front["points"]}
    assert all(places[point["gamma"]].items() <= point.items() for point in choice)
    picked = command("pick", run, "--min-clean", "0", "--out", run.parent / "picked")
    assert picked.code == 0, picked.err
    assert "balanced " in picked.err


def test_where_classes_are_unequal_scans_and_pages_say_both(lopsided, command):
    run, _ = lopsided
    scanned = command("scan", run, "-n", "17")
    assert scanned.code == 0, scanned.err
    assert "balanced" in scanned.out
    assert "worst class" in scanned.out
    assert command("evaluate", run, "--attacks", "pgd-1", "--no-checks").code == 0
    page = run.parent / "page.html"
    assert command("report", run, "--out", page).code == 0
    assert "; balanced " in page.read_text()


def test_where_classes_are_of_equal_size_nothing_is_added(trained):
    assert not by_class(np.arange(30) % 3, np.ones(30, bool), np.ones(30, bool))
    assert not unequal([3, 2, 0])
    assert unequal([300, 199])
    line = json.loads((Path(trained) / "log.jsonl").read_text().splitlines()[-1])
    assert "balanced" in round_line(line, classes=True)
    assert "balanced" not in round_line(line)
