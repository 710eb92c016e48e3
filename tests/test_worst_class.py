"""Classes of unequal size: balanced accuracy, and models picked by their worst class."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from equipoise.errors import RunError
from equipoise.fronts.constraint import Constraint
from equipoise.fronts.picking import choose
from equipoise.fronts.record import Point
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.measures.statistics import interval
from equipoise.store.verdicts import Verdicts

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
