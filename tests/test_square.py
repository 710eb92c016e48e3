"""The Square attack: against exact answers, against its formulas, and as a guest."""

import copy
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks import PGD
from equipoise.attacks.square import Square, _RandomSearch
from equipoise.attacks.square_windows import Grid, Pyramids, Signs, pyramids, window_size
from equipoise.draws import GeneratorDraws, KeyedDraws
from equipoise.errors import UserError
from equipoise.execution import Execution, Fast, fast
from equipoise.losses import margin
from equipoise.threat import L1, L2, Linf, Threat
from problems import held_out, linear_problem, small_layers, small_net

SMALL = [Linf(0.1), L2(0.7), L1(3.0)]
EVERY = pytest.mark.parametrize("threat", SMALL, ids=lambda threat: threat.norm)


def double_net() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = held_out(40)
    return copy.deepcopy(small_net()).double(), x.double(), y


def coloured_net() -> tuple[nn.Module, Tensor, Tensor]:
    """Return an untrained network for two channels, with the labels that it gives."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(12, 2, 7, 7, generator=generator, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(6 * 5 * 5, 4)
        ).double()  # fmt: skip
    return net, x, net(x).argmax(1)


def counted(model: nn.Module) -> list[int]:
    """Return a list to which the batch size of every forward pass is appended."""
    sizes: list[int] = []
    model.register_forward_hook(lambda _module, inputs, _out: sizes.append(len(inputs[0])))
    return sizes


def fooled_by(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x_adv).argmax(1) != y


# --- exact answers ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("threat", "least"),
    [
        (Linf(0.05), 1.0), (Linf(0.02), 1.0),
        (L2(0.6), 0.7), (L2(0.25), 0.7),
        (L1(1.5), 0.7), (L1(1.0), 0.7),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("classes", [2, 4])
def test_no_provably_robust_point_is_broken_and_most_others_are(threat, least, classes):
    problem = linear_problem(0, classes=classes, count=80)
    x_adv = Square(queries=1500)(problem.model, problem.x, problem.y, threat)
    attained, exact = problem.attained(x_adv), problem.worst(threat)
    assert (attained >= exact - 1e-9).all()
    assert (attained[problem.robust(threat)] > 0).all()
    assert threat.contains(problem.x, x_adv).all()
    clean = problem.attained(problem.x)
    breakable = (exact < -1e-6) & (clean > 0)
    assert breakable.sum() >= 5
    assert problem.robust(threat).sum() >= 2
    assert (attained[breakable] <= 0).float().mean() >= least


@pytest.mark.slow
def test_a_model_without_gradients_is_broken():
    # Rounded to four levels, it has no gradient for PGD to follow.
    inner, (x, y) = small_net(), held_out(60)
    net = Wrapped(lambda points: inner((3 * points).round() / 3))
    right = ~fooled_by(net, x, y)
    x, y = x[right], y[right]
    by_pgd = fooled_by(net, PGD(steps=20, start="zero")(net, x, y, Linf(0.25)), y)
    by_square = fooled_by(net, Square(queries=300)(net, x, y, Linf(0.25)), y)
    assert by_pgd.sum() == 0
    assert by_square.float().mean() > 0.8


# --- formulas ---


@pytest.mark.parametrize(
    ("step", "parts"),
    [
        (0, 1), (10, 1), (11, 2), (50, 2), (51, 4), (200, 4), (201, 8), (500, 8), (501, 16),
        (1000, 16), (1001, 32), (2000, 32), (2001, 64), (4000, 64), (4001, 128), (6000, 128),
        (6001, 256), (8000, 256), (8001, 512), (9999, 512),
    ],
)  # fmt: skip
def test_the_schedule_is_that_of_the_paper(step, parts):
    assert Square().share(step) == pytest.approx(0.8 / parts, rel=1e-12)
    assert Square(p_init=0.3).share(step) == pytest.approx(0.3 / parts, rel=1e-12)
    assert Square(queries=10_000, rescale=True).share(step) == Square().share(step)
    # With a tenth of the queries, everything happens ten times as early.
    tenth = Square(queries=1000, rescale=True)
    assert tenth.share(step // 10) == Square().share(step // 10 * 10)


@pytest.mark.parametrize(
    ("side", "sides", "sides_of_pyramids"),
    [
        (32, [29, 20, 14, 10, 7, 5, 4, 3], [29, 21, 15, 11, 7, 5, 5, 3]),
        (28, [25, 18, 13, 9, 6, 4, 3, 2], [25, 19, 13, 9, 7, 5, 3, 3]),
        (8, [7, 5, 4, 3, 2, 1, 1, 1], [7, 5, 5, 3, 3, 3, 3, 3]),
        (4, [4, 3, 2, 1, 1, 1, 1, 1], [4, 3, 3, 3, 3, 3, 3, 3]),
    ],
)
def test_window_sides_are_those_of_the_table(side, sides, sides_of_pyramids):
    grid = Grid(3, side, side)
    shares = [0.8 / 2**i for i in range(8)]
    assert [window_size(share, grid) for share in shares] == [(s, s) for s in sides]
    found = [window_size(share, grid, pyramids=True) for share in shares]
    assert found == [(s, s) for s in sides_of_pyramids]


def test_windows_that_do_not_fit_grow_along_the_longer_side():
    assert window_size(0.8, Grid(1, 1, 100)) == (1, 80)
    assert window_size(0.8, Grid(1, 100, 1)) == (80, 1)
    assert window_size(0.8, Grid(3, 4, 25)) == (4, 20)
    assert window_size(0.1, Grid(3, 4, 25)) == (3, 3)
    assert window_size(0.5, Grid(1, 1, 2), pyramids=True) == (1, 2)


def test_layouts_are_read_from_shapes():
    assert Grid.of((7,)) == (1, 1, 7)
    assert Grid.of((5, 7)) == (1, 5, 7)
    assert Grid.of((3, 5, 7)) == (3, 5, 7)
    assert Grid.of((3, 2, 5, 7)) == (3, 10, 7)


def test_pyramids_have_the_values_of_their_sum():
    cpu = torch.device("cpu")
    edge, top = 1 / 4, 1 + 1 / 4  # sums of (k + 1)^-2 from the distance on, up to k = 1
    upper = torch.tensor([[edge, top, edge]], dtype=torch.float64)
    lower = torch.tensor([[edge] * 3, [edge, top, edge]], dtype=torch.float64)
    halves = [upper / upper.norm(), -lower / lower.norm()]
    expected = torch.cat(halves) / math.sqrt(2)
    above, beside = pyramids((3, 3), 2, cpu).view(2, 3, 3)
    assert (above - expected).abs().max() < 1e-12
    assert torch.equal(beside, above.T)
    edge, top = 1 / 16, 1 + 1 / 16
    upper = torch.tensor([[edge, top, edge]], dtype=torch.float64)
    above = pyramids((3, 3), 1, cpu)[0].view(3, 3)
    assert (above[:1] - upper / upper.sum() / 2).abs().max() < 1e-12
    for size in ((1, 1), (1, 5), (4, 4), (7, 3), (25, 25)):
        assert (pyramids(size, 1, cpu).abs().sum(1) - 1).abs().max() < 1e-12
        assert (pyramids(size, 2, cpu).norm(dim=1) - 1).abs().max() < 1e-12


def slow_search(
    net: nn.Module, x: Tensor, y: Tensor, threat: Threat, start: Tensor, noise: Tensor, at: Square
) -> Tensor:
    """Return what the search finds for one example, (1, C, H, W), loop by loop."""

    def slow_margin(point: Tensor) -> float:
        with torch.no_grad():
            z = net(point)[0]
        return float(z[y] - torch.cat([z[:y], z[y + 1 :]]).max())

    best, least = start, slow_margin(start)
    for step, numbers in enumerate(noise.tolist()):
        if least < 0:
            break
        propose = slow_square if threat.norm == "linf" else slow_pyramids
        point = propose(x, best, threat, numbers, at.share(step))
        found = slow_margin(point)
        if found < least:
            best, least = point, found
    return best


def slow_square(x: Tensor, best: Tensor, threat: Threat, numbers: list[float], share: float):
    _, channels, height, width = x.shape
    side = min(max(round(math.sqrt(share * height * width)), 1), height, width)
    top, left = int(numbers[0] * (height - side + 1)), int(numbers[1] * (width - side + 1))
    point = best.clone()
    for channel in range(channels):
        step = 2 * threat.eps * (1 if numbers[2 + channel] >= 0.5 else -1)
        point[:, channel, top : top + side, left : left + side] += step
    return torch.clamp(torch.clamp(point, x - threat.eps, x + threat.eps), 0, 1)


def slow_pyramids(x: Tensor, best: Tensor, threat: Threat, numbers: list[float], share: float):
    _, channels, height, width = x.shape
    p = 2 if threat.norm == "l2" else 1
    side = max(round(math.sqrt(share * height * width)), 3)
    side = min(side + (side % 2 == 0), height, width)
    places = [
        (int(numbers[i] * (height - side + 1)), int(numbers[i + 1] * (width - side + 1)))
        for i in (0, 2)
    ]
    first, second = (
        (slice(top, top + side), slice(left, left + side)) for top, left in places
    )  # fmt: skip
    pattern = pyramids((side, side), p, x.device)[int(numbers[4] >= 0.5)].view(side, side)
    old = best - x
    unspent = threat.eps**p - old.abs().pow(p).sum()
    delta = old.clone()
    for channel in range(channels):
        either = torch.zeros_like(old[0, 0])
        either[first] = 1
        either[second] = 1
        mass = (old[0, channel] * either).abs().pow(p).sum() + unspent.clamp_min(0) / channels
        mass = mass * channels if p == 1 else mass
        window = old[0, channel][first]
        new = pattern * (1 if numbers[5 + channel] >= 0.5 else -1)
        if window.abs().sum() > 0:
            new = new + window / window.abs().pow(p).sum() ** (1 / p)
        new = new * (mass / new.abs().pow(p).sum()) ** (1 / p)
        delta[0, channel][second] = 0
        delta[0, channel][first] = new
    if p == 1:
        return threat.project(x, x + delta)
    return (x + delta * (threat.eps / delta.norm()).clamp_max(1 + 1e-9)).clamp(0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("threat", [Linf(0.03), L2(0.3), L1(1.0)], ids=repr)
@pytest.mark.parametrize("make", [double_net, coloured_net], ids=["digits", "coloured"])
@pytest.mark.parametrize("ahead", [1, 16])
def test_the_search_is_its_formula(threat, make, ahead):
    net, x, y = make()
    x, y = x[:8], y[:8]
    attack = Square(queries=90, ahead=ahead)
    draws = KeyedDraws.of(x).child("restart 0")
    moves = (Signs if threat.norm == "linf" else Pyramids)(
        x.flatten(1), Grid.of(x[0].shape), threat
    )
    start = moves.start(draws.uniform(torch.empty(8, moves.start_numbers))).view_as(x)
    noise = draws.uniform(torch.empty(8, 89, moves.numbers))
    found = attack(net, x, y, threat)
    for i in range(8):
        one = slice(i, i + 1)
        expected = slow_search(net, x[one], int(y[i]), threat, start[one], noise[i], attack)
        assert (found[one] - expected).abs().max() < 1e-6, i
    assert (found - start).abs().flatten(1).amax(1).count_nonzero() >= 4


def test_stripes_and_tiles_begin_at_the_full_radius():
    x = torch.full((5, 2 * 12 * 10), 0.5, dtype=torch.float64)
    grid = Grid(2, 12, 10)
    noise = torch.rand(5, 100, generator=torch.Generator().manual_seed(0))
    signs = Signs(x, grid, Linf(0.1))
    stripes = (signs.start(noise[:, : signs.start_numbers]) - x).view(5, 2, 12, 10)
    assert signs.start_numbers == 20
    assert (stripes.abs() - 0.1).abs().max() < 1e-12
    assert (stripes == stripes[:, :, :1]).all()
    assert len(stripes[:, :, 0].flatten().sign().unique()) == 2
    for threat in (L2(0.5), L1(2.0), L1(400.0)):
        tiles = Pyramids(x, grid, threat)
        assert tiles.tiles == (6, 5)
        points = tiles.start(torch.rand(5, tiles.start_numbers))
        assert threat.contains(x, points).all()
        full = threat.eps if threat.eps < 120 else 0.3 * 120
        assert (threat.distance(x, points) >= full * (1 - 1e-6)).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 9), (1, 1, 20)], ids=str)
def test_a_square_changes_one_window_of_its_own_for_each_example(shape):
    grid, count = Grid(*shape), 200
    x = torch.full((count, math.prod(shape)), 0.5, dtype=torch.float64)
    moves = Signs(x, grid, Linf(0.1))
    size = window_size(0.1, grid)
    moves.best = x.clone()  # so that every pixel of the window changes
    generator = torch.Generator().manual_seed(0)
    moves.plan(torch.rand(1, count, moves.numbers, generator=generator), 0.1)
    changed = (moves.propose(torch.arange(count), torch.zeros(count).long()) - x) != 0
    changed = changed.view(count, *shape)
    assert (changed.sum((1, 2, 3)) == shape[0] * math.prod(size)).all()
    rows, columns = changed.any(3).any(1), changed.any(2).any(1)
    assert (rows.sum(1) == size[0]).all()
    assert (columns.sum(1) == size[1]).all()
    # Everything is reached, the last row and column too.
    assert changed.any(0).all()
    assert (changed.double().mean(0) - size[0] * size[1] / 50 < 1).all()
    assert len(changed.flatten(1).unique(dim=0)) > 5


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_mass_moves_between_windows_and_none_is_lost_inside_the_range(norm):
    threat = Threat(norm, 0.4)
    for channels in (1, 3):
        grid = Grid(channels, 9, 9)
        x = torch.full((30, channels * 81), 0.5, dtype=torch.float64)
        moves = Pyramids(x, grid, threat)
        moves.start(torch.rand(30, moves.start_numbers))
        generator = torch.Generator().manual_seed(0)
        for share in (0.8, 0.2, 0.05):
            before = moves.best.clone()
            moves.plan(torch.rand(1, 30, moves.numbers, generator=generator), share)
            points = moves.propose(torch.arange(30), torch.zeros(30).long())
            assert (threat.distance(x, points) - 0.4).abs().max() < 1e-9
            assert not torch.equal(points, before)
            assert torch.equal(moves.best, before)  # until it is accepted
            better = torch.arange(30) % 2 == 0
            moves.accept(points, better.nonzero()[:, 0], better.nonzero()[:, 0])
            assert torch.equal(moves.best[better], points[better])
            assert torch.equal(moves.best[~better], before[~better])
            spent = (moves.best - x).abs().pow(moves.power).sum(1, keepdim=True)
            assert (moves.spent - spent).abs().max() < 1e-9


# --- cost ---


@EVERY
def test_survivors_take_all_queries_and_the_fooled_leave_at_once(threat):
    net, (x, y) = copy.deepcopy(small_net()), held_out(80)
    threat = replace(threat, eps=threat.eps * 0.4)
    sizes = counted(net)
    x_adv = Square(queries=70, ahead=1)(net, x, y, threat)
    made = list(sizes)
    survivors = int((~fooled_by(net, x_adv, y)).sum())
    assert 0 < survivors < 80
    assert made[0] == 80
    if threat.norm == "linf":  # see the tests of what is not asked again
        assert survivors * 40 < sum(made) < 80 * 70
        return
    assert len(made) == 70
    assert made == sorted(made, reverse=True)
    assert survivors <= made[-1] < 80
    # Whoever is fooled within k queries is not in the next pass.
    for k in (1, 3, 10, 40):
        left = int((~fooled_by(net, Square(queries=k)(net, x, y, threat), y)).sum())
        assert made[k] == left


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("count", [1, 5, 40])
def test_queries_ahead_make_the_same_search_in_fewer_passes(threat, count):
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(count)
    x, threat = x.double(), replace(threat, eps=threat.eps * 0.4)
    sizes = counted(net)
    one = Square(queries=300, ahead=1)(net, x, y, threat)
    passes, tried = len(sizes), sum(sizes)
    sizes.clear()
    several = Square(queries=300)(net, x, y, threat)
    assert (one - several).abs().max() < 1e-9
    assert (one - x).abs().max() > 0
    assert max(sizes) <= 1024
    assert tried <= sum(sizes) < 2 * tried
    assert len(sizes) < passes / 3


def test_queries_ahead_leave_the_memory_of_large_images_alone():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 500 * 500, 3))
    sizes = counted(net)
    x = torch.rand(1, 3, 500, 500)
    y = net(x).argmax(1)
    sizes.clear()
    Square(queries=40)(net, x, y, Linf(1e-4))
    assert set(sizes) == {1}
    assert 20 < len(sizes) <= 40 + 2  # the first point is asked twice more


def every_query(monkeypatch):
    """Make the search ask every query, also those whose answer is known."""
    monkeypatch.setattr(_RandomSearch, "_repeats", lambda self, points: False)


@pytest.mark.parametrize("ahead", [1, 16])
def test_what_would_be_refused_again_is_not_asked(monkeypatch, ahead):
    net, (x, y) = copy.deepcopy(small_net()).double(), held_out(6)
    x, threat = x.double(), Linf(0.02)
    sizes = counted(net)
    quick = Square(queries=2000, ahead=ahead)(net, x, y, threat)
    asked = sum(sizes)
    every_query(monkeypatch)
    sizes.clear()
    slow = Square(queries=2000, ahead=ahead)(net, x, y, threat)
    assert torch.equal(quick, slow)
    assert (quick - x).abs().amax() > 0
    assert asked < 0.6 * sum(sizes)  # the windows of most queries are single pixels
    assert not fooled_by(net, quick, y).all()


def test_every_query_of_a_random_model_is_asked():
    net, (x, y) = copy.deepcopy(small_net()), held_out(5)
    sizes = counted(net)
    noise = torch.Generator().manual_seed(0)
    random_net = Wrapped(lambda points: net(points) + 0.5 * torch.rand(10, generator=noise))
    Square(queries=300, ahead=1)(random_net, x, y, Linf(1e-3))
    assert sum(sizes) >= 300


@pytest.mark.parametrize("grid", [Grid(1, 6, 6), Grid(3, 6, 6), Grid(9, 6, 6)], ids=str)
def test_a_query_is_worth_a_pass_if_it_changes_something_and_was_not_refused(grid):
    count, queries = 4, 300
    moves = Signs(torch.rand(count, grid.channels * 36), grid, Linf(0.1))
    draws = torch.Generator().manual_seed(0)
    best = moves.start(torch.rand(count, moves.start_numbers, generator=draws)).clone()
    moves.plan(torch.rand(queries, count, moves.numbers, generator=draws), 1 / 36)
    refused: list[set[tuple[float, ...]]] = [set() for _ in range(count)]
    for turn in range(queries):
        turns = torch.full((count,), turn)
        fresh, points = moves.fresh()[turn], moves.propose(torch.arange(count), turns)
        for i in range(count):
            known = tuple(points[i].tolist()) in refused[i] and grid.channels < 9
            assert bool(fresh[i]) == (not torch.equal(points[i], best[i]) and not known)
            refused[i].add(tuple(points[i].tolist()))
        moves.refuse(torch.arange(count), turns)
        if turn in (100, 200):  # one example gets another best point, and forgets what was refused
            moves.accept(points, torch.tensor([2]), torch.tensor([2]))
            best[2], refused[2] = points[2], set()


def test_no_query_is_made_once_everything_is_fooled():
    net, (x, y) = copy.deepcopy(small_net()), held_out(20)
    sizes = counted(net)
    Square(queries=3000, restarts=5)(net, x, y, Linf(0.9))
    assert len(sizes) < 100


@EVERY
def test_restarts_run_on_survivors_alone_and_are_never_worse(threat):
    net, (x, y) = copy.deepcopy(small_net()), held_out(80)
    threat = replace(threat, eps=threat.eps * 0.5)
    results = [Square(queries=15, restarts=n)(net, x, y, threat) for n in (1, 2, 4)]
    fooled = [fooled_by(net, x_adv, y) for x_adv in results]
    margins = [margin(net(x_adv), y) for x_adv in results]
    assert (margins[2] > margins[0] + 1e-6).any()
    for i in (0, 1):
        assert (fooled[i + 1] >= fooled[i]).all()
        assert (margins[i + 1] >= margins[i] - 1e-6)[~fooled[i]].all()
    sizes = counted(net)
    Square(queries=15, restarts=2)(net, x, y, threat)
    if threat.norm == "linf":
        assert int((~fooled[0]).sum()) in sizes[10:]
        return
    assert len(sizes) == 30
    assert sizes[15] == int((~fooled[0]).sum())


@EVERY
def test_the_best_margin_only_falls_with_more_queries(threat):
    net, x, y = double_net()
    threat = replace(threat, eps=threat.eps * 0.5)
    before = torch.full((40,), -torch.inf, dtype=torch.float64)
    for queries in (1, 4, 20, 64, 65, 66, 150):  # numbers are drawn for 64 at a time
        score = margin(net(Square(queries=queries)(net, x, y, threat)), y)
        done = before > 0
        assert (score[~done] >= before[~done] - 1e-12).all()
        assert torch.equal(score > 0, (score > 0) | done)
        before = score
    assert (before < 0).any()
    assert (before > 0).any()


# --- what comes back ---


@EVERY
def test_results_are_allowed_new_and_moved(threat):
    net, (x, y) = small_net(), held_out(40)
    before = x.clone()
    x_adv = Square(queries=150)(net, x, y, threat)
    assert threat.contains(x, x_adv).all()
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert torch.equal(x, before)
    assert x_adv.data_ptr() != x.data_ptr()
    assert (threat.distance(x, x_adv) > 0.1 * threat.eps).all()
    # The points that come back are those that were fooled, or else the strongest ones.
    start = Square(queries=1)(net, x, y, threat)
    assert (margin(net(x_adv), y) >= margin(net(start), y) - 1e-5)[~fooled_by(net, start, y)].all()


@EVERY
def test_long_searches_stay_within_the_budget_in_single_precision(threat):
    x = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1).sin().sum(1) + 1e6, x.flatten(1).square().sum(1)], 1)

    wrapped = Wrapped(model)
    x_adv = Square(queries=400)(wrapped, x, torch.zeros(6).long(), threat)
    assert threat.contains(x, x_adv).all()
    assert (threat.distance(x, x_adv) <= threat.eps + 1e-6).all()


class Wrapped(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@EVERY
def test_nothing_to_search_costs_nothing(threat):
    net, (x, y) = copy.deepcopy(small_net()), held_out(5)
    sizes = counted(net)
    assert Square()(net, x[:0], y[:0], threat).shape == (0, 1, 8, 8)
    still = Square()(net, x, y, replace(threat, eps=0.0))
    assert torch.equal(still, x)
    assert still.data_ptr() != x.data_ptr()
    assert sizes == []


@pytest.mark.slow
@EVERY
def test_results_do_not_depend_on_the_batch(threat):
    net, x, y = double_net()
    x, y = x[:18], y[:18]
    attack = Square(queries=75, restarts=2)
    whole = attack(net, x, y, threat)
    assert 3 <= fooled_by(net, whole, y).sum() <= 15
    for size in (1, 7):
        parts = [attack(net, x[i : i + size], y[i : i + size], threat) for i in range(0, 18, size)]
        assert (torch.cat(parts) - whole).abs().max() <= 1e-12
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    assert (attack(net, x[order], y[order], threat) - whole[order]).abs().max() <= 1e-12


@EVERY
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 9), (7,), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 12])
def test_any_shape_type_and_number_of_classes_works(threat, shape, dtype, classes):
    problem = linear_problem(5, classes=classes, shape=shape, count=10, dtype=dtype)
    attack = Square(queries=60)
    x_adv = attack(problem.model, problem.x, problem.y, threat)
    assert x_adv.dtype == dtype
    assert x_adv.shape == problem.x.shape
    assert threat.contains(problem.x, x_adv).all()
    clean, attained = problem.attained(problem.x), problem.attained(x_adv)
    searched = clean > 0
    assert (attained[searched] < clean[searched]).float().mean() > 0.5


@EVERY
def test_memory_layout_does_not_matter(threat):
    problem = linear_problem(6, classes=3, shape=(3, 5, 9), count=8)
    x = problem.x.to(memory_format=torch.channels_last)
    found = Square(queries=80)(problem.model, x, problem.y, threat)
    expected = Square(queries=80)(problem.model, problem.x, problem.y, threat)
    assert (found - expected).abs().max() <= 1e-9


@EVERY
def test_another_range_works(threat):
    problem = linear_problem(7, classes=3, count=20)
    wider = Wrapped(lambda x: problem.model((x + 1) / 2))
    twice = replace(threat, eps=2 * threat.eps, low=-1.0)
    draws = KeyedDraws.of(problem.x)
    found = Square(queries=60)(wider, 2 * problem.x - 1, problem.y, twice, draws=draws)
    assert twice.contains(2 * problem.x - 1, found).all()
    expected = Square(queries=60)(problem.model, problem.x, problem.y, threat)
    assert (((found + 1) / 2) - expected).abs().max() <= 1e-6


@EVERY
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_model_that_returns_no_numbers_does_no_harm(threat, bad):
    def broken(x: Tensor) -> Tensor:
        logits = x.flatten(1)[:, :4] * torch.tensor([1.0, -2.0, 3.0, 0.5])
        ill = (x.flatten(1).sum(1) * 1e4).long() % 2 == 0
        return torch.where(ill[:, None], logits * bad, logits)

    x, y = held_out(12)
    x_adv = Square(queries=40)(Wrapped(broken), x * 0.8 + 0.1, y % 4, threat)
    assert threat.contains(x * 0.8 + 0.1, x_adv).all()


def test_a_point_without_numbers_is_left_for_one_with():
    # The first point has no logits; later ones have, and all are classified well.
    calls = []

    def late(x: Tensor) -> Tensor:
        calls.append(1)
        logits = torch.stack([1 - x.flatten(1).mean(1), x.flatten(1).mean(1) * 0], 1)
        return logits * (torch.nan if len(calls) == 1 else 1) * torch.tensor([1.0, 0.0])

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nan_to_num(late(x), nan=-torch.inf)

    x, _ = held_out(4)
    x_adv = Square(queries=30)(First(), x, torch.zeros(4).long(), Linf(0.1))
    assert Linf(0.1).contains(x, x_adv).all()
    assert (x_adv.mean((1, 2, 3)) > x.mean((1, 2, 3))).all()


# --- the search form ---


@EVERY
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_what_the_search_form_finds_fools_the_model(threat, precision):
    net, (x, y) = copy.deepcopy(small_net()), held_out(60)
    threat = replace(threat, eps=threat.eps * 0.6)
    form = fast(net, x, Execution(precision=precision))
    x_adv = Square(queries=120)(form, x, y, threat)
    assert threat.contains(x, x_adv).all()
    exactly, alone = (
        fooled_by(net, x_adv, y),
        fooled_by(net, Square(queries=120)(net, x, y, threat), y),
    )
    assert 0 < exactly.sum() < 60
    assert (exactly.sum() - alone.sum()).abs() <= 5
    assert form.backwards == 0


def test_a_search_form_that_is_wrong_is_not_believed():
    net, (x, y) = copy.deepcopy(small_net()), held_out(30)
    right = ~fooled_by(net, x, y)
    x, y = x[right], y[right]
    liar = Wrapped(lambda points: net(points) - 100 * nn.functional.one_hot(y[: len(points)], 10))
    sizes = counted(liar)
    x_adv = Square(queries=25, ahead=1)(Fast(net, liar, "float32"), x, y, L2(1e-4))
    assert sizes == [len(x)] * 25
    assert L2(1e-4).contains(x, x_adv).all()


# --- guests ---


def state_of(net: nn.Module) -> list[object]:
    return [
        *(value.clone() for value in net.state_dict().values()),
        *((p.requires_grad, p.grad is None) for p in net.parameters()),
        *(p.grad.clone() for p in net.parameters() if p.grad is not None),
        *(module.training for module in net.modules()),
        torch.get_rng_state(),
        random.getstate(),
    ]


@EVERY
@pytest.mark.parametrize("fails_at", [None, 1, 20])
def test_attacks_leave_no_trace(threat, fails_at):
    net, (x, y) = small_layers(1), held_out(16)
    with torch.random.fork_rng(devices=[]):
        nn.functional.cross_entropy(net(x), y).backward()
    net[1].eval()
    net[0].bias.requires_grad_(False)
    net[8].bias.grad = None
    seen: list[tuple[bool, bool, bool]] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append((module.training, torch.is_grad_enabled(), inputs[0].requires_grad))
        if len(seen) == fails_at:
            raise RuntimeError("the model failed")

    handle = net[3].register_forward_pre_hook(look)
    before = state_of(net)
    x = x.requires_grad_(True)
    attack, threat = Square(queries=200), replace(threat, eps=threat.eps / 20)
    if fails_at is None:
        assert not attack(net, x, y, threat).requires_grad
    else:
        with pytest.raises(RuntimeError, match="the model failed"):
            attack(net, x, y, threat)
    handle.remove()
    for old, new in zip(before, state_of(net), strict=True):
        assert torch.equal(old, new) if isinstance(old, Tensor) else old == new
    assert x.grad is None
    assert torch.is_grad_enabled()
    # In eval mode, and forward alone.
    assert set(seen) == {(False, False, False)}


def test_draws_decide_the_search():
    net, (x, y) = small_net(), held_out(20)
    attack, threat = Square(queries=5), Linf(0.05)
    default = attack(net, x, y, threat)
    assert torch.equal(attack(net, x, y, threat, draws=KeyedDraws.of(x, seed=0)), default)
    assert not torch.equal(attack(net, x, y, threat, draws=KeyedDraws.of(x, seed=1)), default)
    once, again = (
        attack(net, x, y, threat, draws=GeneratorDraws(torch.Generator().manual_seed(1)))
        for _ in range(2)
    )
    assert torch.equal(once, again)
    assert not torch.equal(once, default)


# --- what is refused ---


@pytest.mark.parametrize(
    "options",
    [
        {"queries": 0}, {"queries": 10.5}, {"restarts": 0}, {"p_init": 0.0}, {"p_init": 1.5},
        {"p_init": float("nan")}, {"p_init": "half"}, {"rescale": "yes"}, {"norms": ("l0",)},
        {"norms": ()},
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be_meant_are_refused(options):
    (name,) = options
    with pytest.raises(UserError, match=name):
        Square(**options)


def test_all_problems_come_at_once_and_other_norms_are_refused():
    with pytest.raises(UserError, match=r"queries must be .*; restarts must be .*; p_init must"):
        Square(queries=0, restarts=-1, p_init=2)
    net, (x, y) = small_net(), held_out(4)
    with pytest.raises(UserError, match="not l1"):
        Square(norms=("linf",))(net, x, y, L1(1.0))
    with pytest.raises(UserError, match="argmax"):
        Square()(net, x, torch.eye(10)[:4], Linf(0.1))
