"""The gate: bounds decide, not estimates; what cannot be decided is never green."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from scipy.stats import binom

from equipoise import cli
from equipoise.errors import UserError
from equipoise.jobs.gate import MARGIN, Decision, Requirement, decide
from equipoise.jobs.gate_files import junit_xml, sarif_json
from equipoise.jobs.gate_folder import Selection
from equipoise.measures.audits import most_failures
from equipoise.measures.paired import drop_bound
from equipoise.measures.statistics import interval
from equipoise.store import files
from equipoise.store.audit import Audit, AuditRound
from equipoise.store.verdicts import read
from judgements import write

ROOT = Path(__file__).parents[1]
N = 400
OK = {"check": "gradients", "code": "C1", "status": "ok", "message": "fine"}
FAILED = OK | {"check": "masking", "status": "failed", "message": "masked"}


def images(n=N, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((n, 1, 2, 2)).astype(np.float32), rng.integers(0, 10, n)


def evaluation(
    run,
    correct,
    robust,
    *,
    eps=0.1,
    attacks=("pgd-20",),
    seed=0,
    order=None,
    first=False,
    findings=(OK,),
    asked=None,
    stages="",
    **more,
):
    """Write an evaluation whose first attack leaves ``robust`` images of ``correct`` ones."""
    n = len(correct)
    x, y = images(n, seed)
    order = np.arange(n) if order is None else order
    x, y, correct, robust = x[order], y[order], correct[order], (robust & correct)[order]
    arrays = {"x": x, "x_adv": x, "y": y, "clean_prediction": np.where(correct, y, (y + 1) % 10)}
    sample = {"n": n, "of": 5000, "seed": None if first else 2, "sha256": f"{seed:x}" * 64}
    outcomes = {
        name: (robust if i == 0 else correct.copy(), correct.copy(), {})
        for i, name in enumerate(attacks)
    }
    if stages:
        told = {"ensemble": stages}
        outcomes = {f"{stages}/{name}": (*o[:2], told) for name, o in outcomes.items()}
    norm, weights = more.get("norm", "linf"), more.get("weights", "model")
    name = f"{norm}-{eps:.6g}-n{n}-{'first' if first else sample['sha256'][:8]}"
    name += "" if weights == "model" else f"-{weights}"
    path = Path(run) / "evaluations" / f"{name}.safetensors"
    more = {"classes": [str(i) for i in range(10)], "sample": sample} | more
    return write(path, arrays, outcomes, eps=eps, findings=findings, asked=asked, **more)


def flags(count, n=N):
    return np.arange(n) < count


@pytest.fixture
def run(tmp_path):
    """A run with 380 of 400 images correct and 300 robust."""
    evaluation(tmp_path / "new", flags(380), flags(300))
    return tmp_path / "new"


def passed(*given, **more):
    return [d.passed for d in decide(*given, **more) if d.rule != "checks"]


# Requirements


@pytest.mark.parametrize(
    ("text", "name", "value", "above", "eps"),
    [
        ("worst-case>=0.70", "worst-case", 0.7, False, None),
        (" clean >= 92% ", "clean", 0.92, False, None),
        ("pgd-20>.5", "pgd-20", 0.5, True, None),
        ("pgd-20(step_size=2/255)>=1", "pgd-20(step_size=2/255)", 1.0, False, None),
        ("audited(within=1%)@4/255>=70 %", "audited(within=1%)", 0.7, False, 4 / 255),
        ("worst-case@0.1>0", "worst-case", 0.0, True, 0.1),
    ],
)
def test_requirements_are_understood(text, name, value, above, eps):
    found = Requirement.of(text)
    assert (found.name, found.value, found.above, found.eps) == (name, value, above, eps)


def least_bound(k, n):
    """The lower bound by its definition: the share at which k or more are a chance of 5 %."""
    low, high = 0.0, k / n
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binom.sf(k - 1, n, middle) < 0.05 else (low, middle)
    return low


def test_the_bound_decides_and_not_the_estimate(run):
    bound = least_bound(300, N)
    assert 0.70 < bound < 0.75  # the estimate
    assert passed(run, [f"worst-case>={bound - 1e-6:.9f}"]) == [True]
    assert passed(run, [f"worst-case>={bound + 1e-6:.9f}"]) == [False]
    assert passed(run, [f"clean>={least_bound(380, N) - 1e-6:.9f}", "pgd-20>=75%"]) == [
        True,
        False,
    ]


def test_a_line_has_estimate_bound_images_and_threat(run):
    (line, *_) = decide(run, ["worst-case>=0.7"])
    assert str(line) == (
        "PASS  worst-case>=0.7: 75.00% of 400 images, 95 % lower bound 71.18% "
        "(linf, eps 0.1, linf-0.1-n400-00000000)"
    )


def test_the_images_that_would_decide_do(tmp_path, run):
    (decision, *_) = decide(run, ["worst-case>=0.72"])
    assert not decision.passed
    n = int(re.search("about ([0-9]+) images", decision.text)[1])
    assert 400 < n < 1000
    evaluation(tmp_path / "more", flags(n, n), flags(-(-3 * n // 4), n))
    assert passed(tmp_path / "more", ["worst-case>=0.72"]) == [True]


def test_equal_is_enough_for_at_least_but_not_for_above(tmp_path):
    evaluation(tmp_path, flags(0), flags(0))
    assert passed(tmp_path, ["clean>=0", "clean>0"]) == [True, False]


def test_a_failed_check_fails(tmp_path):
    evaluation(tmp_path, flags(380), flags(300), findings=(OK, FAILED))
    decisions = decide(tmp_path, ["worst-case>=0.1"])
    assert [d.passed for d in decisions] == [True, False]
    assert "failed: masking" in decisions[1].text


# Which evaluation


@pytest.fixture
def many(run):
    """A run with two radii, two norms, two samples and two names of weights."""
    evaluation(run, flags(380), flags(200), eps=8 / 255 * 4, attacks=("pgd-20", "square-100"))
    evaluation(run, flags(380), flags(100), norm="l2", eps=0.5, attacks=("cw",))
    evaluation(run, flags(90, 100), flags(80, 100), eps=0.1, seed=1)
    evaluation(run, flags(90, 100), flags(85, 100), eps=0.1, first=True, seed=2)
    evaluation(run, flags(390), flags(320), weights="last")
    return run


@pytest.mark.parametrize(
    ("text", "options", "estimate"),
    [
        ("worst-case@0.1>=0", {"n": 400}, "75.00%"),
        ("worst-case@32/255>=0", {}, "50.00%"),
        ("worst-case@0.125490>=0", {}, "50.00%"),
        ("square-100>=0", {}, "95.00%"),
        ("cw>=0", {}, "25.00%"),
        ("worst-case>=0", {"norm": "l2"}, "25.00%"),
        ("worst-case>=0", {"eps": 0.1, "n": 100}, "80.00%"),
        ("worst-case>=0", {"n": 100, "first": True}, "85.00%"),
        ("worst-case>=0", {"weights": "last"}, "80.00%"),
        ("clean>=0", {"n": 400}, "95.00%"),  # the same at every radius
    ],
)
def test_options_and_radii_choose_an_evaluation(many, text, options, estimate):
    (decision, *_) = decide(many, [text], selection=Selection(**options))
    assert decision.text.startswith(estimate)


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("worst-case>=0", {}, ["5 evaluations", "linf-0.1-n400-00000000", "l2-0.5-n400", "--eps"]),
        ("worst-case>=0", {"eps": 0.1}, ["3 evaluations", "linf-0.1-n100-first"]),
        ("clean>=0", {}, ["5 evaluations", "-n"]),
        ("pgd-20@0.3>=0", {}, ["no evaluation with --eps 0.3", "to make one"]),
        ("worst-case>=0", {"norm": "l1"}, ["--norm l1", "linf-0.1-n100-11111111"]),
        ("worst-case>=0", {"n": 7}, ["-n 7", "evaluate"]),
        ("worst-case>=0", {"weights": "lasst"}, ["--weights lasst", "n400-00000000-last"]),
        ("pgd-2>=0", {}, ["did you mean 'pgd-20'?", "square-100", "evaluate", "--attacks pgd-2 "]),
    ],
)
def test_what_is_ambiguous_or_missing_names_what_is_there(many, text, options, said):
    with pytest.raises(UserError) as error:
        decide(many, [text], selection=Selection(**options))
    assert [part for part in said if part not in str(error.value)] == []


def test_a_requirement_on_an_ensemble_and_its_stages(tmp_path):
    evaluation(
        tmp_path, flags(380), flags(300), attacks=("apgd-ce", "square"), stages="autoattack"
    )
    assert passed(tmp_path, ["autoattack>=0.7", "worst-case>=0.7"]) == [True, True]


# Against an earlier model


def flipped(values, *rows):
    values = values.copy()
    values[list(rows)] ^= True
    return values


@pytest.fixture
def pair(tmp_path):
    """Two runs: of 400 images the new model loses 3 and gains 1, and one more when attacked."""
    clean = flags(380)
    evaluation(tmp_path / "old", clean, flags(300))
    new = flipped(clean, 0, 1, 2, 390)
    evaluation(tmp_path / "new", new, flipped(flags(300), 5))
    return tmp_path / "new", tmp_path / "old"


def test_the_bound_of_the_paired_drop_decides(pair):
    clean, worst = (drop_bound(3, 1, N), drop_bound(4, 0, N))
    assert passed(pair[0], [], pair[1], margin=worst + 1e-4) == [True, True]
    assert passed(pair[0], [], pair[1], margin=worst - 1e-4) == [True, False]
    assert passed(pair[0], [], pair[1], margin=clean - 1e-4) == [False, False]
    assert passed(*pair[:1], ["clean>=0.8"], pair[1]) == [True, clean <= MARGIN, worst <= MARGIN]


def test_a_drop_that_no_number_of_images_excuses(pair):
    drops = decide(pair[0], [], pair[1], margin="0.6%")
    assert "about" in drops[0].text
    assert "no number of images would decide" in drops[1].text


def test_images_are_matched_in_any_order_by_their_values(tmp_path, pair):
    expected = [str(d) for d in decide(pair[0], [], pair[1])]
    old = shutil.copytree(pair[1], tmp_path / "kept")
    shutil.rmtree(pair[1])
    order = np.random.default_rng(3).permutation(N)
    evaluation(pair[1], flags(380), flags(300), order=order)
    assert [str(d) for d in decide(pair[0], [], pair[1])] == expected
    shutil.rmtree(old)


def test_copies_of_an_image_are_paired_once_each(tmp_path, monkeypatch):
    x, y = images()
    x[1], y[1] = x[0], y[0]
    monkeypatch.setattr(sys.modules[__name__], "images", lambda n, seed: (x.copy(), y.copy()))
    evaluation(tmp_path / "old", flags(380), flags(300))
    order = np.random.default_rng(3).permutation(N)
    evaluation(tmp_path / "new", flags(380), flags(300), order=order)
    for drop in decide(tmp_path / "new", [], tmp_path / "old")[:2]:
        assert "(0 images lost, 0 gained" in drop.text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, ["no evaluation of the same images", "evaluate OLD --attacks pgd-20"]),
        ({"eps": 0.2}, ["no evaluation of the same images", "--eps 0.1", "linf-0.2-n400"]),
        ({"norm": "l2"}, ["threat", "--norm linf"]),
        ({"weights": "last"}, ["weights", "n400-00000000-last"]),
        ({"attacks": ("pgd-20", "square-100")}, ["evaluate NEW --attacks square-100 --norm"]),
        ({"attacks": ("square-100",)}, ["NEW --attacks square-100", "OLD --attacks pgd-20"]),
        ({"attacks": ("apgd-ce",), "stages": "autoattack"}, ["OLD --attacks pgd-20"]),
        ({"finished": False}, ["is not finished", "OLD --norm linf --eps 0.1 -n 400 --resume"]),
        ({"asked": {"checks": False}}, ["--no-checks", "OLD --attacks pgd-20"]),
    ],
)
def test_what_cannot_be_compared_is_said_with_the_command_that_helps(pair, change, said):
    shutil.rmtree(pair[1])
    evaluation(pair[1], flags(380), flags(300), **change)
    with pytest.raises(UserError) as error:
        decide(pair[0], ["clean>=0.1"], pair[1])
    text = str(error.value).replace(str(pair[0]), "NEW").replace(str(pair[1]), "OLD")
    assert [part for part in said if part not in text] == []


def with_points(run, settings, lost, **more):
    """Write an evaluation some of whose robust images only points of other evaluations broke."""
    path = evaluation(run, flags(380), flags(300), attacks=("pgd-20",), **more)
    kept = flags(380)
    kept[list(lost)] = False
    x, y = images()
    arrays = {
        "x": x,
        "x_adv": x,
        "y": y,
        "clean_prediction": np.where(flags(380), y, (y + 1) % 10),
    }
    told = {"settings": settings}
    outcomes = {"pgd-20": (flags(300), flags(380), {}), "transfer": (kept, flags(380), told)}
    sample = {"n": N, "of": 5000, "seed": 2, "sha256": "0" * 64}
    write(path, arrays, outcomes, eps=0.1, findings=(OK,), sample=sample, classes=range(10))


AGAIN = "points from an earlier evaluation"


@pytest.mark.parametrize(
    ("old", "new", "lost", "gained"),
    [
        (None, (AGAIN, 5), 0, 0),  # of the new model's own earlier attacks
        (None, ("points from runs/standard (linf)", 5), 5, 0),  # no drop is hidden
        ((AGAIN, 5), None, 0, 0),
        (("points from runs/standard (linf)", 5), None, 0, 0),
        ((AGAIN, 5), (AGAIN, 7), 2, 0),  # both faced such points
        (("points from a", 5), ("points from b", 7), 7, 0),
    ],
)
def test_points_of_other_evaluations_never_hide_a_drop(tmp_path, old, new, lost, gained):
    for name, given in (("old", old), ("new", new)):
        evaluation(tmp_path / name, flags(380), flags(300))
        if given:
            with_points(tmp_path / name, given[0], range(given[1]))
    (_, worst, *_) = decide(tmp_path / "new", [], tmp_path / "old")
    assert f"({lost} images lost, {gained} gained, of 400" in worst.text
    left_out = [name for name, given in (("old", old), ("new", new)) if given and not lost]
    for name in left_out:
        assert (
            f"; 5 that only earlier points broke in {tmp_path / name} are left out" in worst.text
        )


def test_a_suggestion_has_the_passes_the_code_and_the_model(tmp_path, pair):
    def said(*given, **more):
        with pytest.raises(UserError) as error:
            decide(*given, **more)
        return str(error.value)

    (pair[0] / "own-model.json").write_text('{"model": "my_net:net"}')
    asked = {"import": {"file": "my attacks.py", "sha256": "0"}, "checks": False}
    evaluation(pair[0], flags(380), flags(300), asked=asked)
    assert (
        f"equipoise --import 'my attacks.py' evaluate {pair[0]} --attacks pgd-20 --model "
        "my_net:net --norm linf --eps 0.1 -n 400"
    ) in said(pair[0], ["clean>=0.1"])
    norm_alone = said(pair[1], ["clean>=0.1"], selection=Selection(norm="l1"))
    assert "evaluate" not in norm_alone  # its radius is unknown
    assert "only 5,000 test images" in said(pair[1], ["clean>=0"], selection=Selection(n=9999))


def test_each_radius_that_is_required_is_compared(pair):
    for folder in pair:
        evaluation(folder, flags(380), flags(100), eps=0.2)
    texts = ["worst-case@0.1>=0.1", "worst-case@0.2>=0.1"]
    drops = [d for d in decide(pair[0], texts, pair[1]) if d.rule == "drop"]
    assert len({d.name for d in drops}) == 3  # clean once or twice, the worst case at each radius


def test_failed_checks_of_the_earlier_model_fail_too(pair):
    evaluation(pair[1], flags(380), flags(300), findings=(FAILED,))
    decisions = decide(pair[0], [], pair[1], margin=0.5)
    assert [d.passed for d in decisions] == [True, True, True, False]


# Audited evaluations


STAGES = ("audited/pgd-10", "audited/apgd-ce")


def audited(run, correct, robust, *rounds, **more):
    """Write an evaluation by a cheap search and an audit of some of the images that it left."""
    audit = Audit(
        nonce="n", digest="d", within=0.01, budget=0.1, stages=STAGES[1:], finished=True,
        rounds=tuple(AuditRound(items=i, checked=c, failed=f) for i, c, f in rounds),
    )  # fmt: skip
    more = {"stages": "audited", "audit": audit, "attacks": ("pgd-10", "apgd-ce")} | more
    return read(evaluation(run, correct, robust, **more)).verdicts.audit


def test_after_an_audit_half_of_the_error_is_for_the_images_that_are_left_open(tmp_path):
    audit = audited(tmp_path, flags(380), flags(300), (300, 100, 0))
    most = most_failures(
        300, 100, 0, 1 - 0.025 / 2
    )  # the first round of an audit takes half of it
    assert audit.remaining == most_failures(300, 100, 0, 1 - 0.05 / 2) < most
    bound = interval(300 - most, N, 0.95)[0]
    for name in ("worst-case", "audited"):
        assert passed(tmp_path, [f"{name}>={bound - 1e-6:.9f}"]) == [True]
        (decision, *_) = decide(tmp_path, [f"{name}>={bound + 1e-6:.9f}"])
        assert not decision.passed
        said = "by the audit with 97.5% (the draw of the images takes half of the error) at least "
        assert f"{said}{(300 - most) / N:.2%} of them, 95 % lower bound" in decision.text
    assert passed(tmp_path, [f"clean>={least_bound(380, N) - 1e-6:.9f}"]) == [True]


def test_an_audit_of_all_images_leaves_the_whole_error_to_the_sample(tmp_path):
    audited(tmp_path, flags(380), flags(300), (300, 300, 0))
    assert passed(tmp_path, [f"worst-case>={least_bound(300, N) - 1e-6:.9f}"]) == [True]


def test_images_that_an_audit_leaves_open_count_as_lost(tmp_path):
    audited(tmp_path / "old", flags(380), flags(300), (300, 100, 0))
    audited(tmp_path / "new", flags(380), flipped(flags(300), 0, 1, 310), (299, 200, 0))
    unsure = most_failures(299, 200, 0, 1 - 0.025 / 2)
    bound = drop_bound(2 + unsure, 1, N, 0.975)
    folders = (tmp_path / "new", [], tmp_path / "old")
    assert passed(*folders, margin=bound + 1e-4) == [True, True]
    drops = decide(*folders, margin=bound - 1e-4)
    assert [d.passed for d in drops[:2]] == [True, False]
    assert f"(2 images lost, 1 gained, of 400; {unsure} more that the audits" in drops[1].text
    assert "a smaller within=" in decide(*folders, margin=0.001)[1].text


def test_the_bound_of_an_audited_accuracy_covers_in_a_simulation():
    rng, n, truth, missed, repeats = np.random.default_rng(0), 300, 0.6, 0.02, 600
    covered = 0
    for _ in range(repeats):
        robust, unseen, _ = rng.multinomial(n, [truth, missed, 1 - truth - missed])
        items, checked = robust + unseen, 80
        failed = rng.hypergeometric(unseen, robust, checked)
        least = items - most_failures(items, checked, failed, 0.975)
        covered += interval(least, n, 0.95)[0] <= truth
    assert covered / repeats > 0.95 - 3 * (0.05 * 0.95 / repeats) ** 0.5


# What cannot be decided


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"finished": False}, "is not finished"),
        ({"asked": {"checks": False}}, "was made with --no-checks"),
        ({"eps": float("nan")}, "no evaluation with --eps 0.1"),
    ],
)
def test_an_evaluation_that_decides_nothing(tmp_path, change, said):
    evaluation(tmp_path, flags(380), flags(300), **change)
    with pytest.raises(UserError, match=said):
        decide(tmp_path, ["clean@0.1>=0.1"])


def test_a_damaged_evaluation_decides_nothing(many):
    path = min((many / "evaluations").glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="is damaged"):
        decide(many, ["worst-case@32/255>=0"])


def test_a_pipe_among_the_evaluations_does_not_hang(run):
    os.mkfifo(run / "evaluations" / "linf.safetensors")
    with pytest.raises(UserError, match=r"is damaged .*is no file"):
        decide(run, ["clean>=0.1"])


def test_an_evaluation_of_other_weights_decides_nothing(run):
    save_file({"weight": np.zeros(3, np.float32)}, run / "model.safetensors")
    with pytest.raises(UserError, match=r"holds no evaluation; .* is of other weights"):
        decide(run, ["clean>=0.1"])


BAD = [
    ([], "nothing is required"),
    (["--require", ""], "is no requirement"),
    (["--require", "worst-case"], "in quotation marks"),
    (["--require", ">=0.7"], "is no requirement"),
    (["--require", "worst-case>="], "takes an accuracy"),
    (["--require", "worst-case>=nan"], "takes an accuracy"),
    (["--require", "worst-case>=.nan"], "must be an accuracy"),
    (["--require", "worst-case>=inf"], "takes an accuracy"),
    (["--require", "worst-case>=70"], "did you mean 0.7, or 70%?"),
    (["--require", "worst-case>=-0.1"], "must be an accuracy"),
    (["--require", "worst-case>=101%"], "must be an accuracy"),
    (["--require", "worst-case<=0.7"], "write >= or >"),
    (["--require", "worst-case=0.7"], "write >= or >"),
    (["--require", "worst-case==0.7"], "write >= or >"),
    (["--require", "worst-case=>0.7"], "write >= or >"),
    (["--require", "worst-case≥0.7"], "write >= or >"),
    (["--require", "clean>=0.1>=0.2"], "is no requirement"),
    (["--require", "clean>=0.1,worst-case>=0.1"], "is no requirement"),
    (["--require", "worst-case@>=0.1"], "takes one radius"),
    (["--require", "worst-case@-1>=0.1"], "takes one radius"),
    (["--require", "worst-case@nan>=0.1"], "takes one radius"),
    (["--require", "worstcase>=0.1"], "did you mean 'worst-case'?"),
    (["--require", "worst_case>=.7"], "(known: clean, pgd-20, worst-case)\n"),
    (["--require", "autoattack>=0.1"], "--attacks autoattack --norm linf --eps 0.1 -n 400"),
    (["--require", "clean>=0.1", "--margin", "1%"], "--margin is for --against"),
    (["--require", "clean>=0.1", "--eps", "0.1,0.2"], "takes one radius"),
    (["--require", "clean>=0.1", "--first"], "with it; got none"),
    (["--require", "clean>=0.1", "-n", "0"], "greater than or equal to 1"),
    (["--require", "clean>=0.1", "--norm", "Linf"], "did you mean 'linf'?"),
    (["--against", "nowhere"], "no run folder at nowhere"),
    (["--against", ".", "--margin", "1%"], "holds no evaluation"),
    (["--against", ""], "the word after --against is empty"),
    (["--against", "new/../new"], "is the run itself"),
    (["--against", "nowhere", "--margin", "1"], "excuses every drop: did you mean 1%"),
    (["--against", "new", "--margin", "nan"], "--margin takes"),
    (["--against", "new", "--margin", "5"], "did you mean 0.05, or 5%?"),
    (["--require", "clean>=0.1", "--junit", "new"], "choose another path"),
    (["--require", "clean>=0.1", "--sarif", "new/recipe/x"], "choose another path"),
    (["--require", "clean>=0.1", "--junit", "a", "--sarif", "./a"], "the same file"),
    (["--require", "clean>=0.1", "--junit", "new/recipe.yaml"], "another kind of file"),
    (["--require", "clean>=0.1", "--junit", "pipe"], "it is no file"),
    (["--require", "clean>=0.1", "--sarif", "x" * 300], "File name too long"),
    (["--require", "clean>=0.1", "--junit", "/proc/none/a.xml"], "choose another path"),
]


@pytest.fixture
def gate(tmp_path, monkeypatch, capsys):
    """Return what runs ``equipoise gate`` in this process: exit code, output, errors."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["equipoise", "gate", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(("words", "said"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_exit_code_two(gate, tmp_path, run, words, said):
    (run / "recipe").touch()
    (run / "recipe.yaml").write_text("method: a3gt")
    os.mkfifo(tmp_path / "pipe")
    code, out, err = gate("new", *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("**/.*.part"))


