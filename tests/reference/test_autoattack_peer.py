"""The whole ensemble against the authors' code, on the same model, images and radius."""

import warnings
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

import equipoise as eq

pytestmark = pytest.mark.extras


@pytest.fixture(scope="module")
def theirs(robust_digits) -> Callable[[str, float, int], Tensor]:
    """Return the authors' verdicts on the first n images, once for each setting."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        peer = pytest.importorskip("pyautoattack", reason="pip install -e '.[peers]'")

    @cache
    def verdicts(norm: str, eps: float, n: int) -> Tensor:
        model, x, y = robust_digits
        with torch.random.fork_rng([]):
            attack = peer.AutoAttack(model, norm=norm, eps=eps, seed=0, device="cpu")
            attack.verbose = False
            x_adv, _ = attack.run_standard_evaluation(x[:n], y[:n], batch_size=500)
        with torch.no_grad():
            return model(x_adv).argmax(1) == y[:n]

    return verdicts


@pytest.mark.parametrize(
    ("norm", "theirs_norm", "eps", "n", "precision"),
    [
        ("linf", "Linf", 0.15, 500, "float32"),
        ("linf", "Linf", 0.15, 500, "bfloat16"),
        ("l2", "L2", 0.8, 150, "float32"),
        ("l1", "L1", 1.2, 100, "float32"),
    ],
)
def test_the_ensemble_is_at_least_as_strong(
    theirs, robust_digits, norm, theirs_norm, eps, n, precision
):
    model, x, y = robust_digits
    x, y = x[:n], y[:n]
    expected = theirs(theirs_norm, eps, n)
    result = eq.evaluate(
        model,
        x,
        y,
        threat=eq.Threat(norm, eps),
        attacks="autoattack",
        precision=precision,
        batch_size=500,
        checks=False,
    )
    only_they = (result.robust & ~expected).nonzero()[:, 0].tolist()
    only_we = (~result.robust & expected).nonzero()[:, 0].tolist()
    said = f"broken by the peer alone: {only_they}; by us alone: {only_we}"
    above = result.robust_accuracy - float(expected.double().mean())
    assert above <= max(0.003, 1.01 / n), said
    assert 0.05 < result.robust_accuracy < 0.95
