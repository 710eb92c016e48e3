"""The statistics of BatchNorm: estimated for merged weights, and of a batch in several parts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)
from torch.overrides import TorchFunctionMode

from equipoise.data.core import Images
from equipoise.draws import Draws, GeneratorDraws
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


def estimate_on(
    model: nn.Module,
    learners: Mapping[str, Learner],
    weights: Mapping[str, float],
    images: Images,
    size: int,
    seed: int,
    progress: float,
) -> None:
    """Estimate the statistics of a model on a few random batches of images, by :func:`estimate`.

    Arguments:
        model: The merged model, changed in place.
        learners: The learners by name.
        weights: The weight of each of them.
        images: The training images.
        size: The images of a batch.
        seed: Chooses them, and is the seed of the attacks.
        progress: The part of the training that is done.
    """
    generator = torch.Generator(images.x.device).manual_seed(seed)
    batches = some_batches(images, size, generator, progress)
    estimate(model, learners, weights, batches, GeneratorDraws(generator))


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


Gather = Callable[[Tensor], Tensor]
"""From a tensor of this process to those of all, with a first dimension for the process."""


class Together(TorchFunctionMode):
    """Lets BatchNorm in training see the parts of a batch in several processes as one batch.

    Outside of training mode it is unchanged. torch's own SyncBatchNorm needs a GPU.

    Arguments:
        gather: Returns the tensors of all processes.
        add: Adds up a tensor over the processes, in place.
    """

    def __init__(self, gather: Gather, add: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.gather, self.add = gather, add

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of torch, or the BatchNorm of all parts in its place."""
        del types
        if func is F.batch_norm:
            return self.normalised(*args, **kwargs or {})
        return func(*args, **kwargs or {})

    def normalised(
        self,
        x: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Return what ``torch.nn.functional.batch_norm`` does for the whole batch.

        Arguments:
            x: The part of this process, with shape (B, C, ...).
            mean: The running mean, changed in place; None: there is none.
            var: The running variance, likewise.
            weight: The factors.
            bias: The shifts.
            training: Whether the statistics of the batch are used.
            momentum: The weight of a batch in the running statistics.
            eps: Added to the variance.
        """
        if not training:
            return F.batch_norm(x, mean, var, weight, bias, False, momentum, eps)
        with torch.no_grad():
            over = [d for d in range(x.ndim) if d != 1]
            wide = x.detach().to(torch.promote_types(x.dtype, torch.float32))
            own_var, own_mean = torch.var_mean(wide, over, correction=0)
            n = x.numel() // x.shape[1]
            own = torch.cat([own_mean, own_var, own_mean.new_full((1,), n)])
            every = self.gather(own)
            sizes = every[:, -1:]
            means, variances = every[:, :-1].chunk(2, 1)
            total = sizes.sum()
            centre = (sizes * means).sum(0) / total
            spread = (sizes * (variances + (means - centre).square())).sum(0) / total
            if mean is not None and var is not None:
                mean.lerp_(centre.to(mean), momentum)
                var.lerp_((spread * total / (total - 1)).to(var), momentum)
        parts = x, weight, bias, centre, spread, total, eps, self.add
        return _Normalised.apply(*parts)  # type: ignore[no-any-return, no-untyped-call]


class _Normalised(torch.autograd.Function):
    """Normalises a part of a batch by the statistics of the whole; they depend on all parts."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        total: Tensor,
        eps: float,
        add: Callable[[Tensor], None],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps, ctx.add, ctx.shifted = eps, add, bias is not None
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        factor = torch.ones_like(mean) if weight is None else weight
        direct, along, shift = torch.ops.aten.native_batch_norm_backward(
            grad, x, factor, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.cat([along, shift])
        ctx.add(sums)
        along_all, shift_all = (sums / total).chunk(2)
        # the mean and the variance move with x: dx = direct - w/s (sum g + z sum g z) / N
        inverse = (var + ctx.eps).rsqrt()
        slope = -factor * inverse.square() * along_all
        constant = -factor * inverse * shift_all - slope * mean
        shape = [1, -1, *[1] * (x.ndim - 2)]
        slope, constant = (v.view(shape).to(x.dtype) for v in (slope, constant))
        direct = direct.addcmul_(x, slope).add_(constant)
        own = along if weight is not None else None, shift if ctx.shifted else None
        return direct, *own, *[None] * 5
