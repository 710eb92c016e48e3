"""The numbers of a merge's regime, against sums over every step and the authors' schedule."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from blobs import SCHEDULED, STEPS, finished, small
from equipoise.measures.regime import Course, Regime, effective, paths
from equipoise.paper import accuracy
from equipoise.paper.results import TrainingRow
from equipoise.report.content import Table
from equipoise.settings import presets
from equipoise.settings.explanation import explain
from equipoise.settings.recipe import parse
from equipoise.threat import Linf
from equipoise.training import Fixed, Method


def generalist() -> Method:
    """Return Generalist with its published settings."""
    given = presets.published("generalist", "cifar10").under({"method": "generalist"})
    return parse(given).settings.build(Linf(8 / 255))


def test_the_authors_schedule_has_the_numbers_that_were_counted_by_hand():
    # 120 epochs of 391 steps, one learning rate an epoch, hand-overs in epochs 75, 80, ..., 120.
    method, rounds, steps = generalist(), 120, 391
    schedule = method.learners["clean"].schedule

    def of_the_epoch(progress: float) -> float:
        return schedule((math.floor(progress * rounds + 1e-9) + 1) / rounds)

    courses = [
        Course(method.weights(t, rounds, 75), [], "step" if t >= 75 and t % 5 == 0 else None)
        for t in range(1, rounds + 1)
    ]
    path, cycles, free = paths(courses, rounds, steps, of_the_epoch, 0.01)
    assert (free, len(cycles)) == (12_512, 9)
    assert [path, cycles[0], cycles[-1]] == pytest.approx([6.88, 2.44, 0.244], rel=2e-3)


def test_ours_has_the_same_but_for_the_learning_rate_of_every_step():
    found = generalist().regime(120, 391, 75)
    assert found.path["clean"] == pytest.approx(7.02, abs=0.01)
    assert found.spacing == pytest.approx(1.955)
    assert found.gamma["robust"] == pytest.approx(0.431, abs=5e-4)
    assert found.weight_decay == {"clean": 5e-4, "robust": 3.5e-3}


@pytest.mark.parametrize(
    ("steps", "rounds", "start", "path", "first", "last", "spacing", "gamma"),
    [(148, 9, 5, 0.545, 1.40, 0.155, 0.74, 0.572), (70, 7, 4, 0.090, 0.524, 0.090, 0.35, 0.552)],
)
def test_short_trainings_are_in_another_regime(
    steps, rounds, start, path, first, last, spacing, gamma
):
    settings = parse(SCHEDULED | {"every": 1, "horizon": 200 / steps}).settings
    found = settings.build(Linf(0.1)).regime(rounds, steps, start)
    cycles = found.cycles["clean"]
    numbers = [found.path["robust"], cycles[0], cycles[-1], found.spacing, found.gamma["robust"]]
    assert numbers == pytest.approx([path, first, last, spacing, gamma], abs=6e-3)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_the_effective_gamma_is_the_sum_over_every_step(average, seed):
    rng = np.random.default_rng(seed)
    courses, weights, decays = [], [], []
    for _ in range(6):
        gamma, updates = float(rng.random()), []
        for _ in range(rng.integers(1, 4)):
            decay = float(rng.random())
            kept = float(rng.choice([decay, 0.0, 1.0, rng.random()]))
            updates.append((decay, kept, int(rng.integers(1, 6))))
        courses.append(Course({"clean": 1 - gamma, "robust": gamma}, updates))
        for decay, kept, count in updates:
            weights += [gamma] * count
            decays += [(decay, kept)] * count
    # The weight with which theta_i of step u is in the final model, summed over all pairs.
    n, masses = len(weights), {"clean": 0.0, "robust": 0.0}
    for s in range(n):
        later = math.prod(kept for _, kept in decays[s + 1 :])
        for u in range(s + 1) if average else [s]:
            inside = 1.0
            if average:
                inside = (1 - decays[u][0]) * math.prod(d for d, _ in decays[u + 1 : s + 1])
            for name, gamma in (("robust", weights[s]), ("clean", 1 - weights[s])):
                masses[name] += later * (1 - decays[s][1]) * gamma * inside
    whole = sum(masses.values())
    found = effective(courses, average)
    if whole:
        assert found["robust"] == pytest.approx(masses["robust"] / whole, rel=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        small(gamma=(1.0, 0.2)),
        small(source="average", granularity="step", every=1, gamma=(0.9, 0.2)),
        small("a3gt-paper", start=Fixed(round=2), horizon=3.0, gamma=(0.9, 0.2)),
        small(average_every="round", horizon=2.0, gamma=(0.9, 0.2)),
    ],
)
def test_the_numbers_before_and_after_a_training_are_the_same(settings):
    job = finished(settings, 5)
    before = job.method.regime(5, STEPS, 2)
    after = job.method.regime(5, STEPS, job.start.round, job.history)
    assert before == after
    lr = job.learners["clean"].lr
    free = [
        lr((t - 1 + s / STEPS) / 5)
        for t in range(1, 6)
        for s in range(STEPS)
        if job.method.weights(t, 5, 2)["robust"] < 1 and not job.method.due(t, "step", 2)
    ]
    assert after.path["clean"] == pytest.approx(sum(free), abs=1e-12)
    assert after.free_steps == len(free)


def test_it_is_stored_and_read_again_and_told_beforehand():
    regime = generalist().regime(120, 391, 75)
    assert Regime.of(json.loads(json.dumps(regime.content()))).lines() == regime.lines()
    text = "\n".join(explain(parse(SCHEDULED | {"data": "mnist"})))
    assert "what the schedules make of the merge, with t' = 12, the deadline:" in text
    assert "c is 2 averaging horizons" in text
    assert "which may never be found" in "\n".join(explain(parse({"method": "a3gt-paper"})))
    assert "effective gamma" not in "\n".join(explain(parse({"method": "mix-at"})))
    front = parse({"method": "a3gt", "gamma": 0.5}).settings.build(Linf(0.1)).regime(10, 8, 6)
    assert front.gamma == pytest.approx({"clean": 0.5, "robust": 0.5})


def test_the_page_of_an_experiment_has_a_table_of_it_where_learners_were_merged():
    regime = generalist().regime(120, 391, 75)
    row = {"panel": "p", "entry": "generalist", "method": "generalist", "seed": 0}
    stored = TrainingRow(**row, regime=json.loads(json.dumps(regime.content()))).model_dump()
    entries = {
        "generalist": pd.DataFrame([stored, stored | {"seed": 1}], dtype=object),
        "pgd-at": pd.DataFrame([stored | {"regime": None}], dtype=object),
    }
    (table,) = accuracy._regimes(entries, "table2", "CIFAR-10")
    assert isinstance(table, Table)
    assert [cell.text for cell in table.rows[0]][:6] == [
        "generalist", "7.02", "2.62", "0.262", "1.96", "0.431",
    ]  # fmt: skip
    assert len(table.rows) == 1
    assert accuracy._regimes({"pgd-at": entries["pgd-at"]}, "table2", "CIFAR-10") == []