@pytest.mark.parametrize("folder", ["missing", "new/evaluations"])
def test_a_folder_that_is_no_run(gate, run, folder):
    code, _, err = gate(folder, "--require", "clean>=0.5")
    assert code == 2
    assert folder in err


# The command and its files


def test_exit_codes_and_the_same_bits_twice(gate, tmp_path, pair):
    words = ("new", "--require", "clean>=0.9", "--require", "worst-case>0.71")
    files = ("--junit", "out/a.xml", "--sarif", "out/a.sarif")
    first = gate(*words, "--against", "old", *files)
    written = [(tmp_path / name).read_bytes() for name in ("out/a.xml", "out/a.sarif")]
    assert gate(*words, "--against", "old", *files) == first
    assert written == [(tmp_path / name).read_bytes() for name in ("out/a.xml", "out/a.sarif")]
    assert (first[0], first[2]) == (1, "")
    lines = first[1].splitlines()
    assert [line[:4] for line in lines] == ["PASS", "FAIL", "PASS", "FAIL", "PASS", "PASS", "FAIL"]
    assert lines[-1] == "FAILED: 4 of 6 are met"
    good = gate("new", "--require", "clean>=0.9", "--norm", "linf")
    assert (good[0], good[1].splitlines()[-1]) == (0, "PASSED: 2 of 2 are met")


