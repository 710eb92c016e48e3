"""Threats: the projection is exact, the judge is strict, and what cannot be meant is refused."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from equipoise.errors import UserError
from equipoise.threat import L1, L2, Linf, Threat
from problems import NORMS, support

RADII = {"linf": (0.03, 0.3), "l2": (0.4, 1.5), "l1": (0.7, 6.0)}
THREATS = [Threat(norm, eps) for norm in NORMS for eps in RADII[norm]]
SHAPE = (40, 1, 5, 6)
UNIT = {
    "linf": "linf",
    "l2": "l2",
    "l1": "linf",
}  # the norm in which a step of ascent has length 1


def inputs(
    seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return inputs of which a quarter of the pixels lie on the border of the box."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    return x.clamp(0, 1).to(dtype)


def noise(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def by_bisection(threat: Threat, x: Tensor, point: Tensor) -> Tensor:
    """Return the projection from its KKT conditions, in float64.

    L2: delta = clip(v / (1 + m), box); L1: delta = clip(sign(v) max(|v| - m, 0), box), with the
    multiplier m >= 0 at which the ball is met, or 0 where the box alone is enough.
    """
    v = (point - x).flatten(1).double()
    low, high = -x.flatten(1).double(), 1 - x.flatten(1).double()
    if threat.norm == "linf":
        return x + v.clamp(-threat.eps, threat.eps).clamp(low, high).view_as(x)
    order = 2 if threat.norm == "l2" else 1
    small, large = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
    for step in range(300):
        m = small if step == 0 else (small + large) / 2
        moved = v / (1 + m) if order == 2 else v.sign() * (v.abs() - m).clamp_min(0)
        moved = moved.clamp(low, high)
        fits = moved.norm(p=order, dim=1, keepdim=True) <= threat.eps
        small, large = torch.where(fits, small, m), torch.where(fits, m, large)
    moved = v / (1 + large) if order == 2 else v.sign() * (v.abs() - large).clamp_min(0)
    return x + moved.clamp(low, high).view_as(x)


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("size", [0.02, 0.3, 3.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_matches_bisection_over_the_multiplier(threat, size, dtype):
    x = inputs(0, dtype=dtype)
    point = x + size * noise(0, dtype=dtype)
    expected = by_bisection(threat, x, point)
    tolerance = 1e-6 if dtype == torch.float64 else 5e-6
    found = threat.project(x, point)
    assert found.dtype == dtype
    assert found.shape == x.shape
    assert (found.double() - expected).abs().max() <= tolerance


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("size", [0.3, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_of_a_single_example_is_exact_too(threat, size, dtype):
    # No other example of a batch keeps the search going.
    x = inputs(1, dtype=dtype)
    point = x + size * noise(1, dtype=dtype)
    expected = by_bisection(threat, x, point)
    for i in range(len(x)):
        found = threat.project(x[i : i + 1], point[i : i + 1])[0]
        assert (found.double() - expected[i]).abs().max() <= 5e-6, f"example {i}"


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_projection_does_not_depend_on_the_rest_of_the_batch(threat, size):
    x, point = inputs(2), inputs(2) + size * noise(2)
    whole = threat.project(x, point)
    parts = torch.cat([threat.project(x[i : i + 7], point[i : i + 7]) for i in range(0, 40, 7)])
    assert (whole - parts).abs().max() <= 1e-7


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_projection_satisfies_the_variational_inequality(threat, size):
    # p is the projection of a iff <a - p, q - p> <= 0 for all q allowed; the largest
    # <a - p, q - x> is known in closed form.
    x, point = inputs(3), inputs(3) + size * noise(3)
    p = threat.project(x, point)
    away, moved = (point - p).flatten(1), (p - x).flatten(1)
    gap = support(away, x.flatten(1), threat.norm, threat.eps) - (away * moved).sum(1)
    assert (gap <= 1e-6 * (1 + away.norm(dim=1))).all()


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_projection_matches_a_general_purpose_optimiser(norm):
    threat = Threat(norm, 0.6)
    x, point = inputs(4, (12, 5)), inputs(4, (12, 5)) + 0.7 * noise(4, (12, 5))
    found = threat.project(x, point).numpy()
    for i in range(len(x)):
        clean, goal = x[i].numpy(), point[i].numpy()
        # delta = u - v with u, v >= 0, so that the L1 norm is the smooth sum of u and v.
        signs = np.concatenate([np.eye(5), -np.eye(5)])

        def budget(parts):
            used = parts.sum() if norm == "l1" else np.sum((parts @ signs) ** 2)  # noqa: B023
            return threat.eps ** (1 if norm == "l1" else 2) - used

        result = minimize(
            lambda parts: np.sum((clean + parts @ signs - goal) ** 2),  # noqa: B023
            np.full(10, 0.01),
            jac=lambda parts: 2 * signs @ (clean + parts @ signs - goal),  # noqa: B023
            bounds=[(0, room) for room in (*(1 - clean), *clean)],
            constraints={"type": "ineq", "fun": budget},
            method="SLSQP",
            options={"ftol": 1e-15, "maxiter": 500},
        )
        best = np.sum((found[i] - goal) ** 2)
        assert best <= result.fun + 1e-6
        assert np.abs(clean + result.x @ signs - found[i]).max() < 1e-4


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_is_feasible_and_idempotent(threat, dtype):
    for seed, size in itertools.product(range(5), (0.1, 1.0, 30.0)):
        x = inputs(seed, dtype=dtype)
        once = threat.project(x, x + size * noise(seed, dtype=dtype))
        assert threat.contains(x, once).all()
        assert (threat.project(x, once) - once).abs().max() <= 1e-6


@pytest.mark.parametrize("threat", THREATS, ids=repr)
def test_points_inside_stay(threat):
    x = inputs(5)
    towards = threat.project(x, x + noise(5)) - x
    inside = x + 0.9 * towards
    assert (threat.project(x, inside) - inside).abs().max() <= 1e-15
    assert torch.equal(threat.project(x, x), x)


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_ball_and_box_are_both_active_and_the_budget_is_used(norm):
    threat = Threat(norm, 1.0)
    x, point = inputs(6), inputs(6) + 3 * noise(6)
    p = threat.project(x, point)
    assert ((p == 0) | (p == 1)).flatten(1).any(1).all()
    assert (threat.distance(x, p) - 1).abs().max() < 1e-6
    ball_then_box = (x + (point - x) / Threat.lengths(point - x, norm)).clamp(0, 1)
    nearer = (p - point).flatten(1).norm(dim=1)
    assert (nearer < (ball_then_box - point).flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("threat", [L2(0.5), L2(3.0), L1(12.0)], ids=repr)
@pytest.mark.parametrize("value", [0.0, 0.3, 0.7, 0.9])
@pytest.mark.parametrize("side", [32, 224])
def test_projection_of_a_uniform_move_on_a_uniform_image_is_allowed(threat, value, side):
    # The rounding of x + delta is the same in every pixel here: it adds up.
    x = torch.full((1, 3, side, side), value)
    assert threat.contains(x, threat.project(x, x + 1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_zero_radius_allows_x_alone(norm):
    threat = Threat(norm, 0.0)
    x = inputs(7, dtype=torch.float32)
    assert torch.equal(threat.project(x, x + noise(7, dtype=torch.float32)), x)
    assert torch.equal(threat.start(x, torch.rand_like(x)), x)
    assert threat.contains(x, x).all()
    assert not threat.contains(x, (x + 1e-6).clamp(0, 1)).any()


@pytest.mark.parametrize("threat", THREATS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_starts_are_allowed_and_random(threat, dtype):
    x = inputs(8, dtype=dtype)
    unit = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=dtype)
    starts = threat.start(x, unit)
    assert threat.contains(x, starts).all()
    assert (threat.distance(x, starts) > 0.3 * threat.eps).all()
    assert not torch.equal(starts, threat.start(x, 1 - unit))


def test_linf_start_is_uniform_in_the_ball():
    x = torch.full((1, 1, 200, 200), 0.5, dtype=torch.float64)
    unit = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = (Linf(0.1).start(x, unit) - x).flatten() / 0.1
    assert torch.allclose(moved, (2 * unit - 1).flatten(), atol=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ascent_is_a_unit_step_along_the_gradient(norm, scale, dtype):
    grad = noise(9, dtype=dtype) * scale
    step = Threat(norm, 0.5).ascent(grad)
    length = Threat.lengths(step, UNIT[norm]).flatten()
    assert torch.allclose(length, torch.ones_like(length), atol=1e-5)
    assert ((step * grad).flatten(1).sum(1) > 0).all()
    if norm != "linf":
        along = torch.cosine_similarity(step.flatten(1), grad.flatten(1) / scale)
        assert torch.allclose(along, torch.ones_like(along), atol=1e-6)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("scale", [1e-37, 1e-25, 1e-20, 1e20, 1e36])
def test_ascent_has_unit_length_for_extreme_gradients(norm, scale):
    # Gradients behind a saturated softmax are this small; their squares leave float32.
    grad = (noise(9) * scale).float()
    length = Threat.lengths(Threat(norm, 0.5).ascent(grad).double(), UNIT[norm]).flatten()
    assert torch.allclose(length, torch.ones_like(length), atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradient_is_a_zero_step(norm):
    grad = noise(10, dtype=torch.float32)
    grad[3] = 0
    step = Threat(norm, 0.5).ascent(grad)
    assert torch.equal(step[3], torch.zeros_like(step[3]))
    assert torch.isfinite(step).all()


def test_distance_is_the_norm_in_float64():
    x = torch.zeros(2, 1, 1, 3)
    x_adv = torch.tensor([[0.3, -0.4, 0.0], [0.0, 0.0, 0.0]]).view(2, 1, 1, 3)
    for norm, expected in {"linf": 0.4, "l2": 0.5, "l1": 0.7}.items():
        distance = Threat(norm, 0.5).distance(x, x_adv)
        assert distance.dtype == torch.float64
        assert distance.tolist() == pytest.approx([expected, 0.0], abs=1e-7)


@pytest.mark.parametrize("norm", NORMS)
def test_contains_rejects_what_is_not_allowed(norm):
    eps = 0.25
    threat, x = Threat(norm, eps), torch.full((6, 1, 2, 2), 0.5, dtype=torch.float64)
    x[3:] = 0.0
    x_adv = x.clone()
    x_adv[0, 0, 0, 0] += eps  # exactly on the ball: allowed
    x_adv[1, 0, 0, 0] += eps + 1e-5
    x_adv[2, 0, 1, 1] = torch.nan
    x_adv[3, 0, 0, 1] = -1e-9  # below the range
    x_adv[4, 0, 0, 1] = torch.inf
    x_adv[5, 0, 0, 1] = eps - 1e-9
    assert threat.contains(x, x_adv).tolist() == [True, False, False, False, False, True]


@pytest.mark.parametrize("norm", NORMS)
def test_contains_measures_the_whole_perturbation_in_its_norm(norm):
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x_adv = x + 0.2
    size = {"linf": 0.2, "l2": 0.4, "l1": 0.8}[norm]
    assert Threat(norm, size).contains(x, x_adv).all()
    assert not Threat(norm, size - 1e-5).contains(x, x_adv).any()


def test_contains_refuses_other_shapes():
    with pytest.raises(UserError, match=r"expected x_adv of shape \(2, 1, 4, 4\)"):
        Linf(0.1).contains(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4))


def test_another_range_is_respected():
    threat = Threat("l2", 3.0, low=-1.0, high=2.0)
    x = inputs(11) * 3 - 1
    p = threat.project(x, x + 5 * noise(11))
    assert threat.contains(x, p).all()
    assert p.min() == -1
    assert p.max() == 2
    assert (threat.distance(x, p) - 3).abs().max() < 1e-6


def test_projection_leaves_its_inputs_alone():
    for threat in THREATS:
        x, point = inputs(12), inputs(12) + noise(12)
        copies = x.clone(), point.clone()
        threat.project(x, point)
        threat.start(x, point.clamp(0, 0.99))
        assert torch.equal(x, copies[0])
        assert torch.equal(point, copies[1])


def test_channels_last_inputs_give_the_same_projection():
    x, point = inputs(13, (4, 3, 6, 5)), inputs(13, (4, 3, 6, 5)) + noise(13, (4, 3, 6, 5))
    for threat in THREATS:
        last = torch.channels_last
        found = threat.project(x.to(memory_format=last), point.to(memory_format=last))
        assert torch.equal(found, threat.project(x, point))


def test_eight_is_taken_for_a_forgotten_denominator():
    with pytest.raises(UserError, match="8/255"):
        Linf(8)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("eps", [float("nan"), float("inf"), -0.1])
def test_radii_that_cannot_be_meant_are_refused(norm, eps):
    with pytest.raises(UserError, match="eps must be a finite number >= 0"):
        Threat(norm, eps)


def test_unknown_norms_and_empty_ranges_are_refused():
    with pytest.raises(UserError, match="norm must be one of linf, l2, l1"):
        Threat("l0", 0.1)
    with pytest.raises(UserError, match="low must be below high"):
        Threat("linf", 0.1, low=1.0, high=0.0)
    with pytest.raises(UserError, match="low must be a finite number"):
        Threat("linf", 0.1, low=float("nan"))


def test_threats_read_as_people_write_them():
    assert repr(Linf(8 / 255)) == "Linf(8/255)"
    assert repr(L2(0.5)) == "L2(0.5)"
    assert repr(L1(12)) == "L1(12)"
    assert repr(Linf(0.0)) == "Linf(0)"
    assert repr(Threat("linf", 0.1, low=-1.0, high=2.0)) == "Linf(0.1, low=-1.0, high=2.0)"
