"""Inputs of any range: every norm and attack against the exact answers of linear models.

A linear problem on the unit box is moved to a range: x' = low + width x, with the radius width
eps. Its answers stay the same, but float32 lies coarser there: what moves a margin by less than
one float a pixel is left open.
"""

import warnings

import pytest
import torch
from torch import Tensor, nn

import equipoise as eq
from equipoise.attacks import parse
from equipoise.attacks.core import check_inputs
from equipoise.errors import UserError
from equipoise.threat import Threat, towards
from problems import NORMS, LinearProblem, held_out, linear_problem, small_net

RANGES = [(0.0, 255.0), (1000.0, 1001.0), (-1.0, 1.0), (-500.0, 1500.0), (0.0, 1e-3)]
RADII = {"linf": 0.06, "l2": 0.4, "l1": 0.8}
EXACT = {  # what finds the worst point of a linear model
    "linf": ("fgsm", "pgd-20", "mi-fgsm-10", "cw-inf-20", "apgd-ce", "fab"),
    "l2": ("pgd-40", "apgd-ce", "fab", "cw-l2-200"),
    "l1": ("pgd-60", "apgd-ce", "fab"),
}
ranges = pytest.mark.parametrize("ends", RANGES, ids=str)
norms = pytest.mark.parametrize("norm", NORMS)


class Moved(nn.Module):
    """A model of the unit range for inputs of another."""

    def __init__(self, model: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.model, self.low, self.width = model, low, high - low

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.low) / self.width)


def moved(ends: tuple[float, float], norm: str) -> tuple[nn.Module, Tensor, LinearProblem, Tensor]:
    """Return a model, its inputs, the same problem on the unit box, and what rounding can do."""
    low, high = ends
    single, double = (linear_problem(3, dtype=d) for d in (torch.float32, torch.float64))
    x = (low + (high - low) * single.x).clamp(low, high)
    unit = ((x.double() - low) / (high - low)).clamp(0, 1)
    problem = LinearProblem(double.model, unit, single.y)
    weight = double.model.weight.detach()
    apart = max(abs(low), abs(high), high - low) * 2.0**-23 / (high - low)  # of two floats
    return (
        Moved(single.model, low, high),
        x,
        problem,
        apart * (weight[0] - weight[1]).abs().sum(),
    )


@pytest.mark.slow
@norms
@ranges
def test_attacks_find_on_every_range_what_the_closed_form_says(ends, norm):
    model, x, problem, rounding = moved(ends, norm)
    eps, (low, high) = RADII[norm], ends
    threat = Threat(norm, eps * (high - low), low, high)
    worst = problem.worst(Threat(norm, eps))
    correct = problem.attained(problem.x) > 0
    breakable, robust = correct & (worst < -rounding - 0.02), worst > rounding
    assert breakable.sum() >= 10
    assert robust.sum() >= 10
    result = eq.evaluate(
        model, x, problem.y, threat=threat, attacks=[*EXACT[norm], "square-300"], checks=False
    )
    for name, outcome in result.outcomes.items():
        assert outcome.rejected == 0, name
        assert outcome.verdict[robust].all(), name
        missed = int((outcome.verdict & breakable).sum())
        assert missed <= (0 if name in EXACT[norm] else breakable.sum() / 2), name


