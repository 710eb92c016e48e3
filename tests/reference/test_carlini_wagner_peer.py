"""Carlini and Wagner's attack against that of foolbox."""

import warnings

import pytest

from equipoise.attacks.carlini_wagner import CarliniWagnerL2
from equipoise.threat import L2

pytestmark = pytest.mark.extras

THREAT = L2(0.5)


def test_the_shortest_way_is_as_short_as_that_of_a_peer(robust_digits):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"foolbox\.")
        reason = "foolbox is missing: pip install -e '.[peers]'"
        foolbox = pytest.importorskip("foolbox", reason=reason)
    net, x, y = robust_digits
    x, y = x[:30], y[:30]
    settings = {"binary_search_steps": 6, "steps": 150, "initial_const": 1e-2, "confidence": 0}
    peer = foolbox.attacks.L2CarliniWagnerAttack(stepsize=0.05, **settings)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    x_adv, _, fooled = peer(model, x, y, epsilons=None)
    expected = THREAT.distance(x, x_adv)
    found = CarliniWagnerL2(lr=0.05, **settings).nearest(net, x, y, THREAT)[1]
    both = fooled & found.isfinite()
    assert found.isfinite().sum() >= fooled.sum()
    assert both.sum() >= 28
    assert found[both].mean() <= 1.02 * expected[both].mean()
    assert ((found - expected)[both] <= 0.05 * expected[both] + 1e-6).float().mean() >= 0.9
