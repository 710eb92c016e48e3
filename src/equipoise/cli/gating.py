"""``equipoise gate``: fail a build whose model does not meet requirements."""

from pathlib import Path
from typing import Annotated

import typer

from equipoise.cli import options
from equipoise.errors import UserError

GATE_EPILOG = """Examples:

\b
  equipoise gate runs/new --require "worst-case>=0.70" --require "clean>=92%"
  equipoise gate runs/new --require "worst-case@4/255>=60%" --require "worst-case@8/255>=45%"
  equipoise gate runs/new --require "autoattack>=0.45" -n 1000 --norm linf
  equipoise gate runs/new --against runs/released --margin 1%
  equipoise gate runs/new --require "clean>=0.9" --junit gate.xml --sarif gate.sarif

Exit code 0: every requirement is met. 1: one is not met, or a check of the evaluation failed.
2: nothing could be decided: a requirement that is none, an attack that was not run, an
evaluation that is missing, interrupted, damaged or made with --no-checks, other images or other
attacks in --against. The message says which command helps.

examples/gate has a GitHub workflow and a GitLab job."""


def gate(
    run: options.RunFolder,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME>=VALUE",
            help="An accuracy whose 95 % lower bound must be at least VALUE (0.7 or 70%), or "
            "above it (>); in quotation marks; may be repeated. NAME is clean, worst-case, or an "
            "attack or an ensemble that was run, like pgd-20 or autoattack; NAME@EPS is the one "
            "at a radius.",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="The run folder of an earlier model, evaluated with the same attacks on the same "
            "images: clean accuracy and the worst case must not have fallen by more than "
            "--margin.",
        ),
    ] = None,
    margin: Annotated[
        str | None,
        typer.Option(
            help="With --against: the most by which an accuracy may have fallen, like 0.02 or 2%; "
            "the 95 % upper bound of the drop must be at most so large. Default: 2%."
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="Only evaluations in this norm: linf, l2 or l1.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Only evaluations at this radius, like 8/255.")
    ] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--n", min=1, help="Only evaluations of N images.")
    ] = None,
    first: Annotated[
        bool, typer.Option("--first", help="With -n: of the first N images, not of a sample.")
    ] = False,
    weights: Annotated[
        str, typer.Option(help="Only evaluations of these weights of the run, like last.")
    ] = "model",
    junit: Annotated[
        Path | None, typer.Option(help="Also write a JUnit XML file, a test for each line.")
    ] = None,
    sarif: Annotated[
        Path | None, typer.Option(help="Also write a SARIF 2.1.0 file, a result for each FAIL.")
    ] = None,
) -> None:
    """Pass or fail a model by requirements on its accuracy.

    Each requirement is decided with 95 % confidence. It reads what `equipoise evaluate` stored and
    attacks nothing. Not the estimate decides, but its bound, for each requirement by itself: so a
    sample that is too small fails. A failed check of the evaluation fails, too.
    """
    from equipoise.jobs.gate import MARGIN, UNDECIDED, Decision, decide
    from equipoise.jobs.gate_files import printable, write
    from equipoise.jobs.gate_folder import Selection, radius

    if margin is not None and against is None:
        raise UserError("--margin is for --against RUN, which is missing")
    try:
        eps_given = radius(eps, "--eps")
        selection = Selection(norm=norm, eps=eps_given, n=n, first=first, weights=weights)
        most = MARGIN if margin is None else margin
        decisions = decide(run, require or (), against, margin=most, selection=selection)
    except UserError as error:  # no file of an earlier gate is left that says otherwise
        failed = Decision(rule=UNDECIDED, name="gate", passed=False, text=str(error))
        write([failed], run, junit, sarif)
        raise
    write(decisions, run, junit, sarif)
    for each in decisions:
        typer.echo(printable(str(each)))
    met = sum(each.passed for each in decisions)
    passed = met == len(decisions)
    typer.echo(f"{'PASSED' if passed else 'FAILED'}: {met} of {len(decisions)} are met")
    raise typer.Exit(0 if passed else 1)
