"""FAB against the authors' code, as pyautoattack distributes it.

The first search of both is deterministic, so that one run says all. Two things differ on
purpose: ours ends the search of all targets with the first that is found, and tries in the end
the nearest points beyond the radius, brought back to it, which fools an image now and then.
"""

import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from equipoise.attacks.fab import FAB, FABT
from equipoise.attacks.fab_projections import project
from equipoise.threat import L1, L2, Linf, Threat

pytestmark = pytest.mark.extras

NAMES = {"linf": "Linf", "l2": "L2", "l1": "L1"}
CASES = [(Linf(0.15), 200, 50), (L2(0.6), 150, 50), (L1(1.2), 150, 50)]  # images, steps


def peer(name: str) -> ModuleType:
    """Import a module of the peer, or skip; its own deprecations are not ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"pyautoattack\.")
        reason = "pyautoattack is missing: pip install -e '.[peers]'"
        return pytest.importorskip(f"pyautoattack.{name}", reason=reason)


def planes(size: int, far: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return points, some on the border, gradients and values of affine functions."""
    generator = torch.Generator().manual_seed(size)
    points = (torch.rand(200, size, generator=generator) * 1.4 - 0.2).clamp(0, 1)
    w = torch.randn(200, size, generator=generator)
    w[:, :: size // 3] = 0
    return points, w, far * torch.randn(200, generator=generator) * w.norm(dim=1)


@pytest.mark.parametrize("norm", NAMES)
@pytest.mark.parametrize("far", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("size", [6, 64, 784])
def test_projections_agree(norm, far, size):
    points, w, value = (tensor.double() for tensor in planes(size, far))
    theirs = getattr(peer("fab_projections"), f"projection_{norm}")
    expected = theirs(points, w, (w * points).sum(1) - value)
    assert (project(points, w, value, norm) - expected).abs().max() <= 1e-7
    single = project(points.float(), w.float(), value.float(), norm)
    assert (single - expected).abs().max() <= 1e-5
    assert (expected != 0).any(1).all()


def reference(net: nn.Module, threat: Threat, steps: int, *, targeted: bool) -> object:
    make = peer("fab_pt").FABAttack_PT
    name = NAMES[threat.norm]
    return make(net, norm=name, n_iter=steps, eps=threat.eps, targeted=targeted, device="cpu")


@pytest.mark.parametrize(("threat", "count", "steps"), CASES, ids=lambda value: repr(value))
@pytest.mark.parametrize("targeted", [True, False])
def test_verdicts_agree(robust_digits, threat, count, steps, targeted):
    net, x, y = robust_digits
    x, y = x[:count], y[:count]
    attack = reference(net, threat, steps, targeted=targeted)
    expected = net(attack.perturb(x, y)).argmax(1) == y
    ours = FABT(steps=steps) if targeted else FAB(steps=steps)
    x_adv = ours(net, x, y, threat)
    found = net(x_adv).argmax(1) == y
    brought_back = ~found & (threat.distance(x, x_adv) > threat.eps * (1 - 1e-5))
    differ = (found != expected).nonzero()[:, 0].tolist()
    robust, peers = found.float().mean().item(), expected.float().mean().item()
    message = f"{robust:.4f} against {peers:.4f} robust; the images {differ} differ"
    assert abs((found | brought_back).float().mean().item() - peers) <= 0.01, message
    assert -0.02 <= robust - peers <= 0.01, message
    assert len(differ) <= 0.02 * count, message
    assert 0.1 < peers < 0.9


@pytest.mark.parametrize(("threat", "count", "steps"), CASES, ids=lambda value: repr(value))
@pytest.mark.parametrize("targeted", [True, False])
def test_distances_agree(robust_digits, threat, count, steps, targeted):
    net, x, y = robust_digits
    x, y = x[:60], y[:60]
    attack = reference(net, threat, 30, targeted=targeted)
    expected = torch.full((60,), torch.inf, dtype=torch.float64)
    for target in range(2, 11) if targeted else (None,):
        attack.target_class = target
        x_adv = attack.attack_single_run(x, y, is_targeted=targeted)
        fooled = net(x_adv).argmax(1) != y
        distance = threat.distance(x, x_adv).masked_fill(~fooled, torch.inf)
        expected = torch.minimum(expected, distance)
    ours = FABT(steps=30) if targeted else FAB(steps=30)
    found = ours.nearest(net, x, y, threat)[1]
    assert torch.equal(found.isfinite(), expected.isfinite())
    both = found.isfinite()
    assert both.sum() >= 55
    assert found[both].mean() <= 1.01 * expected[both].mean()
    close = (found - expected)[both].abs() <= 0.01 * expected[both]
    assert close.float().mean() >= 0.8
