"""Estimating the statistics of BatchNorm for merged weights."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.data.core import Images
from equipoise.draws import Draws
from equipoise.objectives.core import Batch
from equipoise.training.learner import Learner
from equipoise.training.updates import BatchNorm

MOST = 20  # batches


def has_batchnorm(model: nn.Module) -> bool:
    """Return whether a model has running statistics of its batches."""
    return any(isinstance(m, BatchNorm) and m.track_running_stats for m in model.modules())


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

    Each batch is split between the learners in proportion to their weights. Each part has the
    inputs on which its learner trains, without augmentation: adversarial ones for the robust
    learner. So the statistics are those of the mix, not of clean data alone.

    Arguments:
        model: The merged model, changed in place.
        learners: The learners by name.
        weights: The weight of each of them.
        batches: The batches.
        draws: The randomness of the attacks.
    """

    def mixed(batch: Batch) -> Tensor:
        inputs: list[Tensor] = []
        begin, n = 0.0, len(batch.y)
        for name, weight in weights.items():
            part = slice(round(begin * n), round((begin + weight) * n))
            begin += weight
            if part.start < part.stop:
                sub = Batch(batch.x[part], batch.y[part], batch.index[part], batch.progress)
                with learners[name].ramped(batch.progress):
                    inputs.append(learners[name].objective.inputs(model, sub, draws))
        return torch.cat(inputs)

    # All inputs first: an attack needs a model with statistics.
    settle(model, [mixed(batch) for batch in batches])


@torch.no_grad()
def settle(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Replace BatchNorm statistics by their mean over batches; the model is left in eval mode.

    Arguments:
        model: The model, changed in place.
        inputs: The batches, each with shape (B, C, H, W) and of equal weight.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
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
