"""PGD side by side: ours as it is called, bare passes of the form it searches in, and the peers.

Ours is ``PGD(steps)(eq.fast(model), ...)``; ``ours-plain`` gives it the model itself, and
``ours-evaluate`` is ``eq.evaluate``, where no example is left alone once it is fooled, so that
all sides do the same work. The bare passes are the steps' and one forward pass.
"""

__all__ = ["PEERS", "SIDES", "loss_of", "plain_pgd", "sides"]

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks import peers
from benchmarks.case import Case, Problem
from benchmarks.timing import Side
from benchmarks.work import Work
from equipoise.attacks.core import guest
from equipoise.attacks.pgd import PGD
from equipoise.evaluation import evaluate
from equipoise.execution import fast
from equipoise.threat import Threat

Run = Callable[[Tensor, Tensor], Tensor]

SIDES = (
    "ours",
    "bare passes",
    "ours-plain",
    "ours-evaluate",
    "ours-float32",
    "torchattacks",
    "foolbox",
)
PEERS = ("torchattacks", "foolbox")
FEW = 64  # images that are looked at together afterwards
_PGD = {"torchattacks": peers.torchattacks_pgd, "foolbox": peers.foolbox_pgd}


def sides(
    case: Case, problem: Problem, names: Sequence[str] = SIDES, work: Work | None = None
) -> tuple[list[Side], dict[str, str]]:
    """Return who attacks, and how to install whoever is not there.

    A run attacks all images of the problem, in batches, from random starts with steps of
    2.5 eps / steps, and returns the adversarial images. The peers are given the plain model.

    Arguments:
        case: What is benched.
        problem: What it is made of.
        names: Which sides, some of :data:`SIDES`.
        work: What a pass is credited with; None: nothing.
    """
    modules, absent = peers.found(name for name in names if name in PEERS)
    gradients = case.steps * len(problem.x)
    made = []
    for name in names:
        if name in absent:
            continue
        run, about = _run(name, case, problem, modules)
        made.append(
            Side(
                name=name,
                run=partial(_all, run, problem, case.batch_size),
                about=about,
                gradients=gradients,
                flops=round(gradients * work.attacking) if work else None,
            )
        )
    return made, absent


def _all(run: Run, problem: Problem, batch_size: int) -> Tensor:
    """Attack all images, so many at a time."""
    batches = (torch.split(part, batch_size) for part in (problem.x, problem.y))
    parts = zip(*batches, strict=True)
    return torch.cat([run(x, y) for x, y in parts])


def _run(
    name: str, case: Case, problem: Problem, modules: dict[str, ModuleType]
) -> tuple[Run, str]:
    """Return what a side does with a batch, and how in words."""
    if name in modules:
        step_size = 2.5 * problem.threat.eps / case.steps
        make = _PGD[name]
        run = make(modules[name], problem.model, problem.threat, case.steps, step_size)
        return run, "float32, the model as it is"
    execution = case.execution("float32" if name == "ours-float32" else None)
    device = problem.x.device
    about = str(execution.resolved(device))
    if name == "bare passes":
        return _bare(case, problem), f"{case.steps} passes forward and back, one forward, {about}"
    if name == "ours-evaluate":
        return _evaluated(case, problem), f"eq.evaluate without checks, {about}"
    attack = PGD(steps=case.steps)
    if name == "ours-plain":
        run = partial(attack, problem.model, threat=problem.threat)
        return run, "float32, the model as it is"

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return attack(fast(problem.model, execution=execution), x, y, problem.threat)

    return ours, about


def _evaluated(case: Case, problem: Problem) -> Run:
    """Return an evaluation by the attack, of whose points the strongest are wanted."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        result = evaluate(
            problem.model,
            x,
            y,
            threat=problem.threat,
            attacks={"pgd": PGD(steps=case.steps)},
            strongest=True,
            checks=False,
            batch_size=case.batch_size,
            precision=case.execution().precision,
            layout=case.execution().layout,
            compile=case.compile,
        )
        return result.x_adv.to(x)

    return run


def _bare(case: Case, problem: Problem) -> Run:
    """Return passes forward and back to the input, and one forward, in the form of ours."""
    form = fast(problem.model, execution=case.execution())

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
    """Return the mean cross-entropy of the plain model on what a side has found."""
    with torch.no_grad():
        parts = zip(torch.split(x_adv, FEW), torch.split(problem.y, FEW), strict=True)
        sums = [F.cross_entropy(problem.model(x), y, reduction="sum") for x, y in parts]
    return float(torch.stack(sums).sum()) / len(x_adv)
