"""Verifying: every stored adversarial example again, by forward passes alone.

Nothing that an attack or the evaluation has claimed is taken for granted: that the files are
those that were written, that the images are the test images, that each example is finite, in the
range and in the ball (in float64), and that the float32 model misclassifies it. From that the
robust accuracy follows again.
"""

__all__ = ["verify_run"]

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.command import command
from equipoise.data import Dataset, drawn_again
from equipoise.digests import tensor_digest
from equipoise.errors import RunError, UserError
from equipoise.evaluation import Judge, Result
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.store import Store
from equipoise.jobs.subject import Subject, of_run
from equipoise.progress import Console
from equipoise.runs import model_digest
from equipoise.sample import Sample
from equipoise.sealed import is_sealed

UNDECIDED = 1e-4  # margins within this share of the logits may turn with the batch they are in


@dataclass
class Verified:
    """What the verification of one evaluation found.

    Arguments:
        name: The evaluation.
        n: The number of images.
        images: Which of the test images they are, in words.
        robust: How many of them were counted as robust.
        examples: How many adversarial examples were looked at.
        problems: What is wrong, a sentence each; nothing for a sound evaluation.
        finished: Whether the evaluation was run to its end.
        ties: Examples that the model misclassifies by less than rounding.
    """

    name: str
    n: int = 0
    images: str = ""
    robust: int = 0
    examples: int = 0
    problems: list[str] = field(default_factory=list)
    finished: bool = True
    ties: int = 0


def verify_run(
    path: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
    model: str | None = None,
    trust: bool = False,
    console: Console | None = None,
) -> list[Verified]:
    """Verify every evaluation in a folder.

    Arguments:
        path: The run folder.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: How many images are looked at together.
        model: As for :func:`equipoise.jobs.subject.of_run`, as is the next.
        trust: Whether to run the code that the folder names.
        console: Where progress is shown; by default nowhere.

    Returns:
        What was verified, all of it sound.

    Raises:
        UserError: If there is nothing to verify.
        RunError: If anything is not what it was said to be.
    """
    console = console or Console(quiet=True)
    deterministic()
    place = choose_device(device)
    subjects: dict[str, Subject] = {}
    found = []
    code: dict[str, Any] = {"model": model, "trust": trust}
    first = of_run(path, "model", data_dir, Console(quiet=True), **code)
    for store in Store.all(first.run):
        which = store.which
        if which not in subjects:
            subject = first if which == "model" else of_run(path, which, data_dir, console, **code)
            subject.model.to(place)
            subjects[which] = subject
        verified = _verify(store, subjects[which], place, batch_size)
        console.say(_line(verified))
        found.append(verified)
    if not found:
        raise UserError(f"{path} holds no evaluation; run: {command('evaluate', path)}")
    wrong = [f"{v.name}: {'; '.join(v.problems)}" for v in found if v.problems]
    if wrong:
        raise RunError(f"NOT VERIFIED: {'. '.join(wrong)}")
    return found


def _line(verified: Verified) -> str:
    if verified.problems:
        return f"{verified.name}: NOT VERIFIED, {'; '.join(verified.problems)}"
    share = verified.robust / max(verified.n, 1)
    end = "" if verified.finished else " (interrupted: an upper bound so far)"
    ties = f", {verified.ties} of them by less than rounding" if verified.ties else ""
    return (
        f"{verified.name}: verified, robust accuracy {share:.2%} ({verified.robust} of "
        f"{verified.n}), {verified.examples} adversarial examples{ties}, on "
        f"{verified.images}{end}"
    )


def _verify(store: Store, subject: Subject, device: torch.device, batch_size: int) -> Verified:
    verified = Verified(store.name)
    try:
        about, result, tensors = store.read()
    except UserError as error:
        verified.problems.append(str(error))
        return verified
    verified.n, verified.robust = len(result.y), int(result.robust.sum())
    verified.images = _images(about)
    verified.finished = bool(about.get("finished"))
    _summary(store, verified)
    verified.problems += _origin(about, tensors, subject, subject.dataset)
    if not verified.problems:
        judge = Judge(subject.model, batch_size, result.passes, result.seed)
        _examples(verified, result, tensors["x"].to(device), judge)
    return verified


def _images(about: dict[str, Any]) -> str:
    """Return in words which images were evaluated."""
    try:
        known = _sample(about)
    except (KeyError, TypeError, ValueError):
        return "test images that it does not name"
    return known.words("test images") if known else f"the first {about['n']} test images"


def _sample(about: dict[str, Any]) -> Sample | None:
    """Return which images were evaluated; None: those of an older version, the first ones.

    Raises:
        KeyError, TypeError, ValueError: If that is damaged.
    """
    return Sample.of_content(about["sample"]) if "sample" in about else None


def _summary(store: Store, verified: Verified) -> None:
    """Hold the summary against the file beside it, and its last number against the verdicts."""
    try:
        content = json.loads(store.summary.read_bytes())
        same = is_sealed(content) and content["examples"]["sha256"] == _file_digest(store.path)
        same = same and content["records"][-1]["robust"] == verified.robust
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        same = False
    if not same:
        verified.problems.append(
            f"{store.summary.name} and {store.path.name} are not as they were written"
        )


def _origin(
    about: dict[str, Any], tensors: dict[str, Tensor], subject: Subject, dataset: Dataset
) -> list[str]:
    try:
        known_sample = _sample(about)
        test, sample = drawn_again(dataset.test, about["n"], known_sample)
    except (UserError, KeyError, TypeError, ValueError):
        return ["it does not say which of the test images were evaluated"]
    known = {
        "the sample": (known_sample, sample),
        "the weights of the model": (about["model_sha256"], model_digest(subject.model)),
        "the stored images": (tensor_digest(tensors["x"]), tensor_digest(test.pixels())),
        "the stored labels": (tensor_digest(tensors["y"]), tensor_digest(test.y)),
        "the images": (about["data_sha256"], tensor_digest(test.pixels())),
    }
    return [
        f"{what} are not those that were evaluated" for what, (a, b) in known.items() if a != b
    ]


def _examples(verified: Verified, result: Result, x: Tensor, judge: Judge) -> None:
    """Look at every clean image and every adversarial example again."""
    y = result.y.to(x.device)
    correct = judge.logits(x).argmax(1) == y
    changed = int((correct.cpu() != result.correct).sum())
    if changed > _slack(result):
        verified.problems.append(f"the clean answer differs on {changed} images")
    broken = (result.correct & ~result.robust).nonzero()[:, 0]
    verified.examples = len(broken)
    rows = broken.to(x.device)
    x_adv = result.x_adv.to(x)[rows]
    allowed = judge.admit(x[rows], x_adv, result.threat)
    logits = judge.logits(x_adv)
    finite = torch.isfinite(logits).all(1)
    lead = judge.rule(x_adv, y[rows]).margin
    tie = finite & (lead.abs() <= UNDECIDED * logits.abs().amax(1).clamp_min(1e-30))
    standing = int((allowed & (lead > 0) & ~tie).sum())
    if int((~allowed).sum()):
        verified.problems.append(
            f"{int((~allowed).sum())} adversarial examples are outside the threat"
        )
    if standing > _slack(result):
        verified.problems.append(f"{standing} adversarial examples are classified correctly")
    verified.ties = int(tie.sum())


def _slack(result: Result) -> int:
    """Return how many answers of a random model may differ: one in a hundred."""
    return 0 if result.passes == 1 else max(1, len(result.y) // 100)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
