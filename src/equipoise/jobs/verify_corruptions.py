"""Measuring stored results on corrupted images again: the images are corrupted anew."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import Tensor

from equipoise.data.corruptions import STRENGTHS
from equipoise.data.sampling import drawn_again
from equipoise.errors import RunError, UserError
from equipoise.evaluation.corruptions import CELLS, SEED, logits_on, pictures, predicted
from equipoise.evaluation.evaluate import place_of
from equipoise.evaluation.judge import Judge, ties
from equipoise.jobs.target_model import Subject
from equipoise.jobs.verify_stored import PASSES
from equipoise.sample import Sample
from equipoise.store.corruptions import FOLDER, NOT_DONE, Corruptions, file_name
from equipoise.store.digests import model_digest, tensor_digest
from equipoise.terminal.progress import Console


def corruptions_again(
    path: Path,
    subject_of: Callable[[str], Subject],
    device: torch.device,
    batch_size: int,
    console: Console,
) -> list[str]:
    """Return what differs from a stored result if the images are corrupted and classified again.

    Arguments:
        path: The file of the result.
        subject_of: Returns the model of a name of weights, with its test images.
        device: The device of the model.
        batch_size: The size of a batch.
        console: Where the result is shown.
    """
    said = ""
    try:
        stored = Corruptions.read(path)
        said = f"{stored.sentence} on {stored.images}"
        problems = list(_problems(path, stored, subject_of(stored.weights), device, batch_size))
    except (UserError, RunError) as error:
        problems = [str(error)]
    name = f"{FOLDER}/{path.stem}"
    result = f"NOT VERIFIED, {'; '.join(problems)}" if problems else f"verified, {said}"
    console.say(f"{name}: {result}")
    return [f"{name}: {problem}" for problem in problems]


def _problems(
    path: Path, stored: Corruptions, subject: Subject, device: torch.device, batch_size: int
) -> Iterator[str]:
    try:
        sample = Sample.of_content(stored.about["sample"])
        images, again = drawn_again(subject.dataset.test, stored.n, sample)
        passes = min(max(int(stored.about["passes"]), 1), PASSES)
    except (UserError, LookupError, TypeError, ValueError) as error:
        yield f"its sample cannot be drawn ({error})"
        return
    x, y, model = images.pixels(), images.y, subject.model.to(device)
    pairs = {
        "the sample": (sample, again),
        "the weights of the model": (stored.about.get("model_sha256"), model_digest(model)),
        "the images": (stored.about.get("data_sha256"), tensor_digest(x)),
        "the labels": (stored.y.tolist(), y.tolist()),
        "the name of its file": (path.name, file_name(sample, stored.weights)),
        "the corruptions": ((stored.strengths, stored.seed), (STRENGTHS, SEED)),
    }
    if wrong := [what for what, (a, b) in pairs.items() if a != b]:
        yield f"{' and '.join(wrong)} are not those that are stored"
        return
    image, examples = pictures(x[:1])
    if not (np.array_equal(stored.image, image) and np.array_equal(stored.examples, examples)):
        yield f"its example images differ{_pillow(stored)}"
    yield from _differences(stored, x, Judge(model, batch_size, passes, SEED))


def _differences(stored: Corruptions, x: Tensor, judge: Judge) -> Iterator[str]:
    where = place_of(judge.model, x)
    # One in a hundred predictions of a random model may differ.
    slack = 0 if judge.repeats(x[:8].to(*where)) else max(1, stored.n // 100)
    cells: list[tuple[str, int] | None] = [None, *CELLS]
    for cell in cells:
        kind, severity = cell or ("", 0)
        row = stored.prediction[stored.kinds.index(kind), severity - 1] if cell else None
        row = stored.clean_prediction if row is None else row
        if (row == NOT_DONE).all():
            continue
        logits = logits_on(judge, x, cell, place=where)
        off = int(((predicted(logits) != row) & ~ties(logits).numpy()).sum())
        if off > slack:
            name = f"{kind} {severity}" if cell else "the images themselves"
            why = _pillow(stored) if kind == "jpeg" else ""
            yield f"the predictions on {name} differ on {off} images{why}"


def _pillow(stored: Corruptions) -> str:
    """Return which other version of Pillow wrote the JPEG files, if it is another one."""
    made = stored.about.get("pillow")
    return "" if made == PIL.__version__ else f" (made with Pillow {made}, not {PIL.__version__})"
