"""Small networks of ReLUs whose worst case is known exactly, by mixed-integer programming.

Within the ball and the box, the lowest z_y - z_k of such a network is the optimum of a
mixed-integer linear program: each ReLU a = max(0, z) whose sign is not settled by the bounds
l <= z <= u takes a binary b with a >= z, a >= 0, a <= z - l (1 - b) and a <= u b. An example is
robust if and only if that optimum is positive for all k: no attack may break it, and the attacks
together should break the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from torch import Tensor, nn

from equipoise.attacks import PGD, Attack
from equipoise.attacks.apgd import APGDCE, APGDT
from equipoise.attacks.fab import FABT
from equipoise.attacks.square import Square
from equipoise.threat import L1, Linf, Threat

COUNT = 20  # examples a network
SURE = 1e-5  # margins beyond it have the sign that the solver, exact to 1e-6 or so, says


@dataclass
class Program:
    """A mixed-integer linear program, put together row by row."""

    lower: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    rows: list[tuple[dict[int, float], float, float]] = field(default_factory=list)

    def variable(self, lower: float, upper: float, *, whole: bool = False) -> int:
        self.lower.append(lower)
        self.upper.append(upper)
        self.whole.append(int(whole))
        return len(self.lower) - 1

    def demand(self, terms: dict[int, float], lower: float, upper: float) -> None:
        self.rows.append((terms, lower, upper))

    def least(self, terms: dict[int, float]) -> tuple[float, NDArray[np.float64]]:
        """Return a proven lower bound of the optimum, and the variables of a solution."""
        matrix = np.zeros((len(self.rows), len(self.lower)))
        for i, (row, _, _) in enumerate(self.rows):
            matrix[i, list(row)] = list(row.values())
        cost = np.zeros(len(self.lower))
        cost[list(terms)] = list(terms.values())
        ends = ([row[side] for row in self.rows] for side in (1, 2))
        result = milp(
            cost,
            integrality=self.whole,
            bounds=Bounds(self.lower, self.upper),
            constraints=LinearConstraint(matrix, *ends),
            options={"mip_rel_gap": 0.0},
        )
        assert result.success, result.message
        bound = result.mip_dual_bound if any(self.whole) else result.fun
        return min(float(bound), float(result.fun)), result.x


def encoded(net: nn.Sequential, x: NDArray[np.float64], threat: Threat) -> tuple[Program, list]:
    """Return the program of a network around x, and each logit as (terms, constant)."""
    program = Program()
    low, high = np.maximum(x - threat.eps, 0), np.minimum(x + threat.eps, 1)
    values = [program.variable(a, b) for a, b in zip(low, high, strict=True)]
    if threat.norm == "l1":
        spend = {}
        for i, at in zip(values, x, strict=True):
            size = program.variable(0, threat.eps)  # at least |x_adv - x|
            program.demand({size: 1, i: -1}, -at, np.inf)
            program.demand({size: 1, i: 1}, at, np.inf)
            spend[size] = 1.0
        program.demand(spend, 0, threat.eps)
    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in layers[:-1]:
        weight, bias = (p.detach().numpy() for p in (layer.weight, layer.bias))
        below = weight.clip(min=0) @ low + weight.clip(max=0) @ high + bias
        above = weight.clip(min=0) @ high + weight.clip(max=0) @ low + bias
        values = [
            relu(program, dict(zip(values, row, strict=True)), *rest)
            for row, *rest in zip(weight, bias, below, above, strict=True)
        ]
        low, high = below.clip(min=0), above.clip(min=0)
    weight, bias = (p.detach().numpy() for p in (layers[-1].weight, layers[-1].bias))
    return program, [
        (dict(zip(values, row, strict=True)), b) for row, b in zip(weight, bias, strict=True)
    ]


def relu(program: Program, z: dict[int, float], bias: float, below: float, above: float) -> int:
    """Return the variable that is max(0, z + bias)."""
    out = program.variable(max(below, 0), max(above, 0))
    into = {out: 1.0} | {i: -w for i, w in z.items()}  # out - z
    if below >= 0:
        program.demand(into, bias, bias)
    elif above > 0:
        on = program.variable(0, 1, whole=True)
        program.demand(into, bias, np.inf)
        program.demand(into | {on: -below}, -np.inf, bias - below)
        program.demand({out: 1, on: -above}, -np.inf, 0)
    return out


def exact(net: nn.Sequential, x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return the exact worst margin of each example, and a point that attains it."""
    worst, points = torch.full((len(x),), torch.inf, dtype=torch.float64), x.clone()
    for i, (point, label) in enumerate(zip(x.numpy(), y.tolist(), strict=True)):
        program, logits = encoded(net, point, threat)
        for k in range(len(logits)):
            if k == label:
                continue
            (own, own_bias), (other, other_bias) = logits[label], logits[k]
            value, found = program.least({j: own[j] - other[j] for j in own})
            value += own_bias - other_bias
            if value < worst[i]:
                worst[i] = value
                points[i] = torch.from_numpy(found[: len(point)])
    return worst, points


