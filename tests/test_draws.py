"""Draws: keyed by the example alone, uniform, and independent of one another."""

import pytest
import torch
from scipy.stats import chisquare, kstest, norm
from torch import Tensor

from equipoise.draws import GeneratorDraws, KeyedDraws, normal


def examples(count: int = 12, shape: tuple[int, ...] = (1, 8, 8)) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(3))


def test_numbers_do_not_depend_on_the_batch():
    x = examples()
    whole = KeyedDraws.of(x).uniform(x)
    for part in (1, 5, 12):
        pieces = [KeyedDraws.of(piece).uniform(piece) for piece in x.split(part)]
        assert torch.equal(torch.cat(pieces), whole)


def test_numbers_do_not_depend_on_the_order():
    x = examples()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        KeyedDraws.of(x[order]).uniform(x[order]), KeyedDraws.of(x).uniform(x)[order]
    )


def test_selection_by_position_and_by_mask_keeps_the_streams():
    x = examples()
    whole = KeyedDraws.of(x).uniform(x)
    positions = torch.tensor([7, 2, 9])
    assert torch.equal(KeyedDraws.of(x).select(positions).uniform(x[positions]), whole[positions])
    mask = torch.arange(len(x)) % 3 == 1
    assert torch.equal(KeyedDraws.of(x).select(mask).uniform(x[mask]), whole[mask])
    nobody = torch.zeros(len(x), dtype=torch.bool)
    assert KeyedDraws.of(x).select(nobody).uniform(x[nobody]).shape == (0, 1, 8, 8)


def test_selection_of_a_child_is_the_child_of_the_selection():
    x, some = examples(), torch.tensor([4, 1])
    one = KeyedDraws.of(x).child("restart 3").select(some).uniform(x[some])
    other = KeyedDraws.of(x[some]).child("restart 3").uniform(x[some])
    assert torch.equal(one, other)


def test_calls_seeds_and_names_give_other_numbers():
    x = examples()
    draws = KeyedDraws.of(x, seed=0)
    streams = [
        draws.uniform(x),
        draws.uniform(x),
        KeyedDraws.of(x, seed=1).uniform(x),
        KeyedDraws.of(x).child("a").uniform(x),
        KeyedDraws.of(x).child("b").uniform(x),
        KeyedDraws.of(x).child("a").child("b").uniform(x),
    ]
    for i, one in enumerate(streams):
        for other in streams[:i]:
            assert (one == other).float().mean() < 0.01


def test_the_same_seed_and_name_give_the_same_numbers():
    x = examples()
    one, other = (KeyedDraws.of(x.clone(), seed=5).child("a") for _ in range(2))
    for _ in range(3):
        assert torch.equal(one.uniform(x), other.uniform(x))


def test_calls_go_on_where_the_last_one_ended():
    x = examples()
    twice = KeyedDraws.of(x)
    halves = torch.cat([twice.uniform(x[:, :, :4]), twice.uniform(x[:, :, :4])], dim=2)
    assert torch.equal(halves, KeyedDraws.of(x).uniform(x))


def test_duplicates_get_the_same_numbers_and_neighbours_do_not():
    x = examples(3)
    x[1] = x[0]
    x[2] = x[0]
    x[2, 0, 3, 3] += 1 / 255
    unit = KeyedDraws.of(x).uniform(x)
    assert torch.equal(unit[0], unit[1])
    assert (unit[0] == unit[2]).float().mean() < 0.05


