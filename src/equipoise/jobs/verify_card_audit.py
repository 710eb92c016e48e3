"""The audit of a card: replayed from its verdicts, and repeated with a stranger's nonce."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from equipoise.card import describe
from equipoise.card.schema import CardEvaluation
from equipoise.errors import UserError, one_line
from equipoise.evaluation.audited import unfounded
from equipoise.evaluation.outcome import Outcome
from equipoise.evaluation.result import Result
from equipoise.jobs.verify_audit import AuditAgain, audit_again
from equipoise.terminal.progress import Console
from equipoise.threat import Threat


def replay(each: CardEvaluation, x: Tensor, y: Tensor) -> Iterator[str]:
    """Yield why the rounds of an audit do not follow from the verdicts and the nonce."""
    result = _result(each, x, y)
    try:
        if result.audit is not None and (why := unfounded(result, x)):
            yield why
    except (TypeError, LookupError, ValueError, ArithmeticError) as error:
        yield f"its audit cannot be replayed: {one_line(error)}"


def repeat(
    each: CardEvaluation, model: nn.Module, x: Tensor, y: Tensor, nonce: str, console: Console
) -> AuditAgain:
    """Audit the search of an evaluation with another nonce; the device is that of ``x``.

    Raises:
        UserError: If the card does not say how it was searched, or in a way that is unknown here.
    """
    try:
        return audit_again(_result(each, x.cpu(), y), model, x, nonce=nonce, console=console)
    except (TypeError, LookupError, AttributeError) as error:
        line = one_line(error)
        raise UserError(
            f"{each.name}: its search cannot be run as the card has it: {line}"
        ) from None


def _result(each: CardEvaluation, x: Tensor, y: Tensor) -> Result:
    """Return the verdicts of an evaluation, without its examples.

    Where an image is classified incorrectly, its class is any other one.
    """

    def flags(bits: str) -> Tensor:
        return torch.from_numpy(each.flags(bits).copy())

    outcomes = {}
    for attack in each.attacks:
        plain = attack.model_dump(exclude={"name", "attacked", "robust", "broken_first"})
        given = flags(attack.robust), flags(attack.attacked)
        outcomes[attack.name] = Outcome(verdict=given[0], attacked=given[1], **plain)
    prediction = torch.where(flags(each.correct), y, (y + 1) % max(2, int(y.max()) + 1))
    return Result(
        threat=Threat(each.threat.kind, each.threat.eps, each.threat.low, each.threat.high),  # type: ignore[arg-type]
        y=y,
        prediction=prediction,
        x_adv=x,
        margin=torch.full((len(y),), torch.inf, dtype=torch.float64),
        adversarial_prediction=prediction,
        distance=torch.zeros(len(y), dtype=torch.float64),
        outcomes=outcomes,
        findings=each.checks,
        seed=each.seed,
        passes=each.passes,
        precision=each.precision,
        classes=each.data.classes,
        audit=describe.audit_in(each.audit) if each.audit else None,
    )
