"""``python -m benchmarks.coverage``, in a checkout: whether the bound of an audit holds.

Each model is counted once in full: every image that the search leaves goes through every stage of
AutoAttack. From these verdicts the audit is conducted anew with many nonces, without the model.
The honest and the masked models are those of the tests (``tests/zoo.py``).
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import torch
import typer

from equipoise.attacks.ensemble import Audited
from equipoise.cli import run as run_app
from equipoise.data.sampling import image_digests
from equipoise.evaluation.audit import Auditing, Replay
from equipoise.evaluation.audited import LONGER, WITHOUT
from equipoise.evaluation.checks.finding import graded
from equipoise.evaluation.evaluate import evaluate_by
from equipoise.evaluation.protocol import Protocol
from equipoise.evaluation.result import Result
from equipoise.execution import Execution
from equipoise.store.audit import Audit
from equipoise.store.files import write
from equipoise.store.provenance import machine
from equipoise.terminal.progress import AttackProgress

MASKED = (
    "input-quantised",
    "jpeg-like",
    "large-logits",
    "softmax-output",
    "winners-take-all",
    "signs",
)
app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


class Screened(Replay):
    """Verdicts of which the screens are known for every image that the search left."""

    always: Mapping[str, str]

    def screens(self, rows: Sequence[int]) -> Iterator[AttackProgress]:
        """Judge the screens of these images."""
        self.red = dict(self.always)
        for name, stage, tolerated in (
            ("pgd-50", "apgd-ce", LONGER),
            ("square-200", "square", WITHOUT),
        ):
            if graded(len(self.fallen(name, rows)), len(rows), amber=tolerated) != "ok":
                self.red.setdefault(stage, name)
        yield from ()


@dataclass(frozen=True)
class Counted:
    """A model whose every image was attacked by every stage of AutoAttack."""

    audited: Result
    full: Result  # AutoAttack by itself
    subject: Screened
    stages: tuple[str, ...]
    missed: int  # by the search, of the images that it left


def count(model: Any, x: torch.Tensor, y: torch.Tensor, threat: Any, within: float) -> Counted:
    """Evaluate a model by an audited search, by AutoAttack, and by each stage on all it left."""
    base = Protocol(
        attacks=(), seed=0, checks=False, execution=Execution(precision="float32")
    ).under(threat)

    def run(attacks: Any, rows: Any = slice(None), **more: Any) -> Result:
        protocol = replace(base, attacks=attacks, **more)
        return evaluate_by(protocol, model, x[rows], y[rows])

    spec = Audited(within=within)
    audited, full = run({"audited": spec}, nonce="benchmark"), run("autoattack")
    assert audited.audit is not None
    searched = audited.correct
    for name in audited.audit.searched:
        searched = searched & audited.outcomes[name].verdict
    left = searched.nonzero()[:, 0]
    stages = spec.auditor(threat.norm)
    every = stages | spec.probes(threat.norm)
    broken = {name: torch.zeros(len(y), dtype=torch.bool) for name in every}
    if len(left):
        alone = run(every, left, individual=True)
        for name, outcome in alone.outcomes.items():
            broken[name][left] = outcome.broken
    broken["screens"] = broken["pgd-50"] | broken["square-200"]
    subject = Screened(
        survivors=left.tolist(),
        images=image_digests(x),
        broken={name: flags.numpy() for name, flags in broken.items()},
    )
    first = audited.audit.rounds[0]
    red = {} if first.checked else dict.fromkeys(first.widened, first.reason)
    subject.always = {k: why for k, why in red.items() if not why.startswith(("pgd", "square"))}
    fell = torch.stack([broken[name] for name in stages]).any(0)
    return Counted(audited, full, subject, tuple(stages), int((fell & searched).sum()))


def replays(counted: Counted, nonces: int) -> Mapping[str, Any]:
    """Conduct the audit with many nonces, and compare each bound with the truth."""
    log, n = counted.audited.audit, len(counted.audited.y)
    assert log is not None
    known = {*counted.stages, "screens"}
    every = set(counted.subject.survivors)
    truth = sum(not any(counted.subject.broken[s][row] for s in known) for row in every)
    held, shares, wide = 0, list[float](), 0
    for number in range(nonces):
        auditing = Auditing(
            counted.subject, replace(log, rounds=(), nonce=f"nonce {number}"), n, counted.stages
        )
        for _ in auditing.run():
            pass
        audit: Audit = replace(auditing.log, n=n, robust=len(auditing.left), near=(0, 0))
        held += audit.least <= truth <= audit.most
        shares.append(len(auditing.whole) / max(len(every), 1))
        wide += bool(audit.widened)
    return {
        "truth": truth / n,
        "coverage": held / nonces,
        "audited": fmean(shares),
        "widened": wide / nonces,
    }


def cost(result: Result) -> int:
    """Return the passes of an evaluation; a backward pass counts as two."""
    return sum(o.forwards + 2 * o.backwards for o in result.outcomes.values())


@app.command()
def coverage(
    nonces: Annotated[int, typer.Option(help="Nonces for each model.")] = 2000,
    images: Annotated[int, typer.Option(help="Images of each model, of the digits.")] = 300,
    within: Annotated[float, typer.Option(help="The limit at which an audit ends.")] = 0.02,
    only: Annotated[str, typer.Option(help="Names of models, separated by commas.")] = "",
    out: Annotated[Path, typer.Option(help="The file of the results.")] = Path("coverage.json"),
) -> None:
    """Show for honest and masked models how often the bound of an audit holds."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    zoo: Any = import_module("zoo")
    names = [name for name in only.split(",") if name] or [*zoo.HONEST_NAMES, *MASKED]
    rows = {}
    for name in names:
        if name in MASKED:
            x, y = zoo.digits_below(10)
            case = zoo.Case(zoo.DEFENCES[name](), x, y, zoo.THREAT)
        else:
            case = zoo.honest(name)
        x, y = case.x[:images], case.y[:images]
        counted = count(case.model, x, y, case.threat, within)
        audit = counted.audited.audit
        assert audit is not None
        search = len(counted.subject.survivors) / len(y)
        row: dict[str, Any] = {
            "masked": name in MASKED,
            "n": len(y),
            "threat": str(case.threat),
            "search": search,
            "autoattack": counted.full.robust_accuracy,
            "missed": counted.missed,
            "lower": audit.lower,
            "upper": audit.upper,
            "widened": audit.widened,
            "cost": cost(counted.audited) / max(cost(counted.full), 1),
            "replays": replays(counted, nonces),
        }
        rows[name] = row
        again = row["replays"]
        typer.echo(
            f"{name}: n {row['n']}, search {search:.3f}, AutoAttack {row['autoattack']:.3f}, "
            f"missed {row['missed']}, bound [{audit.lower:.3f}, {audit.upper:.3f}], covered "
            f"{again['coverage']:.4f} of {nonces} nonces, audited {again['audited']:.2f}, "
            f"widened {again['widened']:.2f} (here: {', '.join(audit.widened) or 'no'}), "
            f"passes of AutoAttack {row['cost']:.2f}"
        )
        content = {"within": within, "nonces": nonces, "machine": machine("cpu"), "models": rows}
        write(out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    run_app(app, "python -m benchmarks.coverage")