def test_memory_layout_does_not_matter():
    x = examples(shape=(3, 8, 8))
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(KeyedDraws.of(last).uniform(last), KeyedDraws.of(x).uniform(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_numbers_lie_in_the_half_open_unit_interval(dtype):
    x = examples(40, (3, 32, 32)).to(dtype)
    unit = KeyedDraws.of(x).uniform(x)
    assert unit.dtype == dtype
    assert unit.shape == x.shape
    assert unit.min() >= 0
    assert unit.max() < 1


def test_numbers_are_uniform():
    x = examples(60, (3, 32, 32))
    unit = KeyedDraws.of(x).uniform(x).flatten().double().numpy()
    assert len(unit) > 100_000
    assert kstest(unit, "uniform").pvalue > 1e-3
    for bits in (4, 8, 12):  # also of the low bits: position within cells of size 2^-bits
        cells = ((unit * 2**bits) % 1 * 64).astype(int)
        assert chisquare([int((cells == i).sum()) for i in range(64)]).pvalue > 1e-3


def test_first_numbers_of_many_examples_are_uniform():
    # Across examples, not along one stream; the examples differ in one byte-sized step.
    x = torch.arange(100_000, dtype=torch.float32).view(-1, 1) / 131072
    unit = KeyedDraws.of(x).uniform(x).flatten().double().numpy()
    assert kstest(unit, "uniform").pvalue > 1e-3


def test_examples_and_consecutive_numbers_are_uncorrelated():
    x = examples(100, (1, 40, 40))
    unit = KeyedDraws.of(x).uniform(x).flatten(1).double()
    correlation = torch.corrcoef(unit) - torch.eye(100)
    assert correlation.abs().max() < 6 / 1600**0.5
    centred = unit - 0.5
    for lag in (1, 2, 8, 40):
        autocorrelation = 12 * (centred[:, lag:] * centred[:, :-lag]).mean()
        assert autocorrelation.abs() < 5 / 160_000**0.5


def test_global_random_state_is_neither_used_nor_changed():
    x = examples()
    state = torch.get_rng_state()
    first = KeyedDraws.of(x).uniform(x)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert torch.equal(KeyedDraws.of(x).uniform(x), first)


def test_generator_draws_follow_their_generator():
    x = examples()
    draws = GeneratorDraws(torch.Generator().manual_seed(4))
    expected = torch.Generator().manual_seed(4)
    state = torch.get_rng_state()
    for source in (draws, draws.child("a"), draws.select(torch.arange(12))):
        assert torch.equal(source.uniform(x), torch.rand(x.shape, generator=expected))
    assert torch.equal(torch.get_rng_state(), state)
    assert draws.uniform(x.double()).dtype == torch.float64


class Constant:
    """Draws that return one number."""

    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_normal_numbers_are_normal():
    x = examples(60, (3, 32, 32))
    for draws in (KeyedDraws.of(x), GeneratorDraws(torch.Generator().manual_seed(0))):
        numbers = normal(draws, x).flatten().double()
        assert kstest(numbers.numpy(), "norm").pvalue > 1e-3
        assert numbers.mean().abs() < 4 / len(numbers) ** 0.5
        assert (numbers.var() - 1).abs() < 4 * (2 / len(numbers)) ** 0.5
        assert ((numbers**4).mean() - 3).abs() < 4 * (96 / len(numbers)) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_normal_numbers_are_finite_and_have_the_type_of_their_example(dtype):
    x = examples(40, (3, 32, 32)).to(dtype)
    for draws in (KeyedDraws.of(x), GeneratorDraws(torch.Generator().manual_seed(1))):
        numbers = normal(draws, x)
        assert numbers.dtype == dtype
        assert numbers.shape == x.shape
        assert bool(torch.isfinite(numbers).all())
        assert numbers.double().std() == pytest.approx(1, abs=0.02)
    for value in (0.0, 1 - 2.0**-24):  # the ends of what may be drawn
        largest = normal(Constant(value), x[:1]).double().abs()
        assert bool((largest < 5.45).all())
        assert bool((largest > 5).all())


def test_normal_numbers_belong_to_the_uniform_ones():
    x = examples(5).double()
    unit = KeyedDraws.of(x).uniform(x)
    expected = torch.from_numpy(norm.ppf(unit.numpy()))
    torch.testing.assert_close(normal(KeyedDraws.of(x), x), expected, rtol=1e-12, atol=1e-12)


def test_normal_numbers_of_an_example_do_not_depend_on_the_others():
    x = examples()
    whole = normal(KeyedDraws.of(x), x)
    alone = torch.cat([normal(KeyedDraws.of(one), one) for one in x.split(1)])
    assert torch.equal(whole, alone)
    index = torch.tensor([8, 1])
    assert torch.equal(normal(KeyedDraws.of(x).select(index), x[index]), whole[index])
