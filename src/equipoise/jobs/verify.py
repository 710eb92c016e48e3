"""Verifying: every stored adversarial example again, by forward passes alone.

Every number, name and setting must follow from the verdicts, the images must be the test images,
and each example must be finite, in the range, in the ball (in float64) and misclassified by the
float32 model. This proves an upper bound of the robust accuracy, but not that the other images are
robust: :mod:`equipoise.jobs.verify_again` attacks some of them again. Results on corrupted images
are measured again as a whole.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise import plugins
from equipoise.data.sampling import drawn_again
from equipoise.errors import RunError, UserError
from equipoise.evaluation.judge import UNDECIDED, Judge, ties
from equipoise.evaluation.pieces import completed
from equipoise.evaluation.result import Result
from equipoise.evaluation.stored import Store
from equipoise.jobs import verify_stored
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.target_model import Subject, of_run
from equipoise.jobs.verify_again import Again, attack_again
from equipoise.jobs.verify_audit import AuditAgain, audit_again
from equipoise.jobs.verify_corruptions import corruptions_again
from equipoise.losses import margin
from equipoise.sample import Sample
from equipoise.store import corruptions
from equipoise.store.audit import check_nonce
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.verdicts import RECORDS, UNREADABLE
from equipoise.terminal.progress import Console

WRITTEN_SECONDS = 1.0  # in which a running evaluation has written its files


@dataclass
class Verified:
    """The verification of one evaluation.

    Arguments:
        name: The evaluation.
        n: The number of images.
        images: The sample of the test images, as text.
        robust: The number of images that count as robust.
        examples: The number of adversarial examples that were checked.
        problems: The problems, a sentence each; none for a sound evaluation.
        finished: Whether the evaluation has run to its end.
        ties: The number of examples that are misclassified by less than rounding.
        again: The result of attacking some images again; None: not requested.
        audit: The result of an audit with another nonce; None: not requested.
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
    audit: AuditAgain | None = None

    def __str__(self) -> str:
        if self.problems:
            return f"{self.name}: NOT VERIFIED, {'; '.join(self.problems)}"
        end = "" if self.finished else " (interrupted: not all attacks have run)"
        ties = f" ({self.ties} of them by less than rounding)" if self.ties else ""
        again = "".join(f"; {more}" for more in (self.again, self.audit) if more)
        return (
            f"{self.name}: verified, robust accuracy at most {self.robust / max(self.n, 1):.2%} "
            f"({self.robust} of {self.n}) on {self.images}{end}: the {self.examples} stored "
            f"examples fool the model{ties}; more may exist{again}"
        )


def verify_run(
    path: str | Path,
    *,
    data_dir: str | Path | None = None,
    device: str = "auto",
    batch_size: int = 500,
    model: str | None = None,
    trust: bool = False,
    again: int | None = None,
    nonce: str | None = None,
    audit: str | None = None,
    console: Console | None = None,
) -> list[Verified]:
    """Verify every evaluation in a folder.

    Arguments:
        path: The run folder.
        data_dir: The folder of the data; by default that of the training.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: The size of a batch.
        model: As for :func:`equipoise.jobs.target_model.of_run`, as is the next.
        trust: Whether to run the code that the folder names.
        again: How many images of each evaluation that count as robust are attacked again.
        nonce: Text that determines which of them are drawn; None: random, and shown.
        audit: The nonce with which each audit is repeated; None: they are not.
        console: Where progress is shown; by default nowhere.

    Returns:
        The verified evaluations, without problems. (Results on corrupted images are only shown.)

    Raises:
        UserError: If there is nothing to verify.
        RunError: If there is a problem.
    """
    if again is not None and again < 1:
        raise UserError(f"--again must be at least 1, got {again}")
    check_nonce(audit)
    console = console or Console(quiet=True)
    deterministic()
    place = choose_device(device)
    results = []
    code: dict[str, Any] = {"model": model, "trust": trust}
    subjects = {"model": of_run(path, "model", data_dir, Console(quiet=True), **code)}
    run = subjects["model"].run

    def subject_of(which: str) -> Subject:
        if which not in subjects:
            subjects[which] = of_run(path, which, data_dir, console, **code)
        return subjects[which]

    for store in Store.all(run):
        verified, subject = Verified(store.name), subject_of(store.which)
        subject.model.to(place)
        drawn_by = secrets.token_hex(4) if nonce is None else nonce
        given = verified, store, subject, place, batch_size, again, drawn_by, audit, console
        verified.problems = _problems(partial(list, [store]), _check, *given)
        console.say(str(verified))
        results.append(verified)
    measured = corruptions.files(run.path)
    if not results and not measured:
        raise UserError(f"{path} holds no evaluation; run: {plugins.command('evaluate', path)}")
    if audit is not None and not any(v.audit or v.problems for v in results):
        raise UserError(
            f"{path} holds no audited evaluation; run: "
            f"{plugins.command('evaluate', path)} --attacks audited"
        )
    wrong = [f"{v.name}: {'; '.join(v.problems)}" for v in results if v.problems]
    if results or (run.path / RECORDS).exists():
        wrong += _problems(partial(Store.all, run), verify_stored.folder, run)
    for file in measured:
        wrong += corruptions_again(file, subject_of, place, batch_size, console)
    if wrong:
        raise RunError(f"NOT VERIFIED: {'. '.join(wrong)}")
    return results


