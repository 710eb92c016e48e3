"""Auto-PGD against the authors' code, as pyautoattack distributes it.

From identical starts the two take identical steps. Both run in float64 on a smooth network, so
that the sign of a gradient is not a matter of rounding. The peer casts to float32 by hand; while
it runs, ``float()`` means ``double()``. The L1 start is drawn by the peer, which gets the numbers
of ours.

On a network of ReLUs in float32 the two agree as far as chance lets them.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import APGD, APGDCE, APGDDLR, APGDT, _start
from equipoise.draws import KeyedDraws
from equipoise.losses import cross_entropy, dlr, margin
from equipoise.threat import L1, L2, Linf, Threat
from problems import digits, held_out

pytestmark = pytest.mark.extras

LOSSES = {"ce": cross_entropy, "dlr": dlr}

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"pyautoattack\.")
        reason = "pyautoattack is missing: pip install -e '.[peers]'"
        pytest.importorskip("pyautoattack", reason=reason)
        return pytest.importorskip("pyautoattack.autopgd_base", reason=reason)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the peer run in float64."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Rounded(nn.Module):
    """Rounds logits to 1e-9, but not their gradients.

    An iterate that stays where it was has its loss again. Without this, whether the loss "grew"
    would hang on rounding, which depends on the size of the batch.
    """

    def forward(self, logits: Tensor) -> Tensor:
        return logits + ((logits * 1e9).round() / 1e9 - logits).detach()


@pytest.fixture(scope="module")
def smooth() -> nn.Module:
    """Return a smooth network of float64 after 150 steps on digits."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.Softplus(),
            nn.Flatten(),
            nn.Linear(128, 32),
            nn.Tanh(),
            nn.Linear(32, 10),
        )
    x, y = digits()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(150):
        index = torch.randint(1200, (64,), generator=generator)
        loss = nn.functional.cross_entropy(net(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return nn.Sequential(net, Rounded()).double().requires_grad_(False).eval()


def visited(model: nn.Module, search: Callable[[], object]) -> tuple[list[Tensor], object]:
    """Return the inputs of every forward pass, and what the search returns."""
    points: list[Tensor] = []
    hook = model.register_forward_hook(
        lambda _module, inputs, _out: points.append(inputs[0].detach().clone())
    )
    try:
        return points, search()
    finally:
        hook.remove()


def noise_of(x: Tensor, target: int = 0) -> Tensor:
    """Return the numbers from which the default draws make the first start."""
    draws = KeyedDraws.of(x).child("restart 0")
    return [draws.uniform(x) for _ in range(target + 1)][-1]


def still_open(model: nn.Module, points: list[Tensor], y: Tensor) -> list[Tensor]:
    """Return which examples are undecided before each of the points."""
    open_now = torch.ones_like(y, dtype=torch.bool)
    found = []
    for now in points:
        found.append(open_now)
        open_now = open_now & (model(now).argmax(1) == y)
    return found


def assert_same_path(ours: list[Tensor], peers: list[Tensor], open_at: list[Tensor]) -> None:
    """Check that ours went where the peer went, with the undecided examples alone."""
    assert len(ours) == sum(bool(alive.any()) for alive in open_at)
    for step, now in enumerate(ours):
        gap = (now - peers[step][open_at[step]]).abs().max().item()
        assert gap <= 1e-6, f"step {step}: {gap}"


def peers_attack(peer: ModuleType, net: nn.Module, threat: Threat, loss: str, steps: int):
    options = {"n_iter": steps, "norm": NAMES[threat.norm], "eps": threat.eps, "device": "cpu"}
    if loss == "dlr-targeted":
        return peer.APGDAttack_targeted(net, **options)
    return peer.APGDAttack(net, loss=loss, **options)


def sample(norm: str, count: int = 60) -> tuple[Tensor, Tensor]:
    """Return inputs; for L2 and L1 so that the ball does not leave the box.

    For L2 the peer projects onto the ball, then onto the box: the exact projection only where
    the box is not met.
    """
    x, y = held_out(count)
    return (x if norm != "l2" else 0.4 * x + 0.3).double(), y


PATHS = [
    (Linf(0.08), 1),
    (Linf(0.08), 2),
    (Linf(0.08), 7),
    (Linf(0.08), 20),
    (Linf(0.08), 100),
    (Linf(0.2), 50),
    (L2(0.29), 1),
    (L2(0.29), 7),
    (L2(0.2), 20),
]


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("threat", "steps"), PATHS, ids=str)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_every_step_is_the_peers(peer, smooth, threat, steps, loss):
    x, y = sample(threat.norm)
    start = _start(threat, x, noise_of(x))
    attack = peers_attack(peer, smooth, threat, loss, steps)
    attack.init_hyperparam(x)
    theirs, (x_best, correct, loss_best, _) = visited(
        smooth, lambda: attack.attack_single_run(x, y, x_init=start)
    )
    ours, x_adv = visited(smooth, lambda: APGD(steps=steps, loss=loss)(smooth, x, y, threat))
    losses = torch.stack([LOSSES[loss](smooth(now), y) for now in theirs])
    assert_same_path(ours, theirs, still_open(smooth, theirs, y))
    assert ((losses.amax(0) - loss_best).abs() <= 1e-6 * loss_best.abs().clamp_min(1)).all()
    best = torch.stack(theirs)[losses.argmax(0), range(len(y))]
    assert (best - x_best)[correct > 0].abs().max() <= 1e-6
    assert_kept(smooth, x_adv, theirs, y)
    assert torch.equal((smooth(x_adv).argmax(1) == y), (correct > 0))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_a_long_search_has_the_peers_losses_where_rounding_chooses_among_equal_points(
    peer, smooth, loss
):
    """Return to "the best so far" at step 22: points of equal loss may be 1e-6 apart."""
    threat, (x, y) = L2(0.2), sample("l2")
    attack = peers_attack(peer, smooth, threat, loss, 50)
    attack.init_hyperparam(x)
    start = _start(threat, x, noise_of(x))
    theirs, (_, correct, _, _) = visited(
        smooth, lambda: attack.attack_single_run(x, y, x_init=start)
    )
    ours, x_adv = visited(smooth, lambda: APGD(steps=50, loss=loss)(smooth, x, y, threat))
    open_at = still_open(smooth, theirs, y)
    assert len(ours) == len(theirs) == 51
    for step, (now, peers, alive) in enumerate(zip(ours, theirs, open_at, strict=True)):
        if step < 22:
            assert (now - peers[alive]).abs().max() <= 1e-6
        gap = LOSSES[loss](smooth(now), y[alive]) - LOSSES[loss](smooth(peers[alive]), y[alive])
        assert gap.abs().max() <= 1e-5, step
    assert torch.equal((smooth(x_adv).argmax(1) == y), (correct > 0))


def assert_kept(model: nn.Module, x_adv: Tensor, path: list[Tensor], y: Tensor) -> None:
    """Check that of a path the first misclassified or else the nearest point came back."""
    margins = torch.stack([margin(model(now), y) for now in path])
    wrong = margins > 0
    chosen = torch.where(wrong.any(0), wrong.int().argmax(0), margins.argmax(0))
    kept = torch.stack(path)[chosen, range(len(y))]
    assert (x_adv - kept).abs().max() <= 1e-6


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("threat", [Linf(0.08), L2(0.2)], ids=repr)
@pytest.mark.parametrize("rank", [0, 2, 8])
def test_every_step_towards_a_target_is_the_peers(peer, smooth, threat, rank):
    x, y = sample(threat.norm)
    right = smooth(x).argmax(1) == y
    x, y = x[right], y[right]
    attack = peers_attack(peer, smooth, threat, "dlr-targeted", 40)
    attack.init_hyperparam(x)
    attack.y_target = smooth(x).argsort(1)[:, -2 - rank]
    start = _start(threat, x, noise_of(x, rank))
    theirs, _ = visited(smooth, lambda: attack.attack_single_run(x, y, x_init=start))
    count = rank + 1
    ours, _ = visited(smooth, lambda: APGD(steps=40, targets=count)(smooth, x, y, threat))
    alive = torch.arange(len(y))
    for step, now in enumerate(ours[1:]):  # the first is the clean pass
        assert len(now) == len(alive) * count
        gap = (now[rank::count] - theirs[step][alive]).abs().max().item()
        assert gap <= 1e-6, f"step {step}: {gap}"
        wrong = smooth(now).argmax(1) != y[alive].repeat_interleave(count)
        alive = alive[~wrong.view(-1, count).any(1)]
    assert len(alive) > 5


# --- L1 ---


@pytest.mark.usefixtures("double")  # its sums of float32 are off by more
@pytest.mark.parametrize("eps", [0.3, 2.0, 12.0])
@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_l1_projections_agree(peer, eps, size):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(50, 3, 8, 9, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    delta = size * torch.randn(x.shape, generator=generator)
    expected = x + delta + peer.L1_projection(x, delta, eps)
    assert (L1(eps).project(x, x + delta) - expected).abs().max() <= 1e-9


def normal_noise(x: Tensor) -> Tensor:
    """Return the Gaussian noise that ours draws for the first start."""
    return math.sqrt(2) * torch.erfinv((2 * noise_of(x) - 1).clamp(-1 + 2**-24, 1 - 2**-24))


@pytest.fixture
def exact_counts(peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the peer count changed pixels as ours does: rounding is no change."""
    monkeypatch.setattr(peer, "L0_norm", lambda z: (z.abs() > 1e-7).flatten(1).sum(1))


@pytest.mark.usefixtures("double", "exact_counts")
@pytest.mark.parametrize("eps", [0.3, 1.0])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
@pytest.mark.parametrize("steps", [7, 60])
def test_every_sparse_step_is_the_peers(peer, smooth, monkeypatch, eps, loss, steps):
    x, y = sample("l1")
    noise = normal_noise(x)
    monkeypatch.setattr(torch, "randn", lambda _shape: noise.clone())
    attack = peers_attack(peer, smooth, L1(eps), loss, steps)
    attack.init_hyperparam(x)
    theirs, _ = visited(smooth, lambda: attack.attack_single_run(x, y))
    search = APGD(steps=steps, loss=loss, largereps=False)
    ours, x_adv = visited(smooth, lambda: search(smooth, x, y, L1(eps)))
    assert_same_path(ours, theirs, still_open(smooth, theirs, y))
    assert_kept(smooth, x_adv, theirs, y)


@pytest.mark.usefixtures("double", "exact_counts")
@pytest.mark.parametrize("steps", [5, 20, 50, 100])
def test_every_sparse_step_from_larger_balls_is_the_peers(peer, smooth, monkeypatch, steps):
    # On the cross-entropy: where the label comes third, the ratio is 1 and has no gradient.
    x, y, eps = *sample("l1"), 0.5
    noise = normal_noise(x)
    monkeypatch.setattr(torch, "randn_like", lambda _x: noise.clone())
    attack = peers_attack(peer, smooth, L1(eps), "ce", steps)
    attack.init_hyperparam(x)
    part = math.ceil(0.3 * steps)
    radii, parts = [3 * eps, 2 * eps, eps], [part, part, steps - 2 * part]
    theirs, _ = visited(smooth, lambda: attack.decr_eps_pgd(x, y, radii, parts))
    ours, x_adv = visited(smooth, lambda: APGD(steps=steps)(smooth, x, y, L1(eps)))
    wide = 2 * part + 2  # passes in the larger balls, where nothing is decided
    open_at = [torch.ones_like(y, dtype=torch.bool)] * wide
    open_at += still_open(smooth, theirs[wide:], y)
    assert len(theirs) == steps + 3
    assert_same_path(ours, theirs, open_at)
    assert_kept(smooth, x_adv, theirs[wide:], y)


# --- robust accuracies ---


def verdicts(peer: ModuleType, net: nn.Module, x: Tensor, y: Tensor, threat: Threat, name: str,
             seed: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return which images withstand our attack, and which the peer's."""
    right = net(x).argmax(1) == y
    source = KeyedDraws.of(x[right], seed)
    ours = right.clone()
    x_adv = ATTACKS[name](net, x[right], y[right], threat, draws=source)
    ours[right] = net(x_adv).argmax(1) == y[right]
    loss = "dlr-targeted" if name == "apgd-t" else name.removeprefix("apgd-")
    attack = peers_attack(peer, net, threat, loss, 100)
    attack.seed, attack.use_largereps = seed, threat.norm == "l1"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*zero gradient", category=Warning)
        x_adv = attack.perturb(x.clone(), y.clone())
    assert threat.contains(x, x_adv).all()
    return ours, right & (net(x_adv).argmax(1) == y)


ATTACKS = {"apgd-ce": APGDCE(), "apgd-dlr": APGDDLR(), "apgd-t": APGDT()}


@pytest.mark.parametrize(
    ("name", "threat", "seeds"),
    [(name, Linf(0.15), 3) for name in ATTACKS]
    + [(name, L2(0.7), 1) for name in ATTACKS]
    + [("apgd-ce", L1(1.5), 1)],
    ids=str,
)
def test_robust_accuracies_agree_with_the_peers(peer, robust_digits, name, threat, seeds):
    """To one point of the 500 images' mean; for L1, where chance decides more of them, three."""
    net, x, y = robust_digits
    pairs = [verdicts(peer, net, x, y, threat, name, seed) for seed in range(seeds)]
    ours, theirs = (torch.stack(side) for side in zip(*pairs, strict=True))
    gap = 100 * (ours.double().mean() - theirs.double().mean()).item()
    apart = [(ours[k] != theirs[k]).nonzero()[:, 0].tolist() for k in range(seeds)]
    print(f"{name} {threat}: ours {100 * ours.double().mean():.2f}, gap {gap:+.2f}", apart)
    limit = 3 if threat.norm == "l1" else 1
    assert abs(gap) <= limit, f"{gap:+.2f} points; images apart, by seed: {apart}"
    assert 0.05 < ours.double().mean() < 0.9
