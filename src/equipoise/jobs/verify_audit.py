"""Repeating the audit of an evaluation with another nonce: other images go through AutoAttack.

Nobody could have prepared an evaluation for a nonce that was chosen after it. The search is not
repeated: its verdicts are what the audit is about. Nothing is stored.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from equipoise.data.rows import copied
from equipoise.errors import UserError
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.store.audit import NEAR, Audit, check_nonce
from equipoise.terminal.progress import Console


@dataclass(frozen=True, kw_only=True)
class AuditAgain:
    """The result of an audit with another nonce.

    Arguments:
        nonce: The nonce.
        audit: The audit with it.
        problems: What contradicts the stored audit, a sentence each.
    """

    nonce: str
    audit: Audit
    problems: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"audited again (nonce {self.nonce}): {self.audit.sentence}"


def audit_again(
    result: Result,
    model: nn.Module,
    x: Tensor,
    *,
    nonce: str,
    console: Console,
) -> AuditAgain:
    """Audit the stored search of an evaluation again.

    Arguments:
        result: The evaluation.
        model: Its model.
        x: Its images, with shape (N, ...), on the device of the model.
        nonce: Any text; it determines which images go through AutoAttack.
        console: Where progress is shown.

    Raises:
        UserError: If the evaluation has no audit, or the nonce is empty.
    """
    check_nonce(nonce)
    stored = result.audit
    if stored is None:
        raise UserError("it has no audit: evaluate with --attacks audited first")
    kept = {name: result.outcomes[name] for name in stored.searched}
    made = stored.made({name: outcome.made for name, outcome in result.outcomes.items()})
    protocol = Protocol.of({**made, "attacks": [stored.ensemble], "nonce": nonce, "checks": False})
    begun = replace(
        result,
        outcomes=kept,
        audit=None,
        x_adv=copied(x.cpu()),
        margin=torch.full_like(result.margin, torch.inf),
    )
    now = evaluate_by(
        protocol.under(result.threat),
        model,
        x,
        result.y,
        begun=begun,
        advance=lambda progress: console.attack(progress) if progress.note else None,
        classes=result.classes,
    )
    assert now.audit is not None
    return AuditAgain(
        nonce=nonce, audit=now.audit, problems=tuple(_problems(result, now, stored, now.audit))
    )


def _problems(before: Result, now: Result, stored: Audit, audit: Audit) -> list[str]:
    """Return what contradicts the stored audit."""
    problems = []
    last = [before.outcomes[name] for name in stored.stages if name in before.outcomes]
    went = before.robust.clone()
    for outcome in last:
        went &= outcome.attacked
    clear = now.margin < -NEAR * float(now.margin[torch.isfinite(now.margin)].abs().median())
    fell = int((went & now.correct & ~now.robust & clear).sum()) if last else 0
    if fell:
        problems.append(
            f"{fell} images that count as robust under AutoAttack are fooled by it now (nonce "
            f"{audit.nonce})"
        )
    if audit.most < stored.least:
        problems.append(
            f"the audit promises at least {stored.least} robust images; with the nonce "
            f"{audit.nonce} at most {audit.most} are"
        )
    return problems
