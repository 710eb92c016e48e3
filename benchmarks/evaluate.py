"""Standard AutoAttack side by side: seconds, and whether the verdicts agree image by image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from benchmarks import peers
from benchmarks.case import Problem
from benchmarks.timing import Side
from equipoise import data, models
from equipoise.data import draw
from equipoise.errors import UserError
from equipoise.evaluation import Protocol
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.execution import Execution
from equipoise.jobs.device import choose_device
from equipoise.settings import recipe
from equipoise.store.runs import Run
from equipoise.threat import Norm, Threat
from equipoise.training import Training

AUDITED = {"ours-audited": 0.01, "ours-audited-2": 0.02}  # the difference at which an audit ends
SIDES = ("ours", "ours-checked", "ours-float32", *AUDITED, "pyautoattack")
FEW, WARM = 8, "apgd-ce"  # on so many images each side is warmed up, by this attack
_DIFFERENT = ("robust_here_only", "robust_for_first_only")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A model that is judged by standard AutoAttack, and how.

    Arguments:
        run: A run folder; None: a small network on the embedded digits, trained on the spot.
        data_dir: The folder of the data; None: the usual places.
        images: The number of test images, as a stratified sample; all where there are fewer.
        norm: ``linf``, ``l2`` or ``l1``; None: that of the run.
        eps: The radius; None: that of the run.
        batch_size: The images attacked at a time; None: as an evaluation does.
        device: ``auto``, ``cpu`` or ``cuda``.
        execution: How our sides search; as plain values, too.
        seed: Of the attacks.
    """

    run: str | None = None
    data_dir: str | None = None
    images: int = 500
    norm: Norm | None = None
    eps: float | None = None
    batch_size: int | None = None
    device: str = "auto"
    execution: Execution = field(default_factory=Execution)
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.execution, dict):
            object.__setattr__(self, "execution", Execution(**self.execution))
        if self.images < 1:
            raise UserError(f"images must be at least 1, got {self.images}")
        self.protocol("ours")

    def protocol(self, side: str, attacks: str = "autoattack") -> Protocol:
        """Return the protocol of one of our sides."""
        execution = self.execution
        if side in AUDITED and attacks == "autoattack":
            attacks = f"audited(within={AUDITED[side]})"
        if side == "ours-float32":
            execution = replace(execution, precision="float32")
        return Protocol(
            attacks=attacks,
            norm=self.norm,
            eps=self.eps,
            seed=self.seed,
            batch_size=self.batch_size,
            execution=execution,
            checks=side == "ours-checked",
        )

    def smaller(self) -> "Judged":
        """Return the smallest case of the same kind."""
        return replace(self, images=2)

    @property
    def title(self) -> str:
        """The model in a few words."""
        return f"{self.run or 'a small network on the digits'}, {self.images} images"

    def build(self) -> Problem:
        """Return model, images and threat.

        Raises:
            UserError: If the run or its data are not there.
        """
        device = choose_device(self.device)
        if self.run is None:
            model, dataset = _digits(device), data.load("digits")
            norm, eps = "linf", dataset.eps
        else:
            run = Run.open(self.run)
            trained = recipe.stored(run)
            model = run.model().to(device)
            dataset = data.load(trained.data, self.data_dir or trained.data_dir)
            norm, eps = trained.norm, trained.eps or dataset.eps
        images = draw(dataset.test, min(self.images, len(dataset.test)))[0].to(device)
        threat = Threat(self.norm or norm, self.eps or eps)  # type: ignore[arg-type]
        return Problem(model=model, images=images, threat=threat)


def sides(
    case: Judged,
    problem: Problem,
    names: Sequence[str] = SIDES,
    flops: Mapping[str, float] | None = None,
) -> tuple[list[Side], dict[str, str]]:
    """Return the sides that judge, and how to install those that are not there.

    A run attacks all images and returns at least ``robust``, which images are correct under all
    attacks, with shape (N,).

    Arguments:
        case: The model and the protocol.
        problem: What it is made of.
        names: Some of :data:`SIDES`.
        flops: Not used: the work of the sides differs.
    """
    del flops
    modules, absent = peers.found(["pyautoattack"] if "pyautoattack" in names else [])
    made = []
    for name in names:
        if name in absent:
            continue
        if name in modules:
            run, about = partial(_theirs, modules[name], case), "float32, the model as it is"
        else:
            run = partial(_ours, case, name)
            execution = case.protocol(name).execution.resolved(problem.x.device)
            checks = "with all checks" if name == "ours-checked" else "without checks"
            about = f"{execution}, judged in float32, {checks}"
        warm = partial(run, problem.first(FEW), only=WARM)
        made.append(Side(name=name, run=partial(run, problem), about=about, warm=warm))
    return made, absent


