"""The peers: other people's code for the same work, where it is installed."""

import importlib
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType

import torch
from torch import Tensor, nn

from equipoise.threat import Threat

Peer = Callable[[Tensor, Tensor], Tensor]
"""From images and labels to adversarial images."""

INSTALL = {
    "torchattacks": "pip install --no-deps torchattacks==3.5.1",  # its own wishes break others
    "foolbox": "pip install -e '.[peers]'",
    "pyautoattack": "pip install -e '.[peers]'",
}

_NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}


def found(names: Iterable[str]) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return the peers that are installed, and for those that are not how to install them."""
    modules, absent = dict[str, ModuleType](), dict[str, str]()
    for name in names:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of their imports, which are not ours to mend
                modules[name] = importlib.import_module(name)
        except ImportError:
            absent[name] = INSTALL[name]
    return modules, absent


def torchattacks_pgd(
    module: ModuleType, model: nn.Module, threat: Threat, steps: int, step_size: float
) -> Peer:
    """Return PGD by torchattacks, from a random start, on a model in eval mode."""
    attack: Peer = module.PGD(
        model, eps=threat.eps, alpha=step_size, steps=steps, random_start=True
    )
    return attack


def foolbox_pgd(
    module: ModuleType, model: nn.Module, threat: Threat, steps: int, step_size: float
) -> Peer:
    """Return PGD by foolbox, from a random start, without the pass that looks who is fooled."""
    attack = module.attacks.LinfPGD(abs_stepsize=step_size, steps=steps, random_start=True)
    device = next(model.parameters()).device
    wrapped = module.PyTorchModel(model.eval(), bounds=(threat.low, threat.high), device=device)

    def run(x: Tensor, y: Tensor) -> Tensor:
        x_adv: Tensor = attack.run(wrapped, x, y, epsilon=threat.eps)
        return x_adv

    return run


def standard_autoattack(
    module: ModuleType,
    model: nn.Module,
    threat: Threat,
    seed: int,
    batch_size: int,
    only: Sequence[str] = (),
) -> Peer:
    """Return standard AutoAttack by pyautoattack, or only some of its attacks."""
    device = next(model.parameters()).device
    attack = module.AutoAttack(
        model, norm=_NORMS[threat.norm], eps=threat.eps, seed=seed, device=str(device)
    )
    attack.verbose = False
    attack.attacks_to_run = list(only) or attack.attacks_to_run

    def run(x: Tensor, y: Tensor) -> Tensor:
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=cuda):
            got = attack.run_standard_evaluation(x, y, batch_size=batch_size)
        x_adv: Tensor = got[0] if isinstance(got, tuple) else got
        return x_adv

    return run