@pytest.mark.parametrize("name", ["pgd-20", "apgd-ce", "square-300"])
def test_0_to_255_gives_the_exact_accuracy(name):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 16, generator=generator) * 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False))
    net[1].weight = nn.Parameter(weight)
    model = Moved(net, 0, 255)
    x = torch.rand(200, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3
    y = model(x * 255).argmax(1)
    result = eq.evaluate(
        model, x * 255, y, threat=Threat("linf", 5.1, 0, 255), attacks=[name], checks=False
    )
    assert result.robust_accuracy == pytest.approx(0.705)


@norms
@ranges
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projections_and_starts_stay_in_the_ball_to_the_bit(ends, norm, dtype):
    low, high = ends
    width = high - low
    generator = torch.Generator().manual_seed(0)
    x = (low + width * torch.rand(50, 3, 8, 8, generator=generator)).clamp(low, high).to(dtype)
    threat = Threat(norm, RADII[norm] * width, low, high)
    points = (
        threat.project(x, x + width * torch.randn(x.shape, generator=generator)),
        threat.start(x, torch.rand(x.shape, generator=generator).to(dtype)),
    )
    for x_adv in points:
        assert threat.contains(x, x_adv).all()
        beyond = threat.distance(x, x_adv) / threat.eps - 1
        assert beyond.max() <= (0 if norm == "linf" and dtype == torch.float32 else 1e-6)
        assert beyond.max() > -1e-2


@norms
@pytest.mark.parametrize("ends", [(0.0, 1.0), (-1.0, 1.0), (0.0, 0.5)], ids=str)
def test_the_judge_allows_no_more_than_before_on_ranges_within_one(ends, norm):
    low, high = ends
    x = torch.full((2, 1, 1, 2), (low + high) / 2, dtype=torch.float64)
    threat, allowed = Threat(norm, 0.125, low, high), 1e-6 * min(1, high - low)
    x_adv = x.clone()
    x_adv[:, 0, 0, 0] += 0.125 + torch.tensor([0.9, 1.1]) * allowed
    assert threat.contains(x, x_adv).tolist() == [True, False]


def test_the_judge_allows_one_rounding_where_floats_are_far_apart():
    x = torch.tensor([200.3, 100.3, 1000.3, 0.3]).view(4, 1, 1, 1)
    threat = Threat("linf", 5.1, 0, 1024)
    nearest = x + 5.1  # not rounded towards x: as others write it
    assert threat.contains(x, nearest).all()
    above = nearest
    for _ in range(2):
        above = torch.nextafter(above, torch.full_like(above, torch.inf))
    assert threat.contains(x, above)[:3].tolist() == [False, False, False]
    assert threat.tolerance(x, nearest).max() < 1e-4


def test_the_judge_of_a_narrow_range_is_as_narrow():
    x = torch.full((1, 1, 1, 2), 5e-4, dtype=torch.float64)
    assert not Threat("linf", 1e-5, 0, 1e-3).contains(x, x + 1.05e-5).any()


def test_rounding_towards_the_clean_value_moves_one_float_at_most():
    x = torch.tensor([100.0, 100.0, 100.0])
    moved = torch.tensor([105.1, 94.9, 100.0])
    found = towards(x, moved, 5.1)
    assert ((found.double() - x.double()).abs() <= 5.1).all()
    assert (found - moved).abs().max() <= 2**-17
    assert found[2] == 100


@pytest.mark.slow
@pytest.mark.parametrize("value", [-2.98e-8, 1.0000001, 1 + 9e-7])
def test_what_rounding_has_carried_out_of_the_range_is_brought_back_and_said(value):
    x, y = held_out(8)
    x = x.clone()
    x[0, 0, 0, 0] = value
    border = x.clamp(0, 1)
    with pytest.warns(UserWarning, match="set to the border"):
        assert torch.equal(check_inputs(x, y, eq.Linf(0.1))[0], border)
    for name in ("pgd-2", "apgd-ce(steps=2)", "fab(steps=2)", "square-5", "cw-l2-2"):
        threat = eq.L2(0.5) if name == "cw-l2-2" else eq.Linf(0.1)
        with pytest.warns(UserWarning, match="set to the border"):
            found = parse(name)(small_net(), x, y, threat)
        assert threat.contains(border, found).all(), name
    with pytest.warns(UserWarning, match="set to the border"):
        result = eq.evaluate(small_net(), x, y, threat=eq.Linf(0.1), attacks=["pgd-2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = eq.evaluate(small_net(), border, y, threat=eq.Linf(0.1), attacks=["pgd-2"])
    assert torch.equal(result.x_adv, same.x_adv)
    assert float(x[0, 0, 0, 0]) == pytest.approx(value, abs=1e-7), "the caller's x has changed"


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.002, "out by 0.002; x.clamp(0, 1)"), (-1.5, "out by 1.5; undo the normalisation")],
)
def test_further_out_the_message_says_by_how_much(value, said):
    x, y = held_out(2)
    x = x.clone()
    x[0, 0, 0, 0] = value
    with pytest.raises(UserError) as error:
        check_inputs(x, y, eq.Linf(0.1))
    assert said in str(error.value)


def test_the_border_follows_the_width_of_the_range():
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.warns(UserWarning, match="border"):
        found, _ = check_inputs(torch.tensor([[255.0001]]), y, Threat("linf", 8, 0, 255))
    assert found.item() == 255
    with pytest.raises(UserError, match="out by"):
        check_inputs(torch.tensor([[1.0001e-3]]), y, Threat("linf", 1e-5, 0, 1e-3))