def margins(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return min over k of z_y - z_k, with shape (N,)."""
    with torch.no_grad():
        z = net(x)
    own = z.gather(1, y[:, None])
    return (own - z.scatter(1, y[:, None], -torch.inf)).amin(1)


@dataclass(frozen=True)
class Exact:
    """A network, examples and their exact worst margins."""

    name: str
    net: nn.Sequential
    x: Tensor
    y: Tensor
    threat: Threat
    worst: Tensor
    points: Tensor
    broken: dict[str, Tensor] = field(default_factory=dict)


SHAPES = [  # inputs, hidden layers, classes, whether it is trained, Linf and L1 radius
    (2, (8,), 2, False, 0.15, 0.25),
    (2, (6, 6), 3, True, 0.10, 0.15),
    (3, (5, 5), 4, False, 0.12, 0.3),
    (4, (8, 8), 3, True, 0.10, 0.3),
    (5, (8,), 3, False, 0.10, 0.3),
    (6, (8, 8), 4, True, 0.04, 0.12),
    (6, (7, 4), 2, False, 0.08, 0.3),
]  # fmt: skip


def network(seed: int, inputs: int, hidden: tuple[int, ...], classes: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (inputs, *hidden)
        layers = [m for pair in zip(sizes, hidden) for m in (nn.Linear(*pair), nn.ReLU())]  # noqa: B905
        net = nn.Sequential(*layers, nn.Linear(sizes[-1], classes)).double()
        for layer in net[::2]:
            nn.init.normal_(layer.weight, std=1.5 * layer.in_features**-0.5)
            nn.init.normal_(layer.bias, std=0.5)
    with torch.no_grad():
        centre = net(torch.full((1, inputs), 0.5, dtype=torch.float64))[0]
        net[-1].bias -= centre  # so that every class has its share
    return net


def train(net: nn.Sequential, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()


def made(seed: int, norm: str, count: int) -> Exact:
    inputs, hidden, classes, trained, eps, eps_l1 = SHAPES[seed]
    net = network(seed, inputs, hidden, classes)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count + 200, inputs, generator=generator, dtype=torch.float64)
    if trained:  # on classes that wind through the cube
        y = ((x.sum(1) * 2 + (3 * x[:, 0]).sin()) % classes).long()
        train(net, x[count:], y[count:])
    x = (x[:count] * 1.2 - 0.1).clamp(0, 1)  # some inputs lie on the border
    y = net(x).argmax(1)
    threat = Linf(eps) if norm == "linf" else L1(eps_l1)
    worst, points = exact(net, x, y, threat)
    name = f"{norm}-{inputs}-{'-'.join(map(str, hidden))}-{classes}"
    return Exact(name, net.requires_grad_(False), x, y, threat, worst, points)


@pytest.fixture(scope="module")
def solved() -> dict[str, list[Exact]]:
    return {
        norm: [made(seed, norm, COUNT) for seed in range(len(SHAPES))] for norm in ("linf", "l1")
    }


ATTACKS: dict[str, Callable[[], Attack]] = {
    "pgd": lambda: PGD(steps=40, restarts=5, loss="margin"),
    "pgd-ce": lambda: PGD(steps=40, restarts=2),
    "apgd-ce": APGDCE,
    "apgd-t": APGDT,
    "fab-t": FABT,
    "square": lambda: Square(queries=500),
}


def broken_by(case: Exact, name: str) -> Tensor:
    """Tell which examples an attack breaks; it runs once."""
    if name not in case.broken:
        x_adv = ATTACKS[name]()(case.net, case.x, case.y, case.threat)
        assert case.threat.contains(case.x, x_adv).all()
        case.broken[name] = margins(case.net, x_adv, case.y) < 0
    return case.broken[name]


NORMS = pytest.mark.parametrize("norm", ["linf", "l1"])


@pytest.mark.slow
@NORMS
def test_the_program_is_exact(solved, norm):
    for case in solved[norm]:
        # Its bound is attained by the network itself, at a point that is allowed...
        attained = margins(case.net, case.points, case.y)
        assert (attained - case.worst).abs().max() < SURE, case.name
        distance = case.threat.distance(case.x, case.points)
        assert (distance <= case.threat.eps + SURE).all()
        assert ((case.points >= -SURE) & (case.points <= 1 + SURE)).all()
        # ... and by no point of a dense sample beneath it.
        sample = sampled(case, 3000)
        lowest = torch.stack([margins(case.net, points, case.y) for points in sample]).amin(0)
        assert (lowest >= case.worst - SURE).all(), case.name
        if case.x.shape[1] == 2:  # dense indeed
            assert (lowest - case.worst).max() < 0.1, case.name
        assert 2 <= (case.worst > SURE).sum() <= COUNT - 2, case.name


def sampled(case: Exact, count: int) -> Tensor:
    """Return points of the ball and the box, (count, N, D); for Linf, many are corners."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, *case.x.shape)
    noise = 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1
    if case.threat.norm == "linf":
        noise[::2] = noise[::2].sign()
        return (case.x + case.threat.eps * noise).clamp(0, 1)
    # Uniform in the L1 ball, by ordered gaps; a third on its axes, where the corners are.
    gaps = torch.rand((*shape[:2], shape[2] + 1), generator=generator, dtype=torch.float64)
    gaps = -gaps.log()
    parts = (gaps / gaps.sum(-1, keepdim=True))[..., :-1]
    axis = torch.randint(shape[2], shape[:2], generator=generator)
    parts[::3] = nn.functional.one_hot(axis, shape[2]).double()[::3]
    return (case.x + case.threat.eps * parts * noise.sign()).clamp(0, 1)


@pytest.mark.slow
@NORMS
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_breaks_an_exactly_robust_point(solved, norm, name):
    found = breakable = 0
    for case in solved[norm]:
        broken = broken_by(case, name)
        assert not broken[case.worst > SURE].any(), case.name
        found += int(broken[case.worst < -SURE].sum())
        breakable += int((case.worst < -SURE).sum())
    assert breakable >= 50
    assert found >= 0.8 * breakable, f"{found} of {breakable}"


@pytest.mark.slow
@NORMS
def test_the_attacks_together_break_nearly_all_that_can_be_broken(solved, norm):
    found = breakable = 0
    missed: list[tuple[str, float]] = []
    for case in solved[norm]:
        together = torch.stack([broken_by(case, name) for name in ATTACKS]).any(0)
        wanted = case.worst < -SURE
        assert (~together).sum() >= (case.worst > SURE).sum()
        found += int((together & wanted).sum())
        breakable += int(wanted.sum())
        missed += [(case.name, round(v, 5)) for v in case.worst[wanted & ~together].tolist()]
    assert found >= breakable - 1, f"{found} of {breakable}; missed {missed}"
