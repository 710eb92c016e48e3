"""Evaluating a model: attacks search for adversarial examples, and the judge decides on them."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from equipoise.attacks.core import Attack, check_inputs, examples, tensors
from equipoise.errors import RunError, UserError, one_line, short
from equipoise.evaluation.audited import audit
from equipoise.evaluation.audited import begun as begin
from equipoise.evaluation.checks.after import after as check_results
from equipoise.evaluation.checks.after import transfer as check_transfer
from equipoise.evaluation.checks.audit import audit as check_attack
from equipoise.evaluation.checks.before import before
from equipoise.evaluation.checks.probes import probes
from equipoise.evaluation.corruptions import measure
from equipoise.evaluation.judge import Judge
from equipoise.evaluation.outcome import TRANSFER, Stage
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Ahead, Result
from equipoise.evaluation.search import Search
from equipoise.execution.outputs import as_module
from equipoise.execution.passes import NoGradient, outside_inference, restored, seeded
from equipoise.execution.policy import Execution, Layout, Precision
from equipoise.store.finding import Finding
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
    batch_size: int | None = None,
    precision: Precision = "float32",
    layout: Layout = "auto",
    compile: bool = False,  # noqa: A002 - torch's name for it
    passes: int | None = None,
    strongest: bool = False,
    checks: bool = True,
    nonce: str | None = None,
    corruptions: bool = False,
    others: Mapping[str, Tensor] | None = None,
    control: Tensor | None = None,
    classes: Sequence[str] = (),
) -> Result:
    """Attack a model and judge the points that the attacks return.

    An attack that is named alone attacks all examples that are classified correctly, so that the
    accuracy under it compares with the tables of papers. Each stage of an ensemble such as
    ``"autoattack"`` attacks the examples that are still robust after the earlier stages. The worst
    case over all attacks is ``Result.robust_accuracy``. No verdict depends on the batch size or on
    the order of the examples, except for the rounding of floating point.

    Arguments:
        model: From inputs within the threat's range to logits, with shape (N, K), as a tensor,
            as ``logits`` of an object or a dict, or as the first element of a tuple; it is used in
            eval mode and left as it was, on any device. A plain function is used as it is.
        x: The inputs, with shape (N, ...), as a tensor or an array; or a DataLoader or a Dataset
            of inputs and labels, which is read to its end.
        y: The labels, whole numbers, with shape (N,); None where ``x`` has them.
        threat: What the attacks may change.
        attacks: Names as for :func:`equipoise.attacks.parse`, or attacks by names of your own;
            ``"clean"`` is always measured.
        individual: True: the stages of ensembles, too, attack all correct examples. False: every
            attack attacks the examples that are still robust after the earlier ones. None: attacks
            as True, the stages of an ensemble as False.
        seed: The seed of the attacks' randomness.
        batch_size: How many points are attacked at a time: memory and time, not results; None:
            250, and up to 1,024 tiny ones.
        precision: The arithmetic of the search: ``"float32"``, ``"bfloat16"`` or ``"auto"``, the
            faster one on the device. The judge's is always float32.
        layout: The memory layout of images in the search: ``"channels_last"``, ``"contiguous"``,
            or ``"auto"`` for the faster one.
        compile: Whether the search is compiled, which takes time at first: for long evaluations.
        passes: The forward passes of a verdict, whose class probabilities are averaged; None:
            as the attacks need, 1 except for ``"autoattack-rand"``.
        strongest: Whether PGD and its settings (MI-FGSM, CW-inf) continue to the point with the
            largest loss after the first point that fools the model. The verdicts are the same; by
            default the first point is kept, which is closer to the decision boundary. Use True if
            the points are measured or used again: for distortions, CMMR, or other models. The
            other attacks always keep the first. Searches on random or compiled models always
            continue.
        checks: Whether to check for what would make the numbers untrustworthy.
        nonce: With ``"audited"`` any text, which determines the images that are audited; None:
            the seed. See ``Result.audit``.
        corruptions: Whether to measure the accuracy on the same images with noise, blur, JPEG,
            brightness and contrast, too; see ``Result.corruptions``. It is no attack.
        others: Adversarial examples of other models for the same inputs, by name, with the shape
            of ``x``: those that fool this model count, as the attack ``"transfer"``.
        control: Which examples stay correct on an undefended model, with shape (N,).
        classes: The names of the classes, by label.

    Returns:
        The verdicts, the strongest points, and all numbers that follow from them.

    Raises:
        UserError: If inputs, labels, outputs or attacks are invalid.
        RunError: If the model or an attack failed; its ``result`` has the results up to then.
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
        nonce=nonce,
    ).under(threat)
    measured = None
    if corruptions:  # first: it takes little time, and refuses inputs that are no images
        model = as_module(model)
        x, y = examples(x, y)
        x, y = check_inputs(x, y, threat)
        place = place_of(model, x)
        judge = Judge(model, protocol.batch(x), passes or 1)
        measured = measure(judge, x, y, place=place, classes=classes)
    given: dict[str, Any] = {"others": others, "control": control, "classes": classes}
    return replace(evaluate_by(protocol, model, x, y, **given), corruptions=measured)


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
    ahead: Mapping[str, Sequence[Ahead]] | None = None,
    wanting: dict[str, list[int]] | None = None,
    advance: Callable[[AttackProgress], None] | None = None,
    after: Callable[[Result], None] | None = None,
) -> Result:
    """Attack a model by a protocol; the other arguments are those of :func:`evaluate`.

    Arguments:
        protocol: How the model is attacked, with its threat; its ``n`` and ``first`` are ignored.
        model: As for :func:`evaluate`, as are the next five.
        x: The inputs.
        y: The labels.
        others: Adversarial examples of other models.
        control: Which examples stay correct on an undefended model.
        classes: The names of the classes.
        warm: Whether ``others`` are tried first, so that the attacks only attack the examples that
            are still robust: for models that are nearly the same; with an audited search they are
            its first stage. Otherwise they are tried last.
        begun: The result of an interrupted evaluation of the same points; it is continued.
        ahead: By stage what was found ahead of an audit, which takes over what it asks for.
        wanting: Where it is noted by stage which examples would be attacked, in place of attacks;
            what is unknown counts as robust.
        advance: Called after every batch with the progress.
        after: Called after every batch with the result so far; saving it makes a resume possible.

    Raises:
        UserError, RunError: As :func:`evaluate`.
    """
    model = as_module(model)
    x, y = examples(x, y)
    if not len(x):
        raise UserError("there are no examples to evaluate")
    x, y = check_inputs(x, y, protocol.threat)
    others = {name: tensors(points, y)[0] for name, points in (others or {}).items()}
    if control is not None and len(control) != len(y):
        raise UserError(f"expected a control of {len(y)} images, got {len(control)}")
    device, dtype = place_of(model, x)
    x, y = x.to(device, dtype), y.to(device)
    stages = protocol.stages
    asked = max([getattr(attack, "passes", 1) for attack in protocol.named.values()], default=1)
    judge = Judge(model, protocol.batch(x), protocol.passes or asked, protocol.seed)
    # A random model draws from the seed; the random state is restored afterwards.
    with outside_inference(), restored(model), seeded(protocol.seed, device):
        threat, execution = protocol.threat, protocol.execution
        search = Search(judge, x, y, threat, execution, protocol.strongest, classes)
        search.ahead, search.wanting = ahead or {}, wanting

        def save() -> None:
            if after is not None:
                after(search.result())

        follow = partial(_follow, search, advance or (lambda progress: None), save)
        search.look(begun)
        _begin_audit(search, protocol)
        if protocol.checks:
            search.note(_checks_before(search, protocol.attacks, model.training))
            save()
        if others and warm:
            stages = _transfer_first(search, protocol, others)
        _attack(search, stages, follow, save)
        if others and not warm:
            _transfer_last(search, others)
        if protocol.audited is not None:
            name, ensemble, spec = protocol.audited
            follow(name, audit(search, spec, name, ensemble))
        if protocol.checks:
            search.note(_checks_after(search, stages, control))
        return search.result()


