"""Objects in an interpreter and in a notebook: a few lines, and nothing that is not escaped."""

from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import equipoise as eq
from equipoise import data
from equipoise.evaluation import Result
from equipoise.evaluation.checks import Finding
from equipoise.fronts.constraint import Constraint
from equipoise.fronts.picking import Choice, Picked
from equipoise.fronts.record import FrontRecord, Point
from equipoise.measures.statistics import interval
from equipoise.sample import Sample
from equipoise.store.runs import Run
from equipoise.terminal.table import TextTable, accuracy


@pytest.fixture(scope="module")
def result() -> Result:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(40, 1, 4, 4)
    y = torch.where(torch.arange(40) < 30, model(x).argmax(1), (model(x).argmax(1) + 1) % 3)
    attacks = ["fgsm", "pgd-3"]
    return eq.evaluate(model, x, y, threat=eq.Linf(0.05), attacks=attacks, checks=False)


def finding(status: str, message: str) -> Finding:
    return Finding(check="range", code="C4", status=status, message=message)  # type: ignore[arg-type]


def test_a_result_is_a_few_lines_with_its_numbers(result):
    text = repr(result)
    lines = text.splitlines()
    assert len(lines) == 6
    assert len(text) < 600
    assert "tensor" not in text
    assert lines[0] == "Result: Linf(0.05), n = 40"
    assert lines[2].split() == ["clean", *" ".join(accuracy(30, 40)).split()]
    robust = int(result.robust.sum())
    assert lines[-1].split()[:3] == ["worst", "case", f"{robust / 40:.2%}"]
    assert [line.split()[0] for line in lines[3:5]] == ["fgsm", "pgd-3"]


def test_of_the_checks_those_that_failed_are_shown(result):
    findings = [finding("failed", "x <b> & y"), finding("warning", "w"), finding("ok", "o")]
    checked = replace(result, findings=findings)
    assert repr(checked).splitlines()[-2:] == [
        "failed: range: x <b> & y",
        "1 of the checks warn: see findings",
    ]
    assert "x &lt;b&gt; &amp; y" in checked._repr_html_()
    assert "<b>" not in checked._repr_html_()
    assert repr(findings[0]) == "Finding(failed: range: x <b> & y)"


def test_a_clean_an_unfinished_and_an_empty_result_are_shown(result):
    clean = replace(result, outcomes={})
    assert "worst" not in repr(clean)
    outcome = replace(result.outcomes["fgsm"], finished=False)
    broken = int(outcome.broken.sum())
    assert repr(outcome) == f"Outcome(30 of 40 attacked, {broken} broken, not finished)"
    assert "interrupted" in repr(replace(result, outcomes={"fgsm": outcome}))
    names = ("y", "prediction", "x_adv", "margin", "adversarial_prediction", "distance")
    none = {name: getattr(result, name)[:0] for name in names}
    assert repr(replace(result, outcomes={}, **none)) == "Result: Linf(0.05), n = 0"


class Tags(HTMLParser):
    """Collects the tags of a page, and refuses such as do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_well_formed_and_everything_in_it_is_escaped(result):
    evil = "<script>alert(1)</script>"
    outcomes = {evil: result.outcomes["fgsm"]}
    shown = TextTable(evil, (evil, "b"), [(evil, "c")], (evil,))
    for html in (replace(result, outcomes=outcomes)._repr_html_(), shown.html()):
        tags = Tags()
        tags.feed(html)
        assert tags.open == []
        assert "script" not in tags.seen
        assert "&lt;script&gt;" in html


def test_accuracies_are_exact():
    # Rounded outwards, as on pages: 0.3160 % and 52.6510 %.
    assert interval(1, 8) == pytest.approx((0.0031597, 0.5265097), abs=1e-6)
    assert accuracy(1, 8) == ("12.50%", "0.3% .. 52.7%", "1 of 8")


def record() -> FrontRecord:
    point = Point(gamma=0.0, n=100, clean=90, robust=10, sha256="a" * 64, file="f")
    return FrontRecord(
        ends=("learner-clean", "learner-robust"), sha256=("a", "b"), norm="linf", eps=0.1,
        attacks=("pgd-5",), n=100, data="c", batchnorm="average", seed=0,
        sample=Sample(n=100, of=100, seed=2, sha256="d"),
        points=(point, replace(point, gamma=1.0, clean=80, robust=60)),
        others=(replace(point, name="runs/<x>", method="standard"),),
    )  # fmt: skip


def test_a_front_is_a_row_a_point():
    text = repr(record())
    assert len(text.splitlines()) == 6
    assert "a" * 64 not in text
    starts = [line.split()[:2] for line in text.splitlines()[2:4]]
    assert starts == [["0", "90.00%"], ["1", "80.00%"]]
    assert "runs/&lt;x&gt;" in record()._repr_html_()


def test_a_front_that_was_not_measured_says_so(trained):
    front = eq.Front(trained)
    assert len(repr(front).splitlines()) == 2
    assert "equipoise front" in repr(front)
    assert front._repr_html_().startswith("<div>")


def test_other_objects_are_a_line(trained):
    digits = data.load("digits")
    assert repr(digits.test) == f"Images({len(digits.test)} x 1 x 8 x 8, uint8)"
    assert repr(digits).startswith("Dataset('digits', train=Images(")
    assert "tensor" not in repr(digits)
    run = Run(trained)
    assert repr(run) == f"Run({str(trained)!r})"
    point = Point(gamma=0.4, name="0.4", robust=7, clean=9, n=10)
    bound = Choice(Constraint("min_robust", 0.6), 0.4, point, bound=0.69999)
    assert "95 % lower bound 69.99% robust" in str(bound)  # never rounded up
    choice = Choice(Constraint("gamma", 0.4), 0.4, None)
    picked = Picked(nn.Linear(2, 2), choice, run, {})
    assert len(repr(picked).splitlines()) == 1
    assert repr(eq.Linf(8 / 255)) == "Linf(8/255)"
