"""Differences over seeds and images: against a slow loop, known cases, and simulated seeds."""

import math

import numpy as np
import pytest

from equipoise.errors import UserError
from equipoise.measures.seeds import RESAMPLES, draws, holm, over_seeds, pooled


def resampled(flags):
    """The mean of each seed's flags, of shape (seeds, n), on the images and on resampled ones."""
    n = flags.shape[1]
    return draws(n) @ flags.astype(np.float32).T / np.float64(n)


def noisy(rng, seeds, n=300, mean=0.03, training=0.02, differing=0.1):
    """Differences of verdicts: one image in ten differs, and each seed has its own mean."""
    own = mean + training * rng.standard_normal((seeds, 1))
    first, differs = rng.random((2, seeds, n))
    return np.where(differs < differing, np.where(first < 0.5 + own / 0.2, 1, -1), 0)


def test_the_first_row_is_the_images_themselves_and_the_same_images_are_drawn_again():
    counts = draws(50)
    assert counts.shape == (1 + RESAMPLES, 50)
    assert (counts[0] == 1).all()
    assert (counts.sum(1) == 50).all()
    assert (counts == draws.__wrapped__(50)).all()
    assert not counts.flags.writeable


def test_the_error_is_that_of_a_slow_loop_over_seeds_and_images():
    rng = np.random.default_rng(3)
    for seeds in (2, 3, 5):
        flags = noisy(rng, seeds)
        n, k = flags.shape[1], seeds
        means = []
        for _ in range(4000):
            images = rng.integers(n, size=n)
            own = [flags[s][images].mean() for s in range(k)]
            chosen = [own[s] for s in rng.integers(k, size=k)]
            centre = sum(own) / k
            means.append(centre + math.sqrt(k / (k - 1)) * (sum(chosen) / k - centre))
        found = over_seeds(resampled(flags), n)
        assert found.mean == pytest.approx(flags.mean())
        assert found.error == pytest.approx(np.std(means), rel=0.06)
        assert found.images == pytest.approx(np.var(flags.mean(0)) / n, rel=0.15)
        assert found.freedom == k - 1


def test_equal_verdicts_are_level_and_no_difference():
    found = over_seeds(resampled(np.zeros((3, 100))), 100)
    assert (found.mean, found.error, found.p) == (0, 0, 1)
    assert found.interval() == (0, 0)
    assert found.within(0.001)


def test_where_every_image_differs_the_difference_is_certain():
    found = over_seeds(resampled(np.ones((3, 100))), 100)
    assert (found.mean, found.p, found.interval()) == (1, 0, (1, 1))
    assert not found.within(0.02)


def test_one_seed_says_nothing_of_other_seeds():
    found = over_seeds(resampled(np.ones((1, 100))), 100)
    assert (found.mean, found.p, found.interval()) == (1, 1, (-math.inf, math.inf))
    assert not found.within(0.5)


def test_seeds_alone_have_the_interval_of_students_t():
    values = np.tile([0.01, 0.02, 0.06], (1 + RESAMPLES, 1))
    found = over_seeds(values, 1000)
    half = 4.302653 * math.sqrt(np.var(values[0], ddof=1) / 3)
    assert found.interval() == pytest.approx((0.03 - half, 0.03 + half), rel=0.05)
    assert found.images == pytest.approx(0, abs=1e-12)


def test_images_alone_have_the_interval_of_many_images():
    flags = np.tile(np.where(np.arange(1000) % 10 == 0, 1, 0), (3, 1))
    found = over_seeds(resampled(flags), 1000)
    half = 1.96 * math.sqrt(0.1 * 0.9 / 1000)
    assert found.interval() == pytest.approx((0.1 - half, 0.1 + half), abs=0.001)


def test_the_noise_of_trainings_is_pooled_but_never_less_than_its_own():
    values = [np.tile([-s, 0, s], (1 + RESAMPLES, 1)) for s in (0.01, 0.02, 0.06)]
    own = [over_seeds(some, 1000) for some in values]
    variance = sum(each.training for each in own) / 3
    found = pooled(own)
    assert [each.training for each in found] == pytest.approx([variance] * 2 + [own[2].training])
    assert [each.freedom for each in found] == [4] * 3
    (alone,) = pooled(own[:1])
    assert (alone.training, alone.freedom) == pytest.approx((own[0].training, 2))
    assert pooled([]) == []


def test_the_degrees_of_freedom_of_a_mean_of_variances_with_one_method_in_common():
    rng = np.random.default_rng(2)
    one, others = rng.standard_normal((20000, 1, 3)), rng.standard_normal((20000, 6, 3))
    means = (one - others).var(2, ddof=1).mean(1)
    assert 2 * means.mean() ** 2 / means.var() == pytest.approx(4 * 6 / 9 * 2, rel=0.05)


def test_values_without_a_resample_or_a_seed_are_refused():
    for shape in ((1, 3), (5, 0), (5,)):
        with pytest.raises(UserError, match="expected values of shape"):
            over_seeds(np.zeros(shape), 10)


def test_holm_is_the_step_down_rule():
    rng = np.random.default_rng(0)
    for size in (1, 2, 7):
        for _ in range(50):
            p = rng.random(size) ** 3
            kept, level = set(), 0.05
            for step, i in enumerate(np.argsort(p)):  # stop at the first that is not significant
                if p[i] > level / (size - step):
                    break
                kept.add(i)
            assert {i for i, adjusted in enumerate(holm(p)) if adjusted <= level} == kept
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "training"), [(3, 0.015), (3, 0.0), (5, 0.03)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds, training):
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(300):
        flags = noisy(rng, seeds, 1000, mean=0.02, training=training * math.sqrt(2))
        low, high = over_seeds(resampled(flags), 1000).interval()
        missed += not low <= 0.02 <= high
    assert missed <= 300 * 0.075
