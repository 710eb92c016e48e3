"""PGD side by side: ours as it is called, bare passes of the form it searches in, and the peers.

Ours is ``PGD(steps)(eq.fast(model), ...)``; ``ours-plain`` gives it the model itself, and
``ours-evaluate`` is ``eq.evaluate``, where no example is left alone once it is fooled, so that
all sides do the same work. The bare passes are the steps' and one forward pass.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks import peers
from benchmarks.case import Case, Problem
from benchmarks.timing import Side
from equipoise.attacks.pgd import PGD
from equipoise.evaluation import Protocol
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.execution import fast
from equipoise.execution.form import guest
from equipoise.threat import Threat

PEERS = ("torchattacks", "foolbox")
SIDES = ("ours", "bare passes", "ours-plain", "ours-evaluate", "ours-float32", *PEERS)
_PGD = {"torchattacks": peers.torchattacks_pgd, "foolbox": peers.foolbox_pgd}


def sides(
    case: Case,
    problem: Problem,
    names: Sequence[str] = SIDES,
    flops: Mapping[str, float] | None = None,
) -> tuple[list[Side], dict[str, str]]:
    """Return the sides that attack, and how to install those that are not there.

    A run attacks all images of the problem, in batches, from random starts with steps of
    2.5 eps / steps, and returns the adversarial images. The peers are given the plain model.

    Arguments:
        case: What is measured.
        problem: What it is made of.
        names: Some of :data:`SIDES`.
        flops: What a pass is credited with, see :func:`benchmarks.work.useful_flops`.
    """
    modules, absent = peers.found(name for name in names if name in PEERS)
    gradients = case.steps * len(problem.y)
    made = []
    for name in names:
        if name not in absent:
            run, about = _run(name, case, problem, modules)
            work = round(gradients * flops["attacking"]) if flops else None
            every = partial(_all, run, problem, case.batch_size)
            made.append(Side(name=name, run=every, about=about, gradients=gradients, flops=work))
    return made, absent


def _all(run: peers.Peer, problem: Problem, batch_size: int) -> Tensor:
    """Attack all images, so many at a time."""
    batches = (torch.split(part, batch_size) for part in (problem.x, problem.y))
    return torch.cat([run(x, y) for x, y in zip(*batches, strict=True)])


def _run(
    name: str, case: Case, problem: Problem, modules: dict[str, ModuleType]
) -> tuple[peers.Peer, str]:
    """Return what a side does with a batch, and how in words."""
    model, threat, plain = problem.model, problem.threat, "float32, the model as it is"
    if name in modules:
        how = model, threat, case.steps, 2.5 * threat.eps / case.steps
        return _PGD[name](modules[name], *how), plain
    execution = case.execution_of(name)
    about = str(execution.resolved(problem.x.device))
    if name == "bare passes":
        return _bare(case, problem), f"{case.steps} passes forward and back, one forward, {about}"
    pgd = PGD(steps=case.steps)
    if name == "ours-plain":
        return partial(pgd, model, threat=threat), plain
    if name != "ours-evaluate":
        return lambda x, y: pgd(fast(model, execution=execution), x, y, threat), about
    protocol = Protocol(
        attacks={"pgd": pgd},
        batch_size=case.batch_size,
        execution=execution,
        strongest=True,
        checks=False,
    ).under(threat)
    return (
        lambda x, y: evaluate_by(protocol, model, x, y).x_adv.to(x)
    ), f"eq.evaluate without checks, {about}"


def _bare(case: Case, problem: Problem) -> peers.Peer:
    """Return passes forward and back to the input, and one forward, in the form of ours."""
    form = fast(problem.model, execution=case.execution)

    def run(x: Tensor, y: Tensor) -> Tensor:
        with guest(form):
            for _ in range(case.steps):
                inputs = x.detach().requires_grad_()
                loss = F.cross_entropy(form(inputs).float(), y, reduction="sum")
                torch.autograd.grad(loss, inputs)
            with torch.no_grad():
                form(x)
        return x

    return run


def plain_pgd(model: nn.Module, threat: Threat, steps: int, step_size: float) -> peers.Peer:
    """Return PGD in Linf as one writes it down, for where no peer is installed."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        training = model.training
        model.eval()
        noise = torch.empty_like(x).uniform_(-threat.eps, threat.eps)
        x_adv = (x + noise).clamp(threat.low, threat.high)
        for _ in range(steps):
            x_adv.requires_grad_()
            loss = F.cross_entropy(model(x_adv), y)
            (grad,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + step_size * grad.sign()
            x_adv = x + (x_adv - x).clamp(-threat.eps, threat.eps)
            x_adv = x_adv.clamp(threat.low, threat.high).detach()
        model.train(training)
        return x_adv

    return run


def loss_of(problem: Problem, x_adv: Tensor) -> float:
    """Return the mean cross-entropy of the plain model at the points of a side."""
    loss: Callable[[Tensor, Tensor], Tensor] = partial(F.cross_entropy, reduction="sum")
    with torch.no_grad():
        parts = zip(torch.split(x_adv, 64), torch.split(problem.y, 64), strict=True)
        total = torch.stack([loss(problem.model(x), y) for x, y in parts]).sum()
    return float(total) / len(x_adv)