def _problems(
    stores: Callable[[], list[Store]], check: Callable[..., list[str]], *given: Any
) -> list[str]:
    """Return the problems of a check; it runs again if an evaluation is being written by then."""
    problems = check(*given)
    if problems and any(store.busy for store in stores()):
        time.sleep(WRITTEN_SECONDS)
        return check(*given)
    return problems


def _check(
    verified: Verified,
    store: Store,
    subject: Subject,
    device: torch.device,
    batch_size: int,
    again: int | None,
    nonce: str,
    audit: str | None,
    console: Console,
) -> list[str]:
    """Return the problems of one evaluation, and fill in its verification."""
    problems: list[str] = []
    try:
        about, result, tensors = store.read()
        verified.n, verified.robust = len(result.y), int(result.robust.sum())
        sample = Sample.of_content(about["sample"])
        verified.images = sample.words("test images")
        verified.finished = bool(about.get("finished"))
        if "x" not in tensors:  # in pieces, as it is not finished
            images, _ = drawn_again(subject.dataset.test, about["n"], sample)
            tensors = completed(result, tensors, images.pixels())
        problems = verify_stored.claims(store, about, result, tensors)
        origin = _origin(about, sample, tensors, subject)
    except UserError as error:
        return [*problems, str(error)]
    except UNREADABLE as error:
        return [*problems, f"it is damaged ({' '.join(str(error).split())[:100]})"]
    if origin:
        return problems + origin
    x = tensors["x"].to(device)
    judge = Judge(subject.model, batch_size, seed=result.seed)
    if not judge.repeats(x):  # else one pass decides, in any case
        judge = replace(judge, passes=result.passes)
    problems += _examples(verified, result, x, judge)
    if problems:
        return problems
    try:
        with plugins.explained(dict(about.get("asked") or {}).get("import")):
            if again:
                version = str(about.get("version"))
                verified.again = attack_again(
                    result, x, judge, n=again, nonce=nonce, version=version
                )
            if audit is not None and result.audit is not None:
                verified.audit = audit_again(
                    result, subject.model, x, nonce=audit, console=console
                )
    except (UserError, RunError, *UNREADABLE) as error:
        return [f"its attacks cannot be run again: {error}"]
    repeated = (verified.again, verified.audit)
    return [problem for each in repeated if each is not None for problem in each.problems]


def _origin(
    about: dict[str, Any], stored: Sample, tensors: dict[str, Tensor], subject: Subject
) -> list[str]:
    try:
        test, sample = drawn_again(subject.dataset.test, about["n"], stored)
    except (UserError, TypeError, ValueError) as error:
        return [f"its sample cannot be drawn ({error})"]
    images = tensor_digest(test.pixels())
    pairs = {
        "the sample": (stored, sample),
        "the weights of the model": (about["model_sha256"], model_digest(subject.model)),
        "the stored images": (tensor_digest(tensors["x"]), images),
        "the stored labels": (tensor_digest(tensors["y"]), tensor_digest(test.y)),
        "the images": (about["data_sha256"], images),
    }
    return [
        f"{what} are not those that were evaluated" for what, (a, b) in pairs.items() if a != b
    ]


def _examples(verified: Verified, result: Result, x: Tensor, judge: Judge) -> Iterator[str]:
    """Classify every clean image and every stored point again, and return the problems."""
    y, x_adv = result.y.to(x.device), result.x_adv.to(x)
    # One in a hundred predictions of a random model may differ.
    slack = 0 if judge.repeats(x) else max(1, len(y) // 100)
    clean, logits = judge.logits(x), judge.logits(x_adv)
    changed = int(((clean.argmax(1).cpu() != result.prediction) & ~ties(clean)).sum())
    if changed > slack:
        yield f"the clean predictions differ on {changed} images"
    outside = int((~judge.admit(x, x_adv, result.threat)).sum())
    if outside:
        yield f"{outside} adversarial examples are outside the threat"
    broken = result.correct & ~result.robust
    margins = torch.where(torch.isfinite(logits).all(1), -margin(logits, y).double(), -torch.inf)
    margins, tie = margins.cpu(), ties(logits)
    correct = int((broken & (margins > 0) & ~tie).sum())
    if correct > slack:
        yield f"{correct} adversarial examples are classified correctly"
    if not slack and judge.passes == result.passes:
        pairs = zip(
            torch.split(x, judge.batch_size), torch.split(x_adv, judge.batch_size), strict=True
        )
        unchanged = torch.cat([(a == b).flatten(1).all(1) for a, b in pairs]).cpu()
        yield from _measured(result, unchanged, margins, logits)
    verified.examples, verified.ties = int(broken.sum()), int((broken & tie).sum())


def _measured(result: Result, unchanged: Tensor, margins: Tensor, logits: Tensor) -> Iterator[str]:
    """Compare the stored margins and predictions of all points with those of the model."""
    large = logits.abs().amax(1).cpu().double()
    close = (margins - result.margin).abs() <= UNDECIDED * large
    untouched = (result.margin == torch.inf) & unchanged
    off = int((~close & (margins != result.margin) & ~untouched).sum())
    if off:
        yield f"the margins of {off} examples are not those of the model"
    predictions = logits.argmax(1).cpu()
    off = int(((predictions != result.adversarial_prediction) & ~ties(logits)).sum())
    if off:
        yield f"the predictions for {off} adversarial examples are not those of the model"
