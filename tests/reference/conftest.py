"""What the reference tests share: a small network that is robust in part, and unseen images.

Where a peer is missing its tests are skipped; with EQUIPOISE_REQUIRE_PEERS, as ``make
test-extras`` has it, they fail.
"""

import os

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name everybody uses

from benchmarks import peers
from equipoise.attacks import PGD
from equipoise.data import load
from equipoise.draws import GeneratorDraws
from equipoise.threat import Linf

EPS, STEPS, BATCH = 0.15, 600, 64


@pytest.fixture(scope="session", autouse=True)
def required() -> None:
    """Fail where a peer is missing that has to be there."""
    if os.environ.get("EQUIPOISE_REQUIRE_PEERS"):
        _, absent = peers.found(peers.INSTALL)
        assert not absent, absent


@pytest.fixture(scope="session")
def robust_digits() -> tuple[nn.Module, Tensor, Tensor]:
    """Return an adversarially trained network, and 500 digits that it was not trained on.

    Training: PGD-AT at eps 0.15 (Linf), 7 steps. Nearly all images are classified well, and
    about two in three withstand PGD-20: an attack has points of both kinds to decide. The
    network is shared: whoever changes it works on a deep copy.
    """
    data = load("digits")
    x, y = data.train.x.float() / 255, data.train.y
    generator = torch.Generator().manual_seed(0)
    draws = GeneratorDraws(generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 32, 4, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(288, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    attack = PGD(steps=7, keep="last")
    optimizer = torch.optim.Adam(net.parameters())
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, STEPS)
    for _ in range(STEPS):
        index = torch.randint(len(x), (BATCH,), generator=generator)
        x_adv = attack(net, x[index], y[index], Linf(EPS), draws=draws)
        loss = F.cross_entropy(net(x_adv), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    for parameter in net.parameters():
        parameter.grad = None
    return net.eval(), data.test.x.float() / 255, data.test.y
