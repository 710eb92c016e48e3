"""Measuring a model on corrupted images: every kind at every severity, on the same images.

The images are corrupted on the CPU, with noise that is keyed by the image and :data:`SEED`: every
model sees the same corrupted images, on every device and in every batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.data.corruptions import SEVERITIES, STRENGTHS, check_images, corrupted, to_bytes
from equipoise.draws import KeyedDraws
from equipoise.errors import RunError, UserError, one_line
from equipoise.evaluation.judge import Judge, misfit
from equipoise.execution.passes import outside_inference, restored, seeded
from equipoise.store.corruptions import NOT_DONE, NOT_FINITE, SHOWN, Corruptions

SEED = 0
_TOGETHER = 2**16  # numbers that are corrupted together: they stay in the cache
CELLS = [(kind, severity) for kind in STRENGTHS for severity in SEVERITIES]
Advance = Callable[[int], object]


def measure(
    judge: Judge,
    x: Tensor,
    y: Tensor,
    *,
    place: tuple[torch.device, torch.dtype],
    classes: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    begun: Corruptions | None = None,
    advance: Advance = lambda images: None,
    after: Callable[[Corruptions], object] = lambda result: None,
) -> Corruptions:
    """Return the predictions of a model on corrupted images.

    Arguments:
        judge: The model, and how it is asked.
        x: Images in [0, 1], with shape (N, 1, H, W) or (N, 3, H, W).
        y: Their labels, with shape (N,).
        place: Device and dtype of the model's inputs.
        classes: The names of the classes.
        about: What the result is of.
        begun: An interrupted result on the same images; it is continued.
        advance: Called after every batch with its number of images.
        after: Called with the result so far after the images themselves and every corruption.

    Raises:
        UserError: If images or outputs are invalid.
        RunError: If the model failed.
    """
    check_images(x)
    x = x.detach().cpu()
    image, examples = pictures(x[:1])

    def result(clean: NDArray[Any], prediction: NDArray[Any]) -> Corruptions:
        return Corruptions(
            strengths=STRENGTHS,
            y=y.cpu().numpy(),
            clean_prediction=clean,
            prediction=prediction.copy(),
            image=image,
            examples=examples,
            classes=tuple(classes),
            seed=SEED,
            about=about or {},
        )

    if begun is None:
        logits = logits_on(judge, x, None, place=place, advance=advance)
        if problem := misfit(logits, y.cpu(), len(classes) or None):
            raise UserError(problem)
        nothing = np.full((len(STRENGTHS), len(SEVERITIES), len(y)), NOT_DONE)
        begun = result(predicted(logits), nothing)
        after(begun)
    prediction = begun.prediction.copy()
    for kind, severity in CELLS:
        row = prediction[begun.kinds.index(kind), severity - 1]
        if (row == NOT_DONE).any():
            logits = logits_on(judge, x, (kind, severity), place=place, advance=advance)
            row[:] = predicted(logits)
            after(result(begun.clean_prediction, prediction))
    return result(begun.clean_prediction, prediction)


def logits_on(
    judge: Judge,
    x: Tensor,
    cell: tuple[str, int] | None,
    *,
    place: tuple[torch.device, torch.dtype],
    advance: Advance = lambda images: None,
) -> Tensor:
    """Return the logits of corrupted images, with shape (N, K), on the CPU.

    Arguments:
        judge: The model, and how it is asked.
        x: The images, on the CPU.
        cell: Kind and severity; None: the images themselves.
        place: Device and dtype of the model's inputs.
        advance: As for :func:`measure`.
    """
    name = " ".join(map(str, cell)) if cell else "no corruption"
    draws, parts = KeyedDraws.of(x, SEED), []
    try:
        with outside_inference(), restored(judge.model), seeded(SEED, place[0]):
            for rows in torch.split(torch.arange(len(x)), judge.batch_size):
                made = x[rows]
                if cell:
                    some = torch.split(rows, max(1, _TOGETHER // x[0].numel()))
                    made = torch.cat([corrupted(x[i], *cell, draws.select(i)) for i in some])
                parts.append(judge.logits(made.to(*place)).cpu())
                advance(len(rows))
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise RunError(f"the model fails on images with {name} ({one_line(error)})") from error
    return torch.cat(parts)


def predicted(logits: Tensor) -> NDArray[np.int64]:
    """Return the predicted classes of logits, with shape (N,)."""
    classes = logits.argmax(1).masked_fill(~torch.isfinite(logits).all(1), NOT_FINITE)
    return np.asarray(classes.numpy(), np.int64)


def pictures(x: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image, with shape (1, C, H, W), as bytes, and its corruptions that are shown."""
    draws = KeyedDraws.of(x, SEED)
    made = [[to_bytes(corrupted(x, kind, s, draws)[0]) for s in SHOWN] for kind in STRENGTHS]
    return to_bytes(x[0]).numpy(), torch.stack([torch.stack(row) for row in made]).numpy()
