"""Verifying: every stored adversarial example again, by forward passes alone.

Nothing that an attack or the evaluation has claimed is taken for granted: that every number, name
and setting follows from the verdicts, that the images are the test images, that each example is
finite, in the range and in the ball (in float64), and that the float32 model misclassifies it.
What that proves is an upper bound of the robust accuracy: that the others withstand cannot be seen
from what is stored. :mod:`equipoise.jobs.verify_again` attacks some of them again.
"""

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise import plugins
from equipoise.data.sampling import drawn_again
from equipoise.errors import RunError, UserError
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store
from equipoise.jobs import verify_stored
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.target_model import Subject, of_run
from equipoise.jobs.verify_again import Again, attack_again
from equipoise.losses import margin
from equipoise.plugins import command
from equipoise.sample import Sample
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.verdicts import UNREADABLE
from equipoise.terminal.progress import Console

WRITTEN_SECONDS = 1.0  # in which an evaluation that goes on has written what it writes
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
        again: What attacking some points again found; None: it was not asked for.
    """

    name: str
    n: int = 0
    images: str = ""
    robust: int = 0
    examples: int = 0
    problems: list[str] = field(default_factory=list)
    finished: bool = True
    ties: int = 0
    again: Again | None = None


def verify_run(
    path: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
    model: str | None = None,
    trust: bool = False,
    again: int = 0,
    nonce: str | None = None,
    console: Console | None = None,
) -> list[Verified]:
    """Verify every evaluation in a folder.

    Arguments:
        path: The run folder.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: How many images are looked at together.
        model: As for :func:`equipoise.jobs.target_model.of_run`, as is the next.
        trust: Whether to run the code that the folder names.
        again: How many images of each evaluation that are said to be robust are attacked again.
        nonce: What these are drawn by; None: something new, which is said.
        console: Where progress is shown; by default nowhere.

    Returns:
        What was verified, all of it sound.

    Raises:
        UserError: If there is nothing to verify.
        RunError: If anything is not what it was said to be.
    """
    if again < 0:
        raise UserError(f"--again must be at least 1, got {again}")
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
        if verified.problems and store.busy:  # it was being written
            time.sleep(WRITTEN_SECONDS)
            verified = _verify(store, subjects[which], place, batch_size)
        if again and not verified.problems:
            _attack(verified, store, subjects[which], again, nonce or secrets.token_hex(4))
        console.say(_line(verified))
        found.append(verified)
    if not found:
        raise UserError(f"{path} holds no evaluation; run: {command('evaluate', path)}")
    wrong = [f"{v.name}: {'; '.join(v.problems)}" for v in found if v.problems]
    records = verify_stored.folder(first.run)
    if records and any(store.busy for store in Store.all(first.run)):
        time.sleep(WRITTEN_SECONDS)
        records = verify_stored.folder(first.run)
    wrong += records
    if wrong:
        raise RunError(f"NOT VERIFIED: {'. '.join(wrong)}")
    return found


def _line(verified: Verified) -> str:
    if verified.problems:
        return f"{verified.name}: NOT VERIFIED, {'; '.join(verified.problems)}"
    share = verified.robust / max(verified.n, 1)
    end = "" if verified.finished else " (interrupted: not all attacks have run)"
    ties = f" ({verified.ties} of them by less than rounding)" if verified.ties else ""
    again = f"; {verified.again}" if verified.again else ""
    return (
        f"{verified.name}: verified, robust accuracy at most {share:.2%} ({verified.robust} of "
        f"{verified.n}) on {verified.images}{end}: the {verified.examples} stored examples fool "
        f"the model{ties}; what was not found cannot be checked from here{again}"
    )


def _verify(store: Store, subject: Subject, device: torch.device, batch_size: int) -> Verified:
    verified = Verified(store.name)
    try:
        about, result, tensors = store.read()
        verified.n, verified.robust = len(result.y), int(result.robust.sum())
        sample = Sample.of_content(about["sample"])
        verified.images = sample.words("test images")
        verified.finished = bool(about.get("finished"))
        verified.problems += verify_stored.claims(store, about, result, tensors)
        origin = _origin(about, sample, tensors, subject)
    except UserError as error:
        verified.problems.append(str(error))
        return verified
    except UNREADABLE as error:
        verified.problems.append(f"it is damaged ({' '.join(str(error).split())[:100]})")
        return verified
    verified.problems += origin
    if not origin:
        judge = _judge(subject, result, tensors["x"].to(device), batch_size)
        _examples(verified, result, tensors["x"].to(device), judge)
    return verified


def _judge(subject: Subject, result: Result, x: Tensor, batch_size: int) -> Judge:
    """Return the judge; a model that repeats its answers has one pass, whatever the file says."""
    judge = Judge(subject.model, batch_size, seed=result.seed)
    return judge if judge.repeats(x) else replace(judge, passes=result.passes)


def _attack(verified: Verified, store: Store, subject: Subject, n: int, nonce: str) -> None:
    """Attack some of the images that are said to be robust again."""
    about, result, tensors = store.read()
    x = tensors["x"].to(next(subject.model.parameters(), tensors["x"]).device)
    judge = _judge(subject, result, x, 500)
    try:
        with plugins.explained(dict(about.get("asked") or {}).get("import")):
            verified.again = attack_again(
                result, x, judge, n=n, nonce=nonce, version=str(about.get("version"))
            )
    except (UserError, RunError, *UNREADABLE) as error:
        verified.problems.append(f"its attacks cannot be run again: {error}")
    else:
        verified.problems += verified.again.problems


def _origin(
    about: dict[str, Any], said: Sample, tensors: dict[str, Tensor], subject: Subject
) -> list[str]:
    try:
        test, sample = drawn_again(subject.dataset.test, about["n"], said)
    except (UserError, TypeError, ValueError) as error:
        return [f"its sample cannot be drawn ({error})"]
    known = {
        "the sample": (said, sample),
        "the weights of the model": (about["model_sha256"], model_digest(subject.model)),
        "the stored images": (tensor_digest(tensors["x"]), tensor_digest(test.pixels())),
        "the stored labels": (tensor_digest(tensors["y"]), tensor_digest(test.y)),
        "the images": (about["data_sha256"], tensor_digest(test.pixels())),
    }
    return [
        f"{what} are not those that were evaluated" for what, (a, b) in known.items() if a != b
    ]


def _examples(verified: Verified, result: Result, x: Tensor, judge: Judge) -> None:
    """Look at every clean image and every stored point again."""
    y, slack = result.y.to(x.device), _slack(result, judge.repeats(x))
    x_adv = result.x_adv.to(x)
    clean, logits = judge.logits(x), judge.logits(x_adv)
    changed = int(((clean.argmax(1).cpu() != result.prediction) & ~_ties(clean)).sum())
    if changed > slack:
        verified.problems.append(f"the clean answer differs on {changed} images")
    outside = int((~judge.admit(x, x_adv, result.threat)).sum())
    if outside:
        verified.problems.append(f"{outside} adversarial examples are outside the threat")
    broken = result.correct & ~result.robust
    found = torch.where(torch.isfinite(logits).all(1), -margin(logits, y).double(), -torch.inf)
    lead, tie = found.cpu(), _ties(logits)
    standing = int((broken & (lead > 0) & ~tie).sum())
    if standing > slack:
        verified.problems.append(f"{standing} adversarial examples are classified correctly")
    if not slack and judge.passes == result.passes:
        verified.problems += _measured(result, x_adv.cpu() == x.cpu(), lead, logits)
    verified.examples, verified.ties = int(broken.sum()), int((broken & tie).sum())


def _measured(result: Result, unchanged: Tensor, lead: Tensor, logits: Tensor) -> Iterator[str]:
    """Hold what is said of each stored point against what the model makes of it."""
    large = logits.abs().amax(1).cpu().double()
    close = (lead - result.margin).abs() <= UNDECIDED * large
    untouched = (result.margin == torch.inf) & unchanged.flatten(1).all(1)
    off = int((~close & (lead != result.margin) & ~untouched).sum())
    if off:
        yield f"the margins of {off} examples are not those of the model"
    answers = logits.argmax(1).cpu()
    other = int(((answers != result.adversarial_prediction) & ~_ties(logits)).sum())
    if other:
        yield f"the answers on {other} adversarial examples are not those of the model"


def _ties(logits: Tensor) -> Tensor:
    """Tell where the two largest logits differ by less than rounding, with shape (N,)."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    large = logits.abs().amax(1).clamp_min(1e-30)
    return (torch.isfinite(large) & (first - second <= UNDECIDED * large)).cpu()


def _slack(result: Result, repeats: bool) -> int:
    """Return how many answers of a random model may differ: one in a hundred."""
    return 0 if repeats else max(1, len(result.y) // 100)
