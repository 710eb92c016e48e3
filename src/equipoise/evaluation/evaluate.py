"""Evaluating a model: every attack alone on all correctly classified examples, judged apart."""

__all__ = ["evaluate"]

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from equipoise.attacks import Attack, check_norms, parse_list, without_clean
from equipoise.attacks.core import check_inputs
from equipoise.draws import KeyedDraws
from equipoise.errors import UserError
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.result import Result
from equipoise.threat import Threat


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    attacks: Mapping[str, Attack] | Sequence[str] | str = ("pgd-20",),
    seed: int = 0,
    batch_size: int = 500,
    precision: Literal["float32", "bfloat16"] = "float32",
    classes: Sequence[str] = (),
    advance: Callable[[str, int], None] | None = None,
    after: Callable[[Result], None] | None = None,
) -> Result:
    """Attack a model and judge what the attacks find.

    Each attack runs alone on all examples that are classified correctly, so that the accuracy
    under each is comparable with what papers report; the worst case over all of them is
    ``Result.robust_accuracy``. No verdict depends on the batch size or on the order of the
    examples, but for the rounding of floating point.

    Arguments:
        model: From inputs within the threat's range to logits, with shape (N, K); it is used in
            eval mode and left as it was. It may be on any device.
        x: The inputs, with shape (N, ...).
        y: The labels, int64, with shape (N,).
        threat: What the attacks are allowed.
        attacks: Names as for :func:`equipoise.attacks.parse`, or attacks by names of your own;
            ``"clean"`` is always measured.
        seed: The seed of the attacks' randomness.
        batch_size: How many examples are attacked at a time: memory, not results.
        precision: The arithmetic of the search; the judge's is float32 either way.
        classes: The names of the classes, by label.
        advance: Told the attack and how many more examples it is done with.
        after: Given the result so far after each attack.

    Returns:
        The verdicts, the strongest points found, and what follows from them.

    Raises:
        UserError: If inputs, labels, outputs or attacks will not do.
    """
    found = attacks if isinstance(attacks, Mapping) else parse_list(without_clean(attacks))
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    check_norms(found, threat.norm)
    if not len(x):
        raise UserError("there are no examples to evaluate")
    check_inputs(x, y, threat)
    device, dtype = _place(model, x)
    x, y = x.to(device, dtype), y.to(device)
    judge = Judge(model, batch_size)
    search = _Search(judge, x, y, threat, seed, precision)
    search.look(len(classes) or None)
    for name, attack in found.items():
        search.run(name, attack, advance or (lambda name, n: None))
        if after is not None:
            after(search.result(classes))
    return search.result(classes)


def _place(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return where the model is and what it computes in, which the judge needs to be exact."""
    held = next((p for p in model.parameters() if p.is_floating_point()), x)
    if held.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"the model's weights are {held.dtype}; verdicts need at least float32: evaluate "
            'model.float(), and search with precision="bfloat16" to be quick'
        )
    return held.device, held.dtype


class _Search:
    """The evaluation of one model under one threat while it goes on."""

    def __init__(
        self, judge: Judge, x: Tensor, y: Tensor, threat: Threat, seed: int, precision: str
    ) -> None:
        self.judge, self.x, self.y, self.threat, self.seed = judge, x, y, threat, seed
        self.precision = torch.bfloat16 if precision == "bfloat16" else None
        self.prediction = y
        self.x_adv = x.clone()
        self.margin = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.verdicts: dict[str, Tensor] = {}
        self.settings: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        self.rejected: dict[str, int] = {}

    def look(self, classes: int | None) -> None:
        """Look at the clean inputs, and refuse outputs that cannot be logits."""
        logits = self.judge.logits(self.x)
        self.judge.check(logits, self.y, classes)
        self.prediction = logits.argmax(1)

    def run(self, name: str, attack: Attack, advance: Callable[[str, int], None]) -> None:
        """Run one attack on all correct examples, and judge it."""
        began = time.perf_counter()
        correct = self.prediction == self.y
        verdict, rejected = correct.clone(), 0
        every = correct.nonzero()[:, 0]
        advance(name, len(correct) - len(every))
        for first in range(0, len(every), self.judge.batch_size):
            index = every[first : first + self.judge.batch_size]
            x, y = self.x[index], self.y[index]
            x_adv = self._search(attack, x, y)
            allowed = self.judge.admit(x, x_adv, self.threat)
            fooled, margins = self.judge.fooled(x_adv, y)
            verdict[index] = ~(allowed & fooled)
            rejected += int((~allowed).sum())
            self._keep(index, x_adv, torch.where(allowed, margins, torch.inf))
            advance(name, len(index))
        self.verdicts[name] = verdict
        low = f", searched in {self.precision}".replace("torch.", "") if self.precision else ""
        self.settings[name] = f"{attack}{low}"
        self.seconds[name] = time.perf_counter() - began
        self.rejected[name] = rejected

    def _search(self, attack: Attack, x: Tensor, y: Tensor) -> Tensor:
        """Return what an attack proposes, in the judge's arithmetic.

        The attack gets copies: whatever it does with them, the judge keeps its own.
        """
        draws = KeyedDraws.of(x, self.seed).child(str(attack))
        with torch.autocast(x.device.type, self.precision, enabled=bool(self.precision)):
            return attack(self.judge.model, x.clone(), y.clone(), self.threat, draws=draws).to(x)

    def _keep(self, index: Tensor, x_adv: Tensor, margins: Tensor) -> None:
        """Keep the allowed points with the smallest margin."""
        better = margins < self.margin[index]
        self.x_adv[index[better]] = x_adv[better]
        self.margin[index[better]] = margins[better]

    def result(self, classes: Sequence[str]) -> Result:
        """Return what was found, on the CPU."""
        return Result(
            threat=self.threat,
            y=self.y.cpu(),
            prediction=self.prediction.cpu(),
            x_adv=self.x_adv.cpu(),
            margin=self.margin.cpu(),
            adversarial_prediction=self.judge.logits(self.x_adv).argmax(1).cpu(),
            verdicts={name: verdict.cpu() for name, verdict in self.verdicts.items()},
            settings=self.settings,
            seconds=self.seconds,
            rejected=self.rejected,
            seed=self.seed,
            classes=classes,
        )
