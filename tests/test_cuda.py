"""A CUDA device against the CPU: `benchmarks/gpu.sh` runs these tests on a machine with a GPU.

``EQUIPOISE_TEST_DEVICE=cpu`` runs them on the CPU, so that the tests themselves are tried.
"""

import os
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch

import equipoise as eq
from equipoise.attacks import parse
from equipoise.data.core import Images
from equipoise.evaluation.judge import Judge
from equipoise.execution import Execution, fast
from equipoise.jobs.device import cuda_devices, deterministic
from equipoise.settings import recipe
from equipoise.training import Training
from equipoise.training.watch import Interrupted, Watch
from problems import digits, held_out, small_layers, small_net

DEVICE = os.environ.get("EQUIPOISE_TEST_DEVICE", "cuda")
THREAT = eq.Linf(0.1)

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not cuda_devices(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def same_bits_each_time():
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    deterministic()
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = before


def evaluated(device: str, attacks: str, **options: Any) -> Any:
    x, y = held_out(200)
    model = deepcopy(small_net()).to(device)
    given = {"threat": THREAT, "attacks": attacks, "precision": "float32"} | options
    return eq.evaluate(model, x.to(device), y.to(device), **given)


@pytest.mark.parametrize("attacks", ["pgd-10", "square(queries=50)", "autoattack"])
def test_verdicts_are_those_of_the_cpu(attacks):
    there, here = evaluated(DEVICE, attacks), evaluated("cpu", attacks)
    assert torch.equal(there.correct.cpu(), here.correct)
    differ = (there.robust.cpu() != here.robust).nonzero()[:, 0]
    # The sums of a convolution are ordered otherwise on a GPU: a search may end elsewhere.
    assert len(differ) <= 2, f"{len(differ)} of 200 verdicts differ: {differ.tolist()}"
    assert 0.05 < here.robust.float().mean() < 0.95


def test_an_example_found_on_one_device_is_one_on_the_other():
    found = evaluated(DEVICE, "apgd-ce")
    x, y = found.x_adv.cpu(), held_out(200)[1]
    here = Judge(small_net()).rule(x, y)
    there = Judge(deepcopy(small_net()).to(DEVICE)).rule(x.to(DEVICE), y.to(DEVICE))
    near = here.margin.abs() < 1e-4
    assert torch.equal(there.fooled.cpu()[~near], here.fooled[~near])
    assert torch.allclose(there.margin.cpu(), here.margin, atol=1e-4)
    assert near.sum() < 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_evaluation_repeats_bit_for_bit(precision):
    options = {"precision": precision}
    first, again = (evaluated(DEVICE, "pgd-10", **options) for _ in range(2))
    assert torch.equal(first.x_adv, again.x_adv)
    assert torch.equal(first.robust, again.robust)


METHODS = {
    "pgd-at": {"attack": {"steps": 2}},
    "generalist": {"robust": {"attack": {"steps": 2}}, "every": 1},
}


def training(method: str, precision: str = "float32") -> Training:
    x, y = digits()
    pixels = (x[:400] * 255).round().to(torch.uint8)
    images = Images(pixels, y[:400]).to(DEVICE)
    parsed = recipe.parse({"method": method, "rounds": 3, "batch_size": 50} | METHODS[method])
    nothing = dict.fromkeys(
        ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss"), 0.0
    )
    how: Any = {"precision": precision, "update": precision}
    return Training(
        method=parsed.settings.build(THREAT),
        model=small_layers(0),
        images=images,
        rounds=parsed.rounds,
        batch_size=parsed.batch_size,
        seed=0,
        validate=lambda model, threat: nothing,
        value=lambda metrics: 0.0,
        execution=Execution(**how),
    )


def weights(job: Training) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in job.merged_state().items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_is_resumed_ends_with_the_same_bits(method, precision, tmp_path):
    whole, begun = training(method, precision), training(method, precision)
    whole.run()
    steps: list[int] = []
    begun.watch = Watch(step=steps.append, stop=lambda: len(steps) == 11)
    with pytest.raises(Interrupted):
        begun.run()
    torch.save(begun.state_dict(), tmp_path / "state.pt")
    rest = training(method, precision)
    state = torch.load(tmp_path / "state.pt", weights_only=True, map_location=DEVICE)
    rest.load_state_dict(state)
    rest.run()
    ended, expected = weights(rest), weights(whole)
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    assert any((ended[k] != v).any() for k, v in small_layers(0).state_dict().items())


@pytest.mark.filterwarnings("ignore:<class 'torch.autograd:DeprecationWarning")
@pytest.mark.parametrize("attack", ["pgd-10", "pgd-10(keep=last)"])
def test_a_compiled_search_is_the_plain_one(attack, monkeypatch):
    if DEVICE == "cpu":  # traced and differentiated alike, but without a compiler
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    x, y = (tensor.to(DEVICE) for tensor in held_out(64))
    model = deepcopy(small_net()).to(DEVICE)
    found = parse(attack)
    plain, graph = (
        found(fast(model, x, Execution(precision="float32", compile=compiled)), x, y, THREAT)
        for compiled in (False, True)
    )
    judge = Judge(model)
    differ = judge.rule(plain, y).fooled != judge.rule(graph, y).fooled
    assert differ.sum() <= 1
    assert (plain - x).abs().max() <= THREAT.eps + 1e-6
    assert (plain - graph).abs().mean() < 0.01
