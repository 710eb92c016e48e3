"""Evaluating a model: attacks search, alone or one after the other, and are judged apart."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack
from equipoise.attacks.inputs import check_inputs, examples, tensors
from equipoise.errors import RunError, UserError, one_line, short
from equipoise.evaluation import checks as checking
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.protocol import Protocol, Stage
from equipoise.evaluation.result import Result
from equipoise.evaluation.search import TRANSFER, Search
from equipoise.execution.outputs import as_module
from equipoise.execution.passes import NoGradient, outside_inference, restored, seeded
from equipoise.execution.policy import Execution, Layout, Precision
from equipoise.stopwatch import peak_memory
from equipoise.terminal.progress import AttackProgress
from equipoise.threat import Threat

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.utils.data import DataLoader, Dataset


def evaluate(
    model: nn.Module | Callable[[Tensor], Any],
    x: "Tensor | NDArray[Any] | DataLoader[Any] | Dataset[Any]",
    y: "Tensor | NDArray[Any] | Sequence[int] | None" = None,
    *,
    threat: Threat,
    attacks: Mapping[str, Attack] | Sequence[str] | str = ("pgd-20",),
    individual: bool | None = None,
    seed: int = 0,
    batch_size: int = 250,
    precision: Precision = "float32",
    layout: Layout = "auto",
    compile: bool = False,  # noqa: A002 - torch's name for it
    passes: int | None = None,
    strongest: bool = False,
    checks: bool = True,
    others: Mapping[str, Tensor] | None = None,
    control: Tensor | None = None,
    classes: Sequence[str] = (),
) -> Result:
    """Attack a model and judge what the attacks find.

    An attack that is named alone attacks all examples that are classified correctly, so that the
    accuracy under it compares with what papers report. The stages of an ensemble such as
    ``"autoattack"`` attack one after the other what withstood those before. The worst case over
    everything is ``Result.robust_accuracy``. No verdict depends on the batch size or on the order
    of the examples, but for the rounding of floating point.

    Arguments:
        model: From inputs within the threat's range to logits, with shape (N, K), as a tensor,
            as ``logits`` of an object or a dict, or as the first of a tuple; it is used in eval
            mode and left as it was. It may be on any device. A plain function is taken as it is.
        x: The inputs, with shape (N, ...), as a tensor or an array; or a DataLoader or a Dataset
            of inputs and labels, which is read to its end.
        y: The labels, whole numbers, with shape (N,); None where ``x`` has them.
        threat: What the attacks are allowed.
        attacks: Names as for :func:`equipoise.attacks.parse`, or attacks by names of your own;
            ``"clean"`` is always measured.
        individual: True: the stages of ensembles, too, attack all correct examples. False: all
            attacks are stages, and attack what withstood those before. None: as named.
        seed: The seed of the attacks' randomness.
        batch_size: How many points are attacked at a time: memory and time, not results.
        precision: The arithmetic of the search: ``"float32"``, ``"bfloat16"`` or ``"auto"``,
            which takes the quick one of the device. The judge's is float32 either way.
        layout: How images lie in memory in the search: ``"channels_last"``, ``"contiguous"``, or
            ``"auto"`` for the quick one.
        compile: Whether the search is compiled, which takes time at first: for long evaluations.
        passes: The forward passes of a verdict, whose class probabilities are averaged; None:
            what the attacks ask for, 1 but for ``"autoattack-rand"``.
        strongest: Whether PGD and its settings (MI-FGSM, CW-inf) search on for the point of the
            largest loss once an example is fooled. The verdicts are the same; without, the first
            point that fools the model is kept, which is nearer to its boundary. True where the
            points themselves are measured or used again: for distortions, CMMR, or other models.
            The other attacks always keep the first. It has no effect on models that are random
            or compiled, whose searches always go on.
        checks: Whether to look for what would make the numbers untrustworthy.
        others: Adversarial examples of other models for the same inputs, by name, with the shape
            of ``x``: those that fool this model count, as the attack ``"transfer"``.
        control: Which examples stay correct on an undefended model, with shape (N,).
        classes: The names of the classes, by label.

    Returns:
        The verdicts, the strongest points found, and what follows from them.

    Raises:
        UserError: If inputs, labels, outputs or attacks will not do.
        RunError: If the model or an attack failed on the way; its ``result`` has what was found.
    """
    if not isinstance(threat, Threat):
        raise UserError(f"expected a threat such as eq.Linf(8 / 255), got {short(threat)}")
    protocol = Protocol(
        attacks=attacks,
        individual=individual,
        seed=seed,
        batch_size=batch_size,
        execution=Execution(precision=precision, layout=layout, compile=compile),
        passes=passes,
        strongest=strongest,
        checks=checks,
    ).under(threat)
    return evaluate_by(protocol, model, x, y, others=others, control=control, classes=classes)


def evaluate_by(
    protocol: Protocol,
    model: nn.Module | Callable[[Tensor], Any],
    x: "Tensor | NDArray[Any] | DataLoader[Any] | Dataset[Any]",
    y: "Tensor | NDArray[Any] | Sequence[int] | None" = None,
    *,
    others: Mapping[str, Tensor] | None = None,
    warm: bool = False,
    control: Tensor | None = None,
    classes: Sequence[str] = (),
    begun: Result | None = None,
    advance: Callable[[AttackProgress], None] | None = None,
    after: Callable[[Result], None] | None = None,
) -> Result:
    """Attack a model by a protocol and judge what the attacks find.

    Arguments:
        protocol: How, with its threat; which images is decided by ``x``.
        model: As for :func:`evaluate`, as are ``others``, ``control`` and ``classes``.
        x: The inputs.
        y: The labels.
        others: Adversarial examples of other models.
        warm: Whether these are tried first, so that the attacks attack what withstood them: for
            models that are nearly the same. Otherwise they are tried last.
        control: Which examples an undefended model resists.
        classes: The names of the classes.
        begun: The result of an interrupted evaluation of the same points; what it has is not
            done again.
        advance: Called after every batch with the progress.
        after: Called after every batch with the result so far; saving it makes a resume possible.

    Raises:
        UserError, RunError: As :func:`evaluate`.
    """
    model = as_module(model)
    x, y = examples(x, y)
    if not len(x):
        raise UserError("there are no examples to evaluate")
    threat, seed = protocol.threat, protocol.seed
    x, y = check_inputs(x, y, threat)
    others = {name: tensors(points, y)[0] for name, points in (others or {}).items()}
    if control is not None and len(control) != len(y):
        raise UserError(f"expected a control of {len(y)} images, got {len(control)}")
    device, dtype = _place(model, x)
    x, y = x.to(device, dtype), y.to(device)
    stages = protocol.stages
    asked = max([getattr(attack, "passes", 1) for attack in protocol.named.values()], default=1)
    judge = Judge(model, protocol.batch_size, protocol.passes or asked, seed)
    with (
        outside_inference(),
        restored(model),
        seeded(seed, device),
    ):  # a random model draws from it; it is restored afterwards
        search = Search(judge, x, y, protocol, classes)
        work = _Work(search, advance or (lambda progress: None), after)
        work.look(begun)
        if protocol.checks:
            own = protocol.attacks if isinstance(protocol.attacks, Mapping) else {}
            work.check_before(model.training, own)
        if others and warm:
            search.transfer(others)
            stages = [replace(stage, after=(TRANSFER, *stage.after)) for stage in stages]
        work.run(stages)
        if others and not warm:
            work.check_transfer(others)
            search.transfer(others)
        if protocol.checks:
            work.check_after({stage.name: stage.attack for stage in stages}, control)
        return work.result()


def _place(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return where the model is and what it computes in, which the judge needs to be exact.

    What it computes in is what most of its weights are: a single parameter may be of another kind.
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    sizes: Counter[torch.dtype] = Counter()
    for weight in weights:
        sizes[weight.dtype] += weight.numel()
    held = next((p for p in weights if p.dtype == sizes.most_common(1)[0][0]), x)
    if held.is_meta:
        raise UserError("the model is on the meta device, without weights: load them first")
    if held.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"the model's weights are {held.dtype}; verdicts need at least float32: evaluate "
            'model.float(), and search with precision="bfloat16" to be quick'
        )
    return held.device, held.dtype


class _Work:
    """An evaluation from its first look to its last check."""

    def __init__(
        self,
        search: Search,
        advance: Callable[[AttackProgress], None],
        after: Callable[[Result], None] | None,
    ) -> None:
        self.search, self.advance, self.after = search, advance, after

    def look(self, begun: Result | None) -> None:
        """Look at the clean inputs."""
        try:
            self.search.look(begun)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise RunError(f"the model fails on the clean images ({one_line(error)})") from error

    def run(self, stages: Sequence[Stage]) -> None:
        """Run all stages; what was found stays, whatever happens."""
        for number, stage in enumerate(stages, 1):
            try:
                for progress in self.search.run(stage):
                    self.advance(replace(progress, number=number, stages=len(stages)))
                    self._keep()
            except NoGradient as error:
                self.search.skip(stage, error)
                self._keep()
            except (UserError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt):
                self._keep()
                raise
            except Exception as error:
                self._keep()
                raise _failure(stage.name, error, self.result()) from error

    def _keep(self) -> None:
        if self.after is not None:
            self.after(self.result())

    def check_before(self, training: bool, own: Mapping[str, Attack]) -> None:
        """Look at the model before it is attacked, and at attacks that are the user's own."""
        s = self.search
        s.note(
            checking.before(
                s.judge.model,
                s.x,
                s.y,
                s.threat,
                seed=s.seed,
                classes=len(s.classes) or None,
                original_training=training,
                passes=s.judge.passes,
            )
        )
        for name, attack in own.items():
            if not type(attack).__module__.startswith("equipoise.attacks"):
                s.note(
                    checking.audit(
                        attack, s.judge.model, s.x, s.y, s.threat, seed=s.seed, name=name
                    )
                )
        self._keep()

    def check_after(self, attacks: Mapping[str, Attack], control: Tensor | None) -> None:
        """Probe the model, and look at what the attacks have found."""
        s, outcomes = self.search, self.search.outcomes
        if attacks:
            s.note(
                checking.probes(
                    s.judge.model,
                    s.x,
                    s.y,
                    s.threat,
                    seed=s.seed,
                    attacks=attacks,
                    passes=s.judge.passes,
                )
            )
        s.note(
            checking.after(
                {name: o.verdict for name, o in outcomes.items()},
                s.correct,
                attacked={name: o.attacked for name, o in outcomes.items()},
                rejected={name: o.rejected for name, o in outcomes.items()},
                margin=s.margin,
                distance=s.distance,
                threat=s.threat,
                control=control,
            )
        )

    def check_transfer(self, others: Mapping[str, Tensor]) -> None:
        """Check whether points of other models fool examples that the attacks left."""
        s = self.search
        found, _ = checking.transfer(
            s.judge.model, s.x, s.y, s.threat, others, s.robust, seed=s.seed
        )
        s.note([found])

    def result(self) -> Result:
        """Return what was found so far."""
        return self.search.result(peak_memory())


def _failure(name: str, error: Exception, result: Result) -> RunError:
    outcome = result.outcomes.get(name)
    done = int(outcome.attacked.sum()) if outcome else 0
    failure = RunError(
        f"{name} failed after {done} of {len(result.y)} images ({one_line(error)}); what was "
        "found until then is kept"
    )
    failure.result = result
    return failure