def test_what_cannot_be_decided_leaves_no_green_file(gate, tmp_path, run):
    words = ("new", "--junit", "a.xml", "--sarif", "a.sarif", "--require")
    assert gate(*words, "clean>=0.5")[0] == 0
    assert gate(*words, "clean>=50")[0] == 2
    suites = ElementTree.parse(tmp_path / "a.xml").getroot()  # noqa: S314 - our own file
    assert (suites.get("errors"), suites.get("tests")) == ("1", "1")
    (result,) = json.loads((tmp_path / "a.sarif").read_text())["runs"][0]["results"]
    assert result["ruleId"] == "undecided"


def test_a_file_that_cannot_be_written_is_not_a_red_gate(gate, run, monkeypatch):
    def full(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    code, out, err = gate("new", "--require", "clean>=0.5", "--junit", "ein Platz ü/a.xml")
    assert (code, out) == (2, "")
    assert "the disk is full" in err


DECISIONS = [
    Decision(rule="requirement", name="clean>=0.5", passed=True, text="fine", file=Path("a/b")),
    Decision(rule="drop", name='<"&\x00\ud800\x1b[2J', passed=False, text="]]>\x07", file=None),
    Decision(rule="undecided", name="gate", passed=False, text="a: b", file=Path("/x y/ü")),
]


def test_junit_has_a_case_for_each_line_and_no_time():
    text = junit_xml(DECISIONS, Path("runs/new"))
    root = ElementTree.fromstring(text.encode())  # noqa: S314 - our own text
    (suite,) = root
    assert (root.tag, suite.tag) == ("testsuites", "testsuite")
    for each in (root, suite):
        assert {k: each.get(k) for k in ("tests", "failures", "errors")} == {
            "tests": "3",
            "failures": "1",
            "errors": "1",
        }
    assert [case.tag for case in suite] == ["testcase"] * 3
    assert [[part.tag for part in case] for case in suite] == [
        ["system-out"],
        ["failure"],
        ["error"],
    ]
    assert all(case.get("classname") == "runs/new" and case.get("name") for case in suite)
    assert all({"message", "type"} <= set(case[0].keys()) for case in suite[1:])
    assert "time" not in text


def test_sarif_has_what_the_standard_requires():
    log = json.loads(sarif_json(DECISIONS, Path("runs/new")))
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    (only,) = log["runs"]
    driver = only["tool"]["driver"]
    assert driver["name"]
    rules = driver["rules"]
    assert all(rule["id"] and rule["shortDescription"]["text"] for rule in rules)
    assert [r["ruleId"] for r in only["results"]] == ["drop", "undecided"]
    for result in only["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("none", "note", "warning", "error")
        assert result["message"]["text"].isprintable()
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] in (
            "runs/new",
            "file:///x%20y/%C3%BC",
        )
        assert all(isinstance(v, str) for v in result["partialFingerprints"].values())


def test_help_teaches(gate):
    code, out, _ = gate("--help")
    assert code == 0
    for text in ("Exit code 0", "1: ", "2: ", '--require "worst-case>=0.70"', "examples/gate"):
        assert text in out


def test_no_torch_is_imported(run, tmp_path):
    shutil.copytree(run, old := tmp_path / "old")
    code = (
        "import sys\nfrom pathlib import Path\nfrom equipoise.jobs.gate import decide\n"
        "import equipoise.jobs.gate_files\n"
        f"decide(Path({str(run)!r}), ['clean>=0.5'], Path({str(old)!r}))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# The examples


def shell_commands(name):
    """Return the commands of an example of a build server, and the variables they are given."""
    content = yaml.safe_load((ROOT / "examples" / "gate" / name).read_text(encoding="utf-8"))
    if name == "gitlab-ci.yml":
        (job,) = content.values()
        return job["script"], job["variables"]
    (job,) = content["jobs"].values()
    return [step["run"] for step in job["steps"] if "run" in step], content["env"]


@pytest.fixture(scope="module")
def released(command, tmp_path_factory):
    """Return a folder with two runs, as the examples expect them."""
    folder = tmp_path_factory.mktemp("examples")
    words = ("width=0.5", "rounds=6", "validation=100", "batch_size=50", "attack.steps=3")
    words += ("validation_attack=pgd-3", "eps=0.1", "--out", "runs/released")
    ended = command("train", "pgd-at", "--data", "digits", *words, cwd=folder)
    assert ended.code == 0, ended.err
    shutil.copytree(folder / "runs/released", folder / "runs/new")
    words = ("--attacks", "pgd-20,square-100", "-n", "300")
    assert command("evaluate", "runs/released", *words, cwd=folder).code == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["github-action.yml", "gitlab-ci.yml"])
def test_the_examples_run_as_plain_commands(released, tmp_path, name):
    folder = Path(shutil.copytree(released, tmp_path / "checkout"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "equipoise").write_text(
        f'#!/bin/sh\nexec {sys.executable} -m equipoise "$@"\n'
    )
    (tmp_path / "bin" / "equipoise").chmod(0o755)
    install, *commands = shell_commands(name)[0]
    assert install == 'pip install "$EQUIPOISE"'
    assert set(shell_commands(name)[1]) == {"EQUIPOISE"}

    def shell(text):
        script = f'export PATH="{tmp_path}/bin:$PATH"; {text}'
        words = ["bash", "-euo", "pipefail", "-c", script]
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)

    for text in commands:
        done = shell(text)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout
    assert (folder / "gate.xml").is_file()
    assert (folder / "gate.sarif").is_file() == (name == "github-action.yml")
    assert shell(commands[-1].replace("clean>=90%", "clean>=99.9%")).returncode == 1
