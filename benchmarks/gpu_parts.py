"""What is measured on a GPU, part by part: see :mod:`benchmarks.gpu`.

Heavy imports stand inside the parts: the process that starts them needs none.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from equipoise.errors import RunError

HERE = Path(__file__).resolve().parent.parent
CLASSES = 10
STRENGTH = 4.0, 24.0  # of the weakest and the strongest pattern, of 255
PEAK = 5  # products that are timed, after two that are not


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is measured.

    Arguments:
        images: The training images of a round (epoch).
        size: Their pixels a side, with three channels.
        width: The width of the ResNet-18.
        batch_size: The images of a step.
        steps: The steps of PGD.
        rounds: The rounds of each training.
        judged: The test images that are attacked.
        product: The rows of the matrices of the best product.
        repeats: How often a step is timed.
    """

    images: int = 50_000
    size: int = 32
    width: float = 1.0
    batch_size: int = 128
    steps: int = 10
    rounds: int = 3
    judged: int = 1_000
    product: int = 8_192
    repeats: int = 5


FULL = Scale()
TINY = Scale(
    images=120,
    size=8,
    width=0.0625,
    batch_size=40,
    steps=1,
    rounds=2,
    judged=20,
    product=64,
    repeats=1,
)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a part is given.

    Arguments:
        folder: Where parts leave files for each other.
        device: ``cpu`` or ``cuda``.
        tiny: Whether :data:`TINY` is measured, so that the parts are tried and nothing else.
    """

    folder: Path
    device: str
    tiny: bool

    @property
    def scale(self) -> Scale:
        """Return how much is measured."""
        return TINY if self.tiny else FULL


Found = dict[str, Any]


def peak(order: Order) -> Iterator[Found]:
    """Time the best matrix product of each arithmetic: what no pass can exceed."""
    import torch

    from equipoise.store.provenance import provenance

    found: Found = {"provenance": provenance(order.device, 0), "flops_per_second": {}}
    n = order.scale.product
    for name in ("bfloat16", "float32"):
        a = torch.randn(n, n, device=order.device, dtype=getattr(torch, name))
        b = torch.randn_like(a)
        seconds = min(_seconds(partial(torch.matmul, a, b), order.device) for _ in range(PEAK))
        found["flops_per_second"][name] = 2 * n**3 / seconds
        yield found


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call, after two calls that are not timed."""
    import torch

    def settle() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    work()
    work()
    settle()
    began = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - began


