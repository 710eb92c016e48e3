"""Measuring the model of a run on corrupted test images as a job."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from equipoise.data.corruptions import STRENGTHS
from equipoise.data.sampling import draw
from equipoise.errors import UserError
from equipoise.evaluation.corruptions import CELLS, SEED, measure
from equipoise.evaluation.evaluate import place_of
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.protocol import Protocol
from equipoise.jobs import signals
from equipoise.jobs.device import choose_device, deterministic
from equipoise.jobs.estimate import about as in_words
from equipoise.jobs.target_model import Subject
from equipoise.store.corruptions import FOLDER, Corruptions, file_name
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.store.provenance import machine
from equipoise.store.runs import Run
from equipoise.store.sealed import stamped
from equipoise.terminal.progress import Console, TimeUp
from equipoise.version import __version__

SAVE_SECONDS = 5.0
_SAME = ("model_sha256", "data_sha256", "labels_sha256", "passes", "pillow", "version")


def measure_run(
    subject: Subject,
    protocol: Protocol,
    *,
    eps: Sequence[float] = (),
    limit: float | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> Corruptions:
    """Measure a model on corrupted test images, and store the result while it is measured.

    What was measured before is not measured again.

    Arguments:
        subject: The model with its test images.
        protocol: Says which images, in what batches, and with how many passes; not how they are
            attacked.
        eps: The radii of the attacks that follow, which are refused here if they are invalid.
        limit: The seconds after which it stops, with what is known so far; None: no limit.
        device: ``auto``, ``cpu`` or ``cuda``.
        console: Where progress is shown; by default nowhere.

    Returns:
        The result; not finished if the time was over.

    Raises:
        UserError: If images or outputs are invalid.
        RunError: If the model failed.
    """
    console = console or Console(quiet=True)
    radii: list[float | None] = [*eps] or [protocol.eps]
    for radius in radii:
        replace(protocol, eps=radius).complete(subject.norm, subject.eps)
    deterministic()
    place, run = choose_device(device), subject.run
    model = subject.model.to(place)
    images, sample = draw(subject.dataset.test, protocol.n, first=protocol.first)
    x, y = images.pixels(), images.y
    about = {
        "sample": sample.content(),
        "weights": subject.which,
        "model_sha256": model_digest(model),
        "data_sha256": tensor_digest(x),
        "labels_sha256": tensor_digest(y),
        "passes": protocol.passes or 1,
        "pillow": PIL.__version__,
        "version": __version__,
        "made": machine(str(place)),
    }
    judge = Judge(model, protocol.batch(x), protocol.passes or 1, SEED)
    path = run.path / FOLDER / file_name(sample, subject.which)
    with Run(path.parent).lock("measuring", path.stem), signals.interrupting():
        begun = _begun(path, about, y.numpy(), console)
        done = 0 if begun is None else int(begun.done.sum())
        if begun is not None and begun.finished:
            console.say(f"corruptions: measured before, {begun.sentence}")
            return begun
        what = f"{run.path}, {sample.words('test images')}"
        console.say(f"corruptions of {what}" + (f": continued after {done}" if begun else ""))
        job, total = _Measuring(path, run, console, begun), len(y) * (len(CELLS) + 1)
        given: dict[str, Any] = {"classes": subject.dataset.classes, "about": about}
        given |= {"begun": begun, "advance": job.advance, "after": job.after}
        passed = len(y) * (done + 1) if begun else 0
        with console.progress(total, passed), console.within(limit):
            try:
                result = measure(judge, x, y, place=place_of(model, x), **given)
            except BaseException as stop:
                if job.latest is not None:
                    job.save(job.latest)
                    console.say("the corruptions so far are kept; the same command continues")
                    if isinstance(stop, TimeUp):
                        return job.latest
                raise
        job.save(result)
    console.say(f"corruptions: {result.sentence}")
    return result


class _Measuring:
    """Shows the progress, and saves every few seconds."""

    def __init__(self, path: Path, run: Run, console: Console, latest: Corruptions | None) -> None:
        self.path, self.run, self.console, self.latest = path, run, console, latest
        self.began = self.saved = time.monotonic()

    def advance(self, images: int) -> None:
        self.console.advance(images)
        if self.latest is not None:
            self.console.due()

    def after(self, result: Corruptions) -> None:
        if not result.done.any():  # the images themselves have been classified
            spent = time.monotonic() - self.began
            if told := in_words(len(CELLS) * spent, 2 * len(CELLS) * spent):
                self.console.say(f"this takes {told} on this machine")
        self.latest = result
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self.save(result)

    def save(self, result: Corruptions) -> None:
        tensors = {name: torch.from_numpy(value) for name, value in result.arrays.items()}
        payload = save(tensors, stamped(result.arrays, result.metadata))
        self.run.write(f"{FOLDER}/{self.path.name}", payload)
        self.saved = time.monotonic()


def _begun(
    path: Path, about: Mapping[str, Any], y: NDArray[Any], console: Console
) -> Corruptions | None:
    """Return the stored result of the same model on the same images; None: there is none."""
    if not path.exists():
        return None
    try:
        stored = Corruptions.read(path)
    except UserError as error:
        console.warn(f"{error} (it is measured anew)")
        return None
    same = all(stored.about.get(key) == about[key] for key in _SAME)
    same = same and np.array_equal(stored.y, y) and stored.seed == SEED
    return stored if same and stored.strengths == STRENGTHS else None
