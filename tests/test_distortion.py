"""Distortions against sums that are written out, and against what must hold exactly."""

import doctest
import math

import numpy as np
import pytest
import torch

from equipoise.data import load
from equipoise.errors import UserError
from equipoise.measures import distortion
from equipoise.measures.distortion import MEASURES, ald2, mse, psnr, ssim


def pair(shape, eps=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator)
    noise = torch.rand(shape, generator=generator)
    return x, (x + eps * (2 * noise - 1)).clamp(0, 1)


def naive_ssim(a, b, size):
    """One window after the other, with weighted deviations from the weighted means."""
    half = size // 2
    weights = np.array(
        [
            [math.exp(-(i * i + j * j) / (2 * 1.5**2)) for j in range(-half, half + 1)]
            for i in range(-half, half + 1)
        ]
    )
    weights /= weights.sum()
    values = []
    for row in range(a.shape[0] - size + 1):
        for column in range(a.shape[1] - size + 1):
            u = a[row : row + size, column : column + size]
            v = b[row : row + size, column : column + size]
            mu, nu = (weights * u).sum(), (weights * v).sum()
            var_u, var_v = (weights * (u - mu) ** 2).sum(), (weights * (v - nu) ** 2).sum()
            cov = (weights * (u - mu) * (v - nu)).sum()
            top = (2 * mu * nu + 0.01**2) * (2 * cov + 0.03**2)
            values.append(top / ((mu**2 + nu**2 + 0.01**2) * (var_u + var_v + 0.03**2)))
    return float(np.mean(values))


@pytest.mark.parametrize(
    ("shape", "size"),
    [((2, 1, 14, 17), 11), ((2, 3, 12, 12), 11), ((2, 1, 8, 8), 7), ((1, 2, 3, 9), 3)],
)
def test_ssim_is_the_formula_window_by_window(shape, size):
    x, x_adv = pair(shape)
    a, b = x.double().numpy(), x_adv.double().numpy()
    for i, found in enumerate(ssim(x, x_adv).tolist()):
        channels = [naive_ssim(a[i, c], b[i, c], size) for c in range(shape[1])]
        assert found == pytest.approx(np.mean(channels), abs=1e-12)


def test_ssim_of_equal_images_is_exactly_one_and_it_is_symmetric():
    x, x_adv = pair((4, 3, 16, 16))
    assert (ssim(x, x) == 1).all()
    assert torch.equal(ssim(x, x_adv), ssim(x_adv, x))
    flat = torch.full((1, 1, 12, 12), 0.5)
    assert ssim(flat, flat).tolist() == [1.0]


def test_ssim_of_flat_images_is_the_formula_of_their_light():
    low, high = torch.zeros(1, 1, 12, 12), torch.ones(1, 1, 12, 12)
    assert ssim(low, high).item() == pytest.approx(1e-4 / (1 + 1e-4), rel=1e-9)


def test_ssim_is_bounded_and_falls_with_noise():
    x, _ = pair((8, 1, 28, 28))
    values = [ssim(x, pair(x.shape, eps)[1]).mean().item() for eps in (0.01, 0.05, 0.2, 0.5)]
    assert values == sorted(values, reverse=True)
    negative = ssim(x, 1 - x)
    assert (negative < 0).all()
    assert (negative >= -1).all()


@pytest.mark.slow
def test_the_others_are_their_formulas_on_real_images():
    x = load("digits").test.pixels(slice(20))
    x_adv = (x + 0.1 * torch.sign(0.5 - x)).clamp(0, 1)
    a, b = x.double().numpy(), x_adv.double().numpy()
    for i in range(20):
        change = sum((v - u) ** 2 for u, v in zip(a[i].ravel(), b[i].ravel(), strict=True))
        length = sum(u**2 for u in a[i].ravel())
        assert mse(x, x_adv)[i].item() == pytest.approx(change / 64)
        assert ald2(x, x_adv)[i].item() == pytest.approx(math.sqrt(change / length))
        assert psnr(x, x_adv)[i].item() == pytest.approx(10 * math.log10(64 / change))


def test_unchanged_images_and_black_ones():
    x, x_adv = pair((3, 1, 8, 8))
    assert mse(x, x).tolist() == [0, 0, 0]
    assert ald2(x, x).tolist() == [0, 0, 0]
    assert psnr(x, x).tolist() == [math.inf] * 3
    black = torch.zeros_like(x)
    assert ald2(black, black).tolist() == [0, 0, 0]
    assert ald2(black, x_adv).tolist() == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURES)
def test_each_is_in_float64_an_example_alone_and_refuses_other_shapes(name):
    x, x_adv = pair((5, 2, 12, 12))
    found = MEASURES[name](x, x_adv)
    assert found.dtype == torch.float64
    assert found.shape == (5,)
    alone = torch.cat([MEASURES[name](x[i : i + 1], x_adv[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(found, alone, rtol=1e-12, atol=1e-12)
    assert MEASURES[name](x[:0], x_adv[:0]).shape == (0,)
    with pytest.raises(UserError, match=r"one shape \(B, C, H, W\)"):
        MEASURES[name](x, x_adv[:4])
    with pytest.raises(UserError, match=r"one shape \(B, C, H, W\)"):
        MEASURES[name](x[0], x_adv[0])


def test_a_change_too_small_for_float32_is_seen():
    x = torch.full((1, 1, 8, 8), 0.5)
    x_adv = torch.nextafter(x, torch.ones(()))
    assert mse(x, x_adv).item() == pytest.approx(2.0**-48, rel=1e-12)


def test_doctests():
    assert doctest.testmod(distortion, extraglobs={"torch": torch}) == (0, 2)