def compare(sides: Sequence[Side]) -> None:
    """Note with each side which images are robust, and where that differs from the first side."""
    verdicts = [{int(i) for i in side.last["robust"].nonzero()[:, 0]} for side in sides]
    for side, robust in zip(sides, verdicts, strict=True):
        n = len(side.last["robust"])
        rest = {key: value for key, value in side.last.items() if key != "robust"}
        differences = sorted(robust - verdicts[0]), sorted(verdicts[0] - robust)
        side.notes = {"robust": sorted(robust), "robust_accuracy": len(robust) / n, "n": n, **rest}
        side.notes |= dict(zip(_DIFFERENT, differences, strict=True))


def sentences(sides: Sequence[Side]) -> list[str]:
    """Return where verdicts differ from those of the first side, and what its checks warn of."""
    lines = []
    for side in sides:
        here, there = (side.notes[key] for key in _DIFFERENT)
        if here:
            lines.append(f"robust for {side.name} only, not for {sides[0].name}: images {here}")
        if there:
            lines.append(f"robust for {sides[0].name} only, not for {side.name}: images {there}")
        if "audit" in side.notes:
            lines.append(f"{side.name}: {side.notes['audit']}")
        if side.notes.get("alarms"):
            lines.append(f"checks of {side.name}: {', '.join(side.notes['alarms'])}")
    return lines


def _ours(case: Judged, side: str, problem: Problem, only: str = "autoattack") -> dict[str, Any]:
    protocol = case.protocol(side, only).under(problem.threat)
    result = evaluate_by(protocol, problem.model, problem.x, problem.y)
    stages = {
        name: {
            "attacked": int(outcome.attacked.sum()),
            "broken": int(outcome.broken.sum()),
            "seconds": round(outcome.seconds, 3),
            "forwards": outcome.forwards,
            "backwards": outcome.backwards,
        }
        for name, outcome in result.outcomes.items()
    }
    alarms = [f.check for f in result.findings if f.status in ("warning", "failed")]
    audit = {"audit": result.audit.sentence} if result.audit else {}
    return {"robust": result.robust, "stages": stages, "alarms": alarms, **audit}


def _theirs(module: ModuleType, case: Judged, problem: Problem, only: str = "") -> dict[str, Any]:
    size = case.protocol("ours").batch(problem.x)
    how = problem.threat, case.seed, size
    attack = peers.standard_autoattack(module, problem.model, *how, only=[only] if only else [])
    x_adv = attack(problem.x, problem.y)
    with torch.no_grad():
        batches = (torch.split(part, size) for part in (x_adv, problem.y))
        parts = zip(*batches, strict=True)
        return {"robust": torch.cat([problem.model(x).argmax(1) == y for x, y in parts])}


def _digits(device: torch.device) -> nn.Module:
    """Return a small network that was trained against PGD on the digits, in a few seconds."""
    settings = {"method": "pgd-at", "data": "digits", "rounds": 8, "batch_size": 64}
    parsed, dataset = recipe.parse(settings | {"attack": {"steps": 5}}), data.load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("small-cnn", dataset.settings)
    metrics = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss")
    trained = Training(
        method=parsed.settings.build(Threat("linf", dataset.eps)),
        model=model,
        images=dataset.train.to(device),
        rounds=parsed.rounds,
        batch_size=parsed.batch_size,
        seed=0,
        validate=lambda model, threat: dict.fromkeys(metrics, 0.0),
        value=lambda metrics: 0.0,
    )
    trained.run()
    return trained.merged({"model": 1.0}, parsed.rounds).eval()
