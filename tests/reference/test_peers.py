"""Against independent implementations: without a random start the attacks are deterministic.

Both sides run in float64, so that the sign of a gradient is not a matter of rounding.
"""

import copy
import warnings
from types import ModuleType

import pytest
from torch import Tensor, nn

from equipoise.attacks import FGSM, PGD
from equipoise.threat import L2, Linf
from problems import held_out, small_net

pytestmark = pytest.mark.extras

SETTINGS = [(1, 0.1, 0.1), (3, 0.05, 0.02), (10, 0.1, 0.025), (25, 0.2, 0.01)]  # steps, eps, step


def peer(name: str, remedy: str) -> ModuleType:
    """Import a peer, or skip with the way to install it; its own deprecations are not ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=rf"{name}\.")
        return pytest.importorskip(name, reason=f"{name} is missing: {remedy}")


@pytest.fixture(scope="module")
def foolbox() -> ModuleType:
    return peer("foolbox", "pip install -e '.[peers]'")


@pytest.fixture(scope="module")
def torchattacks() -> ModuleType:
    return peer("torchattacks", "pip install --no-deps torchattacks==3.5.1")


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    x, y = held_out(60)
    return copy.deepcopy(small_net()).double(), x.double(), y


def away_from_the_border() -> tuple[nn.Module, Tensor, Tensor]:
    """Return inputs that an L2 ball of radius 0.2 does not carry out of the box.

    The peers project onto the ball and then onto the box, which is the exact projection only
    where the box is not met.
    """
    net, x, y = problem()
    return net, 0.5 * x + 0.25, y


@pytest.mark.parametrize(("steps", "eps", "step_size"), SETTINGS)
def test_linf_pgd_agrees_with_foolbox(foolbox, steps, eps, step_size):
    net, x, y = problem()
    attack = foolbox.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    expected = attack.run(model, x, y, epsilon=eps)
    ours = PGD(steps=steps, step_size=step_size, start="zero", keep="last")(net, x, y, Linf(eps))
    assert (ours - expected).abs().max() <= 1e-6
    assert (ours - x).abs().amax() > 0.9 * min(eps, steps * step_size)


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.2), (5, 0.1), (20, 0.05)])
def test_l2_pgd_agrees_with_foolbox(foolbox, steps, step_size):
    net, x, y = away_from_the_border()
    attack = foolbox.attacks.L2PGD(abs_stepsize=step_size, steps=steps, random_start=False)
    model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
    expected = attack.run(model, x, y, epsilon=0.2)
    ours = PGD(steps=steps, step_size=step_size, start="zero", keep="last")(net, x, y, L2(0.2))
    assert expected.min() > 0
    assert expected.max() < 1
    assert (ours - expected).abs().max() <= 1e-6


@pytest.mark.parametrize(("steps", "eps", "step_size"), SETTINGS)
def test_linf_pgd_agrees_with_torchattacks(torchattacks, steps, eps, step_size):
    net, x, y = problem()
    attack = torchattacks.PGD(net, eps=eps, alpha=step_size, steps=steps, random_start=False)
    ours = PGD(steps=steps, step_size=step_size, start="zero", keep="last")(net, x, y, Linf(eps))
    assert (ours - attack(x, y)).abs().max() <= 1e-6


@pytest.mark.parametrize(("steps", "step_size"), [(1, 0.2), (5, 0.1), (20, 0.05)])
def test_l2_pgd_agrees_with_torchattacks(torchattacks, steps, step_size):
    net, x, y = away_from_the_border()
    attack = torchattacks.PGDL2(
        net, eps=0.2, alpha=step_size, steps=steps, random_start=False, eps_for_division=0
    )
    ours = PGD(steps=steps, step_size=step_size, start="zero", keep="last")(net, x, y, L2(0.2))
    assert (ours - attack(x, y)).abs().max() <= 1e-6


@pytest.mark.parametrize("steps", [1, 5, 10])
def test_mi_fgsm_agrees_with_torchattacks(torchattacks, steps):
    # It divides by the mean instead of the sum of |g|: the same direction for one image size.
    net, x, y = problem()
    attack = torchattacks.MIFGSM(net, eps=0.1, alpha=0.1 / steps, steps=steps, decay=1.0)
    ours = PGD(steps=steps, step_factor=1, start="zero", momentum=1.0, keep="last")
    assert (ours(net, x, y, Linf(0.1)) - attack(x, y)).abs().max() <= 1e-6


@pytest.mark.parametrize("eps", [8 / 255, 0.3])
def test_fgsm_agrees_with_torchattacks(torchattacks, eps):
    net, x, y = problem()
    expected = torchattacks.FGSM(net, eps=eps)(x, y)
    assert (FGSM()(net, x, y, Linf(eps)) - expected).abs().max() <= 1e-6
