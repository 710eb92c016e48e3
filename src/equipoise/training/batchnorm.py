"""Re-estimating the statistics of BatchNorm for merged weights."""

__all__ = ["Drawn", "estimate", "estimate_on", "has_batchnorm", "settle", "some_batches"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from equipoise.data.core import Images
from equipoise.draws import Draws, GeneratorDraws
from equipoise.objectives import Batch
from equipoise.training.learner import Learner

Norm = nn.modules.batchnorm._BatchNorm

MOST = 20  # batches to look at


def has_batchnorm(model: nn.Module) -> bool:
    """Tell whether a model keeps statistics of its batches."""
    return any(isinstance(m, Norm) and m.track_running_stats for m in model.modules())


def some_batches(
    images: Images, size: int, generator: torch.Generator, progress: float
) -> Iterator[Batch]:
    """Yield a few random batches of images, without augmentation.

    Arguments:
        images: The training images.
        size: The images of a batch.
        generator: Chooses them.
        progress: The part of the training that is done.
    """
    order = torch.randperm(len(images), generator=generator, device=generator.device)
    for step in range(min(MOST, len(images) // size or 1)):
        index = order[step * size : (step + 1) * size]
        yield Batch(images.pixels(index), images.y[index], index, progress)


@torch.no_grad()
def estimate(
    model: nn.Module,
    learners: Mapping[str, Learner],
    weights: Mapping[str, float],
    batches: Iterable[Batch],
    draws: Draws,
) -> None:
    """Replace a model's BatchNorm statistics by their mean over batches of the learners' inputs.

    Each batch is split between the learners as they are weighted, and each learner sees its part
    as in training, but for augmentation: the robust learner adversarial inputs, the clean one
    clean inputs. So the statistics belong to the mix that the model is meant for, and not to
    clean data alone.

    Arguments:
        model: The merged model, changed in place.
        learners: The learners by name.
        weights: How much each of them counts.
        batches: The batches to look at.
        draws: The randomness of the attacks.
    """
    # All inputs first: an attack must not meet a model without statistics.
    settle(model, [_mix(model, learners, weights, batch, draws) for batch in batches])


@torch.no_grad()
def settle(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Replace BatchNorm statistics by their mean over batches; the model is left in eval mode.

    Arguments:
        model: The model, changed in place.
        inputs: The batches, each with shape (B, C, H, W); each counts as much as any other.
    """
    norms = [module for module in model.modules() if isinstance(module, Norm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative mean
    model.train()
    for batch in inputs:
        model(batch)
    model.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


class Drawn(NamedTuple):
    """Batches that a seed draws.

    Arguments:
        images: The training images, on the device.
        size: The images of a batch.
        seed: Of the batches, and of the attacks on them.
        progress: The part of the training that is done.
    """

    images: Images
    size: int
    seed: int
    progress: float


def estimate_on(
    model: nn.Module, learners: Mapping[str, Learner], weights: Mapping[str, float], drawn: Drawn
) -> None:
    """Do so on batches that are drawn, if the model has such statistics."""
    if has_batchnorm(model):
        generator = torch.Generator(drawn.images.x.device).manual_seed(drawn.seed)
        batches = some_batches(drawn.images, drawn.size, generator, drawn.progress)
        estimate(model, learners, weights, batches, GeneratorDraws(generator))


def _mix(
    model: nn.Module,
    learners: Mapping[str, Learner],
    weights: Mapping[str, float],
    batch: Batch,
    draws: Draws,
) -> Tensor:
    """Return a batch of which each learner's share is as the learner sees it."""
    inputs: list[Tensor] = []
    begin, n = 0.0, len(batch.y)
    for name, weight in weights.items():
        part = slice(round(begin * n), round((begin + weight) * n))
        begin += weight
        if part.start < part.stop:
            sub = Batch(batch.x[part], batch.y[part], batch.index[part], batch.progress)
            inputs.append(learners[name].objective.inputs(model, sub, draws))
    return torch.cat(inputs)