def place_of(model: nn.Module, x: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return the device of a model, and the dtype of most of its weights.

    Raises:
        UserError: If they are on no device, or have fewer digits than float32.
    """
    weights = [p for p in model.parameters() if p.is_floating_point()]
    sizes: Counter[torch.dtype] = Counter()
    for weight in weights:
        sizes[weight.dtype] += weight.numel()
    typical = next((p for p in weights if p.dtype == sizes.most_common(1)[0][0]), x)
    if typical.is_meta:
        raise UserError("the model is on the meta device, without weights: load them first")
    if typical.dtype not in (torch.float32, torch.float64):
        raise UserError(
            f"the model's weights are {typical.dtype}; verdicts need at least float32: evaluate "
            'model.float(), and search with precision="bfloat16" to be fast'
        )
    return typical.device, typical.dtype


def _attack(
    search: Search,
    stages: Sequence[Stage],
    follow: Callable[[str, Iterator[AttackProgress]], None],
    save: Callable[[], None],
) -> None:
    """Run all attacks, leaving out those that get no gradients."""
    for number, stage in enumerate(stages, 1):
        numbered = (
            replace(progress, number=number, stages=len(stages)) for progress in search.run(stage)
        )
        try:
            follow(stage.name, numbered)
        except NoGradient as error:
            search.skip(stage, error)
            save()


def _transfer_first(
    search: Search, protocol: Protocol, others: Mapping[str, Tensor]
) -> list[Stage]:
    """Try the examples of other models; return the stages, which attack what they leave."""
    ensemble = protocol.audited[1] if protocol.audited else ""
    search.transfer(others, ensemble)
    return [
        replace(stage, after=(TRANSFER, *stage.after))
        if ensemble in ("", stage.ensemble)
        else stage
        for stage in protocol.stages
    ]


def _transfer_last(search: Search, others: Mapping[str, Tensor]) -> None:
    """Try the examples of other models on what is left, and check whether they are stronger."""
    s, robust = search, search.robust
    check = check_transfer(s.judge.model, s.x, s.y, s.threat, others, robust, seed=s.seed)
    s.note(check[:1])
    s.transfer(others)


def _begin_audit(search: Search, protocol: Protocol) -> None:
    """Note with an evaluation that it will be audited, if it will."""
    if protocol.audited is None:
        return
    if search.judge.passes > 1:
        raise UserError("audited decides with one pass: leave passes and autoattack-rand out")
    if not search.repeats:
        raise UserError(
            "the model gives different outputs for the same input, so AutoAttack's verdict is no "
            "fixed fact that an audit could bound: use autoattack-rand"
        )
    name, _, spec = protocol.audited
    nonce = f"seed {search.seed}" if protocol.nonce is None else protocol.nonce
    search.audit = begin(search, spec, nonce, name)


def _follow(
    search: Search,
    advance: Callable[[AttackProgress], None],
    save: Callable[[], None],
    name: str,
    steps: Iterator[AttackProgress],
) -> None:
    """Run the steps of an attack; the results up to then are kept, whatever happens."""
    try:
        for progress in steps:
            advance(progress)
            save()
    except NoGradient:
        raise
    except (UserError, MemoryError, torch.OutOfMemoryError, KeyboardInterrupt):
        save()
        raise
    except Exception as error:
        save()
        outcome, n = search.outcomes.get(name), len(search.y)
        done = f" after {int(outcome.attacked.sum())} of {n} images" if outcome else ""
        failure = RunError(
            f"{name} failed{done} ({one_line(error)}); the results up to then are kept"
        )
        failure.result = search.result()
        raise failure from error


def _checks_before(search: Search, attacks: Any, training: bool) -> list[Finding]:
    """Check the model before it is attacked, and attacks that are the user's own."""
    s, model = search, search.judge.model
    findings = before(
        model,
        s.x,
        s.y,
        s.threat,
        seed=s.seed,
        classes=len(s.classes) or None,
        original_training=training,
        passes=s.judge.passes,
    )
    for name, attack in attacks.items() if isinstance(attacks, Mapping) else ():
        if not type(attack).__module__.startswith("equipoise.attacks"):
            findings += check_attack(attack, model, s.x, s.y, s.threat, seed=s.seed, name=name)
    return findings


def _checks_after(
    search: Search, stages: Sequence[Stage], control: Tensor | None
) -> list[Finding]:
    """Probe the model with small attacks, and check the results of the attacks."""
    s, findings = search, list[Finding]()
    if attacks := {stage.name: stage.attack for stage in stages}:
        model, passes = s.judge.model, s.judge.passes
        findings = probes(model, s.x, s.y, s.threat, seed=s.seed, attacks=attacks, passes=passes)
    return findings + check_results(
        {name: o.verdict for name, o in s.outcomes.items()},
        s.correct,
        attacked={name: o.attacked for name, o in s.outcomes.items()},
        rejected={name: o.rejected for name, o in s.outcomes.items()},
        margin=s.margin,
        distance=s.distance,
        threat=s.threat,
        control=control,
    )