def tests(order: Order) -> Iterator[Found]:
    """Run the tests with the marker ``cuda``."""
    report = order.folder / "tests.xml"
    words = ["-q", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={report}"]
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "tests/test_cuda.py"],
        cwd=HERE,
        env=os.environ | {"EQUIPOISE_TEST_DEVICE": order.device},
        check=False,
    )
    if not report.is_file():
        raise RunError(f"pytest ended with exit code {ended.returncode} and without a report")
    suite = ElementTree.parse(report).getroot()[0]  # noqa: S314 - written by pytest just now
    failed = [
        case.get("name")
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    yield counts | {"failed": failed}
    if failed or not counts["tests"] or counts["skipped"]:
        raise RunError(f"tests that must pass did not: {', '.join(map(str, failed)) or counts}")


def training(order: Order) -> Iterator[Found]:
    """Train by the command that users call; the seconds are those of its own log."""
    data, scale = images(order), order.scale
    found: Found = {"recipe": asdict(scale), "methods": {}}
    settings = [
        "model=resnet-18",
        f"width={scale.width}",
        f"rounds={scale.rounds}",
        f"batch_size={scale.batch_size}",
        f"validation={scale.judged}",
        "validation_attack=pgd-1",
        f"device={order.device}",
        "update=auto",
    ]
    for method, attack in (("pgd-at", "attack.steps"), ("a3gt", "robust.attack.steps")):
        run = order.folder / method
        began = time.perf_counter()
        given = [*settings, f"{attack}={scale.steps}"]
        _equipoise("train", method, "--data", data, "--out", run, "--quiet", *given)
        lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
        rounds = [json.loads(line) for line in lines]
        found["methods"][method] = {
            "seconds_a_round": [r["seconds"]["train"] for r in rounds],
            "gradient_evaluations": [r["gradient_evaluations"] for r in rounds],
            "clean_accuracy": rounds[-1]["global"]["clean_accuracy"],
            "robust_accuracy": rounds[-1]["global"]["robust_accuracy"],
            "whole_command": time.perf_counter() - began,
        }
        yield found


def images(order: Order) -> Path:
    """Return a file of images that are learnt within a round, about half of them robustly.

    A class is a smooth pattern, moved about and under noise, of a strength of its own.
    """
    import numpy as np
    import torch
    from torch.nn import functional as F  # noqa: N812

    path, scale = order.folder / "images.npz", order.scale
    if path.is_file():
        return path
    generator = torch.Generator().manual_seed(0)
    n, size = scale.images + 2 * scale.judged, scale.size
    coarse = torch.randn(CLASSES, 3, 4, 4, generator=generator)
    patterns = F.interpolate(coarse, size=(size, size), mode="bicubic")
    patterns *= torch.linspace(*STRENGTH, CLASSES)[:, None, None, None]
    y = torch.arange(n) % CLASSES
    across, down = (
        torch.randint(-size // 8, size // 8 + 1, (n,), generator=generator) for _ in "xy"
    )
    x = torch.empty(n, 3, size, size, dtype=torch.uint8)
    for i, label in enumerate(y.tolist()):
        moved = patterns[label].roll((int(down[i]), int(across[i])), (1, 2))
        noise = torch.randn(3, size, size, generator=generator)
        x[i] = (127 + moved + 24 * noise).clamp(0, 255).to(torch.uint8)
    train = scale.images + scale.judged  # of which as many are held out as are judged
    np.savez(
        path,
        x_train=x[:train].numpy(),
        y_train=y[:train].numpy(),
        x_test=x[train:].numpy(),
        y_test=y[train:].numpy(),
    )
    return path


def steps(order: Order) -> Iterator[Found]:
    """Time a step of training against the loop that one would write oneself."""
    from benchmarks import train
    from benchmarks.case import Case
    from benchmarks.timing import alternate
    from benchmarks.work import useful_flops
    from equipoise.execution import Execution

    scale, found = order.scale, Found(cases={})
    for learners, title in ((1, "pgd-at"), (2, "a3gt as published")):
        case = Case.of(
            "resnet-18",
            width=scale.width,
            size=scale.size,
            batch_size=scale.batch_size,
            steps=scale.steps,
            learners=learners,
            device=order.device,
            execution=Execution(update="auto"),
        )
        case = train.case_of(case)
        problem = case.build()
        flops = useful_flops(problem.model, problem.x, problem.y)
        names = [name for name in train.SIDES if name != "ours-compiled" or not order.tiny]
        record = found["cases"].setdefault(title, {})
        ours = None
        for name in names:  # one more each time, so that what was found is kept
            pair = train.sides(case, problem, list(dict.fromkeys(["ours", name])), flops)[0]
            for _ in alternate(pair, scale.repeats, problem.x.device):
                pass
            ours = ours or pair[0]
            record[name] = pair[-1].record(pair[0])
            times = record[name]["seconds"]["median"]
            record[name]["seconds_an_epoch"] = times * scale.images / scale.batch_size
            yield found


def judging(order: Order) -> Iterator[Found]:
    """Attack test images by the audited search, AutoAttack and pyautoattack."""
    from benchmarks import evaluate
    from benchmarks.timing import alternate

    run = order.folder / "pgd-at"
    if not (run / "summary.json").is_file():
        raise RunError("there is no trained model: the training did not end")
    case = evaluate.Judged(run=str(run), images=order.scale.judged, device=order.device)
    problem, found = case.build(), Found(n=order.scale.judged, sides={}, absent={})
    done: list[Any] = []
    for name in ("ours-audited-2", "ours", "pyautoattack"):
        made, absent = evaluate.sides(case, problem, [name])
        found["absent"] |= absent
        for side in made:
            for _ in alternate([side], 1, problem.x.device):
                pass
            done.append(side)
        evaluate.compare(done)
        found["sides"] = {side.name: side.record(done[0]) for side in done}
        yield found


def _equipoise(*words: Any) -> None:
    """Run a command of this package; raise a RunError if it fails."""
    ended = subprocess.run(
        [sys.executable, "-m", "equipoise", *map(str, words)],
        cwd=HERE,
        check=False,
    )
    if ended.returncode:
        raise RunError(f"equipoise {words[0]} {words[1]} ended with exit code {ended.returncode}")


PARTS: dict[str, tuple[Callable[[Order], Iterator[Found]], float]] = {
    "peak": (peak, 40),
    "tests": (tests, 90),
    "training": (training, 140),
    "steps": (steps, 120),
    "judging": (judging, 240),
}
"""The parts in order, and the most seconds of each."""
