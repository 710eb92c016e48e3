"""What the objectives have in common that train on clean and on adversarial inputs."""

__all__ = ["TwoSided"]

from typing import Any

import torch
from torch import Tensor, nn

from equipoise.objectives.robust import Robust, exact


class TwoSided(Robust):
    """An objective of clean and adversarial inputs.

    By default both pass forward as one batch. The authors' codes let them pass one after the
    other: then BatchNorm normalises each kind by statistics of its own in training, and both by
    the same running ones in use, with which the model was never trained. In three pairs of
    trainings of TRADES on Fashion-MNIST, eps 0.1, one batch was 3.0, 0.9 and 0.2 points more
    robust (docs/log.md, entry 8).

    Arguments:
        joint: Whether clean and adversarial inputs pass forward as one batch; False: one after
            the other, the clean ones first.
        settings: Those of :class:`Robust`.
    """

    both = True

    def __init__(self, *, joint: bool = True, **settings: Any) -> None:
        super().__init__(**settings)
        self.joint = joint

    def logits(self, model: nn.Module, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of clean and of adversarial inputs, in at least float32."""
        if not self.joint:
            return exact(model(x)), exact(model(x_adv))
        both = exact(model(torch.cat((x, x_adv))))
        return both[: len(x)], both[len(x) :]

    def formula(self) -> list[str]:
        """Return what :class:`Robust` does, and how the inputs pass forward."""
        how = "as one batch" if self.joint else "one after the other"
        passing = [f"x and x' pass forward {how}"] if self.both else []
        return [*super().formula(), *passing]
