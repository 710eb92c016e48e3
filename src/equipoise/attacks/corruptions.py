"""The worst corruption of an image: noise, blur, JPEG, brightness or contrast at one severity.

Nothing is searched for: the inputs do not depend on the model, only which of them counts does. A
corrupted image is in no small ball around the image, so the threat must be the whole range: Linf
with eps = 1. An image is robust if the model is right on every kind.

References:
    | Benchmarking Neural Network Robustness to Common Corruptions and Perturbations
    | (Hendrycks and Dietterich, 2019), https://arxiv.org/abs/1903.12261
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from equipoise.attacks.apgd import Finds
from equipoise.attacks.core import prepared, refuse
from equipoise.attacks.margin import noted
from equipoise.data.corruptions import SEVERITIES, STRENGTHS, corrupted
from equipoise.draws import Draws
from equipoise.errors import UserError, short
from equipoise.execution.form import guest
from equipoise.threat import Norm, Threat


@dataclass(frozen=True, kw_only=True)
class WorstCorruption:
    """The worst of the kinds in :data:`equipoise.data.corruptions.STRENGTHS`.

    Arguments:
        severity: That of all kinds, 1 to 5.
        norms: The norms for which it is defined.
    """

    severity: int = 3
    norms: tuple[Norm, ...] = ("linf",)

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            refuse([f"severity must be 1 to 5, got {short(self.severity)}"])

    def cost(self, norm: Norm) -> float:
        """Return a rough number of the gradient evaluations an image: a pass for each kind."""
        return len(STRENGTHS) / 3

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, draws: Draws | None = None
    ) -> Tensor:
        """Return the worst corrupted image for every example: see :class:`Attack`.

        Raises:
            UserError: If the threat is not all images in [0, 1].
        """
        x, y, draws = prepared(self, x, y, threat, draws)
        if (threat.low, threat.high) != (0, 1) or threat.eps < 1:
            raise UserError(
                f"corruptions are no small perturbations, and are of images in [0, 1]: with them "
                f"the threat must be linf with eps=1, got {threat}"
            )
        finds = Finds(x)
        with guest(model) as model, torch.no_grad():
            for kind in STRENGTHS:
                if not len(finds.open):
                    break
                some = x[finds.open], kind, self.severity, draws.select(finds.open)
                noted(model, corrupted(*some), y[finds.open], finds)
        return finds.x_adv
