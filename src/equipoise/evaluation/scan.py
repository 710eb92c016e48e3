"""A quick scan: the radii at which the correct images of a sample are lost.

One short attack at the radius in question gives the first number. Then FAB-T looks for the nearest
misclassified point of each correct image at any distance; PGD on the margin attacks the images
that are left at several radii, from small to large, from the points of the smaller radius; and a
search without gradients attacks what is left at the radius in question and at larger ones. An
image that was lost at a radius is lost at every larger one. All points are confirmed by the judge,
and the checks of an evaluation run on the sample. It is no verdict: the attacks are short.

With 20 steps and 3 targets FAB-T found half-way radii 0 to 2 % above those of 100 steps and 9
targets on digits (standard and PGD-AT, Linf and L2), and 6 % above on a PGD-AT model of
Fashion-MNIST, for a fifteenth of the passes; PGD at a ladder of radii with bisections found them 4
to 8 % above, for as many.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack, check_inputs, cost, examples
from equipoise.attacks.fab import FABT
from equipoise.attacks.pgd import PGD
from equipoise.attacks.square import Square
from equipoise.draws import KeyedDraws
from equipoise.errors import RunError, UserError, one_line, short
from equipoise.evaluation.checks.after import after
from equipoise.evaluation.checks.before import before
from equipoise.evaluation.checks.probes import FEWEST, SHARE, probes
from equipoise.evaluation.evaluate import place_of
from equipoise.evaluation.judge import Judge, misfit
from equipoise.execution.form import fast
from equipoise.execution.outputs import as_module
from equipoise.execution.passes import NoGradient, outside_inference, restored, seeded
from equipoise.execution.policy import Execution
from equipoise.store.finding import Finding
from equipoise.store.scan import Scan
from equipoise.terminal.progress import AttackProgress
from equipoise.threat import Norm, Threat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.utils.data import DataLoader, Dataset

FIRST = PGD(steps=10, loss="margin", keep="first")
NEAREST = FABT(steps=20, targets=3)
BLIND = Square(queries=100)
FACTORS = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4)  # of the radius in question
CHECKED, PROBED = 12, 390  # rough numbers of gradient evaluations of an image in the checks
MOST_PROBED = 100  # images
LARGEST = 250  # images of a batch
SMALLEST = 16
BATCHES = 4  # a sample is attacked in at least so many batches, so that progress is seen

Advance = Callable[[AttackProgress], None]


@dataclass
class ScanState:
    """What a scan has found so far; each tensor has a row for each image.

    Arguments:
        x: The images.
        y: The labels.
        prediction: The predicted classes.
        x_adv: The nearest misclassified point; the image itself where there is none.
        answer: Its predicted class.
        size: Its distance, or the radius at which it was found if that is less.
        start: Where the next search starts.
        quick: Which images the first attack fooled.
        blind: Which images only the search without gradients fooled.
        done: The number of batches that are done, of all attacks.
        findings: The findings of the checks so far.
    """

    x: Tensor
    y: Tensor
    prediction: Tensor
    x_adv: Tensor
    answer: Tensor
    size: Tensor
    start: Tensor
    quick: Tensor
    blind: Tensor
    done: int = 0
    findings: tuple[Finding, ...] = ()


def radii_around(threat: Threat) -> tuple[float, ...]:
    """Return the radii of a scan: from an eighth of a radius to four times it."""
    most = threat.high - threat.low if threat.norm == "linf" else float("inf")
    return tuple(dict.fromkeys(min(factor * threat.eps, most) for factor in FACTORS))


def evaluations(norm: Norm, n: int) -> float:
    """Return a rough number of the gradient evaluations of a scan of n images, at most."""
    ladder = len(FACTORS) * cost(FIRST, norm)
    attacks = cost(FIRST, norm) + 4 / 3 * cost(NEAREST, norm) + ladder + cost(BLIND, norm)
    probed = min(MOST_PROBED, max(n // SHARE, FEWEST), n)
    return n * (attacks + CHECKED) + probed * PROBED


def scan(
    model: nn.Module | Callable[[Tensor], Any],
    x: "Tensor | NDArray[Any] | DataLoader[Any] | Dataset[Any]",
    y: "Tensor | NDArray[Any] | Sequence[int] | None" = None,
    *,
    threat: Threat,
    seed: int = 0,
    classes: Sequence[str] = (),
) -> Scan:
    """Find out in a few short attacks whether a model is easily fooled, and from which radius on.

    Arguments:
        model: As for :func:`equipoise.evaluate`, as are the next two; a few hundred images do.
        x: The inputs.
        y: The labels.
        threat: The norm, the radius in question and the range; radii from an eighth of it to four
            times it are attacked.
        seed: The seed of the attacks' randomness.
        classes: The names of the classes, by label.

    Returns:
        The accuracy by radius, an upper bound; the smallest radius found at which half of the
        correct images are lost; the findings of the checks.

    Raises:
        UserError: If inputs, labels, outputs or the threat are invalid.
        RunError: If the model fails.
    """
    if not isinstance(threat, Threat):
        raise UserError(f"expected a threat such as eq.Linf(8 / 255), got {short(threat)}")
    model = as_module(model)
    x, y = examples(x, y)
    if not len(x):
        raise UserError("there are no examples to scan")
    x, y = check_inputs(x, y, threat)
    device, dtype = place_of(model, x)
    x, y = x.to(device, dtype), y.to(device)
    scanner = Scanner(model, x, y, threat, seed=seed, classes=classes)
    scanner.run()
    return scanner.result()


class Scanner:
    """One scan of one model, batch by batch.

    Arguments:
        model: From inputs to logits; it is left as it was.
        x: The inputs, with shape (N, ...), on the device of the model.
        y: The labels, with shape (N,).
        threat: The norm, the radius in question and the range.
        seed: The seed of the attacks.
        classes: The names of the classes.
        begun: A scan of the same that was stopped; it is continued.

    Raises:
        UserError: If the radius is 0.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        classes: Sequence[str] = (),
        begun: ScanState | None = None,
    ) -> None:
        if threat.eps == 0:
            raise UserError("a scan needs a radius above 0, got eps 0")
        self.model, self.threat, self.seed, self.classes = model, threat, seed, classes
        self.radii, self.finished = radii_around(threat), False
        self.size = min(LARGEST, max(SMALLEST, -(-len(x) // BATCHES)))
        self.judge = Judge(model, self.size, seed=seed)
        self.draws = KeyedDraws.of(x, seed).child("scan")
        self.training = model.training
        self.state = begun or self._begin(x, y)

    def _begin(self, x: Tensor, y: Tensor) -> ScanState:
        try:
            with outside_inference(), restored(self.model), seeded(self.seed, x.device):
                logits = self.judge.logits(x)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RunError(f"the model fails on the clean images ({one_line(error)})") from error
        if problem := misfit(logits, y, len(self.classes) or None):
            raise UserError(problem)
        prediction, none = logits.argmax(1), torch.zeros_like(y, dtype=torch.bool)
        size = torch.full(y.shape, torch.inf, dtype=torch.float64, device=y.device)
        size[prediction != y] = 0.0
        return ScanState(
            x=x,
            y=y,
            prediction=prediction,
            x_adv=x.clone(),
            answer=prediction.clone(),
            size=size,
            start=x.clone(),
            quick=none,
            blind=none.clone(),
        )

    def run(
        self,
        advance: Advance = lambda progress: None,
        first: Callable[[], None] = lambda: None,
        save: Callable[[], None] = lambda: None,
    ) -> None:
        """Run all attacks and checks that are not done yet.

        Arguments:
            advance: Called after every batch with the progress.
            first: Called after the first attack, unless a scan is continued.
            save: Called after every batch, before ``advance``.
        """
        device = self.state.x.device
        with outside_inference(), restored(self.model), seeded(self.seed, device):
            self.form = fast(self.model, self.state.x, Execution(precision="float32"))
            stages, begun = self._stages(), self.state.done
            for number in range(len(stages)):
                if number == 1:
                    if not begun:
                        first()
                    self._check_before()
                for progress in self._stage(number, *stages[number]):
                    save()
                    advance(replace(progress, number=number + 1, stages=len(stages)))
            self._check_after()
        self.finished = True

    def _stages(self) -> list[tuple[str, float, Attack]]:
        """Return the attacks in their order: name, radius (infinite: any) and attack."""
        eps = self.threat.eps
        return [
            (f"pgd-10 at eps {eps:.4g}", eps, FIRST),
            ("nearest points", torch.inf, NEAREST),
            *((f"pgd-10 at eps {each:.4g}", each, FIRST) for each in self.radii),
            *(
                (f"square-100 at eps {each:.4g}", each, BLIND)
                for each in self.radii
                if each >= eps
            ),
        ]

    def _stage(
        self, number: int, name: str, eps: float, attack: Attack
    ) -> Iterator[AttackProgress]:
        """Run an attack batch by batch.

        Batches are of neighbours among all images, so that a resume has the same ones.
        """
        s, n, began = self.state, len(self.state.y), time.perf_counter()
        batches = torch.split(torch.arange(n, device=s.y.device), self.size)
        past = number * len(batches)
        for place, rows in enumerate(batches, 1):
            if past + place <= s.done:
                continue
            above = 0.0 if eps == torch.inf else eps
            rows = rows[(s.prediction[rows] == s.y[rows]) & (s.size[rows] > above)]
            if len(rows):
                self._attack(rows, eps, attack, first=number == 0)
            s.done = past + place
            yield AttackProgress(
                name=name,
                done=min(n, place * self.size),
                total=n,
                robust=int((s.size > (above or self.threat.eps)).sum()),
                n=n,
                finished=place == len(batches),
                seconds=time.perf_counter() - began,
            )

    def _attack(self, rows: Tensor, eps: float, attack: Attack, *, first: bool) -> None:
        """Attack some images within a radius, or look for their nearest points at any."""
        s, (x, y) = self.state, (self.state.x[rows], self.state.y[rows])
        span = self.threat.high - self.threat.low
        every = {"linf": span, "l2": span * x[0].numel() ** 0.5, "l1": span * x[0].numel()}
        radius = every[self.threat.norm] if eps == torch.inf else eps
        allowed = replace(self.threat, eps=radius)
        draws = self.draws.select(rows).child(f"{attack} {eps!r}")
        try:
            if eps == torch.inf:
                points, _ = NEAREST.nearest(self.form, x, y, self.threat, draws=draws)
            elif isinstance(attack, PGD):
                start = None if first else s.start[rows]
                points = attack.search(self.form, x, y, allowed, draws, start=start)
            else:
                points = attack(self.form, x, y, allowed, draws=draws)
        except NoGradient:  # the check of gradients says so
            return
        blind = attack is BLIND and eps == self.threat.eps
        self._keep(rows, points.to(x), allowed, quick=first, blind=blind)

    def _keep(
        self, rows: Tensor, points: Tensor, allowed: Threat, *, quick: bool, blind: bool
    ) -> None:
        """Judge points, and keep those that are misclassified and the nearest so far."""
        s, x = self.state, self.state.x[rows]
        inside = self.judge.admit(x, points, allowed)
        ruling = self.judge.rule(points, s.y[rows])
        fooled = inside & ruling.fooled
        distance = allowed.distance(x, points).clamp_max(allowed.eps)  # without its tolerance
        better = fooled & (distance < s.size[rows])
        nearer = rows[better]
        s.x_adv[nearer], s.size[nearer] = points[better], distance[better]
        s.answer[nearer] = ruling.answer[better]
        s.start[rows] = torch.where(inside.view(-1, *[1] * (x.ndim - 1)), points, x)
        s.quick[rows] |= fooled & quick
        s.blind[rows] |= fooled & blind

    def _check_before(self) -> None:
        s = self.state
        if not s.findings:
            found = before(
                self.model,
                s.x,
                s.y,
                self.threat,
                seed=self.seed,
                classes=len(self.classes) or None,
                original_training=self.training,
            )
            s.findings = tuple(found)

    def _check_after(self) -> None:
        s, eps = self.state, self.threat.eps
        correct, lost = s.prediction == s.y, s.size <= eps
        found = probes(self.form, s.x, s.y, self.threat, seed=self.seed, attacks={"": FIRST})
        names = {"pgd-10": correct & (~lost | s.blind), "square-100": correct & ~s.blind}
        tried = {"pgd-10": correct, "square-100": names["pgd-10"]}
        checked = after(names, correct, attacked=tried, threat=self.threat)
        found += [each for each in checked if each.check == "black-box-full"]
        s.findings = tuple({each.check: each for each in (*s.findings, *found)}.values())

    def result(self) -> Scan:
        """Return the scan so far."""
        s = self.state
        return Scan(
            norm=self.threat.norm,
            eps=self.threat.eps,
            radii=self.radii,
            y=_array(s.y),
            prediction=_array(s.prediction),
            size=_array(s.size),
            quick=_array(s.quick),
            blind=_array(s.blind),
            classes=tuple(self.classes),
            findings=s.findings,
            seed=self.seed,
            finished=self.finished,
        )


def _array(tensor: Tensor) -> "NDArray[Any]":
    return np.array(tensor.cpu().numpy())
