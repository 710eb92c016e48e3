"""Standard AutoAttack side by side: seconds, and whether the verdicts agree image by image."""

__all__ = ["SIDES", "Judged", "Judging", "agreement", "noted", "sentences", "sides"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.timing import Measured, Side
from equipoise import data, models
from equipoise.data import Dataset, draw
from equipoise.errors import UserError
from equipoise.evaluation import evaluate
from equipoise.execution import Execution
from equipoise.jobs.device import choose_device
from equipoise.parsing import choice
from equipoise.settings import recipe
from equipoise.store.runs import Run, load
from equipoise.threat import NORMS, Threat
from equipoise.training import Training

SIDES = ("ours", "ours-checked", "ours-float32", "pyautoattack")
FEW, WARM = 8, "apgd-ce"  # on so many images each side is warmed up, by this attack
_DIFFERENT = ("robust_here_only", "robust_for_first_only")
ROUNDS = 8  # of the training of the small network: seconds


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What is judged.

    Arguments:
        model: The network, in eval mode.
        x: Images in [0, 1], with shape (N, C, H, W).
        y: Their labels.
        threat: The ball and the range.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    threat: Threat


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Which model is judged, and how.

    Arguments:
        run: A run folder; None: a small network on the embedded digits, trained on the spot.
        data_dir: The folder of the data; None: the usual places.
        images: How many test images, as a stratified sample; all where there are fewer.
        norm: ``linf``, ``l2`` or ``l1``; None: that of the run.
        eps: The radius; None: that of the run.
        batch_size: The images attacked at a time.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Of our search: see :class:`equipoise.execution.Execution`.
        layout: Likewise.
        compile: Whether our search form is compiled.
        seed: Of the attacks.
    """

    run: str | None = None
    data_dir: str | None = None
    images: int = 500
    norm: str | None = None
    eps: float | None = None
    batch_size: int = 250
    device: str = "auto"
    precision: str = "auto"
    layout: str = "auto"
    compile: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.execution()

    def execution(self, precision: str | None = None) -> Execution:
        """Return how we search, in another precision where one is given."""
        chosen: Any = {
            "precision": precision or self.precision,
            "layout": self.layout,
            "compile": self.compile,
        }
        return Execution(**chosen)

    def build(self) -> Judged:
        """Return model, images, labels and threat.

        Raises:
            UserError: If the run or its data are not there.
        """
        device = choose_device(self.device)
        if self.run is None:
            return self._cut(_digits(device), data.load("digits"), "linf", None, device)
        given = recipe.stored(Run.open(self.run))
        dataset = data.load(given.data, self.data_dir or given.data_dir)
        model = load(self.run).to(device).eval()
        return self._cut(model, dataset, given.norm, given.eps, device)

    def _cut(
        self,
        model: nn.Module,
        dataset: Dataset,
        norm: str,
        eps: float | None,
        device: torch.device,
    ) -> Judged:
        images = draw(dataset.test, min(self.images, len(dataset.test)))[0].to(device)
        chosen = choice(self.norm or norm, "--norm", NORMS)
        radius = self.eps or eps or dataset.eps
        return Judged(model=model, x=images.pixels(), y=images.y, threat=Threat(chosen, radius))


def sides(
    case: Judging, judged: Judged, names: Sequence[str] = SIDES
) -> tuple[list[Side], dict[str, str]]:
    """Return who judges, and how to install whoever is not there.

    A run attacks all images and returns what was found: at least ``robust``, which images
    withstood, with shape (N,).

    Arguments:
        case: How is judged.
        judged: What is judged.
        names: Which sides, some of :data:`SIDES`.
    """
    modules, absent = peers.found(["pyautoattack"] if "pyautoattack" in names else [])
    made = []
    for name in names:
        if name in absent:
            continue
        if name in modules:
            run = partial(_theirs, modules[name], case)
            about = "float32, the model as it is"
        else:
            precision = "float32" if name == "ours-float32" else None
            run = partial(_ours, case, case.execution(precision), name == "ours-checked")
            about = f"{case.execution(precision).resolved(judged.x.device)}, judged in float32"
            about += ", with all checks" if name == "ours-checked" else ", without checks"
        warm = partial(run, replace(judged, x=judged.x[:FEW], y=judged.y[:FEW]), only=WARM)
        made.append(Side(name=name, run=partial(run, judged), about=about, warm=warm))
    return made, absent


def agreement(found: Sequence[Measured]) -> None:
    """Note with each side where its verdicts differ from those of the first."""
    first = found[0].found
    for measured in found:
        robust, ours = set(measured.found["robust"]), set(first["robust"])
        differences = sorted(robust - ours), sorted(ours - robust)
        measured.found |= dict(zip(_DIFFERENT, differences, strict=True))


def sentences(found: Sequence[Measured]) -> list[str]:
    """Say where verdicts differ from those of the first, and what its checks have found."""
    said = []
    for measured in found:
        here, there = (measured.found[key] for key in _DIFFERENT)
        name, first = measured.side.name, found[0].side.name
        if here:
            said.append(f"withstood {name} only, not {first}: images {here}")
        if there:
            said.append(f"withstood {first} only, not {name}: images {there}")
        if measured.found.get("alarms"):
            said.append(f"checks of {name}: {', '.join(measured.found['alarms'])}")
    return said


def noted(result: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return what a run has found, for a file."""
    robust: Tensor = result["robust"]
    where = [int(i) for i in robust.nonzero()[:, 0]]
    told = {key: value for key, value in result.items() if key != "robust"}
    return {"robust": where, "robust_accuracy": len(where) / n, "n": n} | told


def _ours(
    case: Judging, execution: Execution, checks: bool, judged: Judged, only: str = "autoattack"
) -> dict[str, Any]:
    result = evaluate(
        judged.model,
        judged.x,
        judged.y,
        threat=judged.threat,
        attacks=only,
        seed=case.seed,
        batch_size=case.batch_size,
        precision=execution.precision,
        layout=execution.layout,
        compile=execution.compile,
        checks=checks,
    )
    stages = {
        name: {
            "attacked": int(o.attacked.sum()),
            "broken": int(o.broken.sum()),
            "seconds": round(o.seconds, 3),
            "forwards": o.forwards,
            "backwards": o.backwards,
        }
        for name, o in result.outcomes.items()
    }
    alarms = [f.check for f in result.findings if f.status in ("warning", "failed")]
    return {"robust": result.robust, "stages": stages, "alarms": alarms}


def _theirs(module: ModuleType, case: Judging, judged: Judged, only: str = "") -> dict[str, Any]:
    how = judged.threat, case.seed, case.batch_size
    attack = peers.standard_autoattack(module, judged.model, *how, only=[only] if only else [])
    x_adv = attack(judged.x, judged.y)
    with torch.no_grad():
        batches = (torch.split(part, case.batch_size) for part in (x_adv, judged.y))
        parts = zip(*batches, strict=True)
        right = [judged.model(x).argmax(1) == y for x, y in parts]
    return {"robust": torch.cat(right)}


def _digits(device: torch.device) -> nn.Module:
    """Return a small network that was trained against PGD on the digits, in a few seconds."""
    given = {
        "method": "pgd-at",
        "data": "digits",
        "rounds": ROUNDS,
        "batch_size": 64,
        "attack": {"steps": 5},
    }
    found, dataset = recipe.parse(given), data.load("digits")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("small-cnn", dataset.settings)
    trained = Training(
        method=found.settings.build(Threat("linf", dataset.eps)),
        model=model,
        images=dataset.train.to(device),
        rounds=found.rounds,
        batch_size=found.batch_size,
        seed=0,
        validate=lambda model, threat: dict.fromkeys(_METRICS, 0.0),
        value=lambda metrics: 0.0,
    )
    trained.run()
    return trained.merged({"model": 1.0}, found.rounds).eval()


_METRICS = ("clean_accuracy", "robust_accuracy", "clean_loss", "robust_loss")
