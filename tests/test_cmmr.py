"""The composite score: what must hold for any verdicts and distortions."""

import doctest
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from equipoise.errors import UserError
from equipoise.measures import cmmr, distortion, over_attacks
from equipoise.measures.cmmr import PSNR_SPAN, WEIGHT, Parts, largest_l2, measure, score, sweep
from equipoise.measures.over_attacks import OverAttacks, attack_texts, members
from equipoise.threat import Threat

DOCUMENT = (Path(__file__).parents[1] / "docs" / "cmmr.md").read_text(encoding="utf-8")
DIMENSIONS = 64
RAW = ("ssim", "mse", "ald2", "psnr")


def drawn(seed, n=40, eps=0.1):
    """Verdicts and distortions as an attack in Linf might leave them, some of them extreme."""
    draw = np.random.default_rng(seed)
    correct = draw.random(n) < 0.8
    robust = correct & (draw.random(n) < 0.5)
    mse = eps**2 * draw.random(n) ** draw.integers(0, 12, n)
    return {
        "correct": correct.tolist(),
        "robust": robust.tolist(),
        "ssim": draw.uniform(-0.3, 1, n).tolist(),
        "mse": mse.tolist(),
        "ald2": draw.exponential(0.4, n).tolist(),
        "psnr": (-10 * np.log10(mse)).tolist(),
    }


def scored(given, norm="linf", eps=0.1, dimensions=DIMENSIONS):
    return measure(**given, norm=norm, eps=eps, dimensions=dimensions)


def naive_score(given, eps):
    """The definition, one example after the other."""
    total = 0.0
    for right, held, ssim, mse, ald2, psnr in zip(*given.values(), strict=True):
        least = 10 * math.log10(1 / eps**2)
        parts = (
            1 - min(max(ssim, 0), 1),
            min(mse / eps**2, 1),
            min(ald2, 1),
            min(max(1 - (psnr - least) / 40, 0), 1),
        )
        total += held if held or not right else 0.5 * sum(parts) / 4
    return total / len(given["correct"])


@pytest.mark.parametrize("seed", range(20))
def test_the_score_is_the_mean_credit_and_bounded(seed):
    given = drawn(seed)
    parts = scored(given)
    assert parts.score == pytest.approx(naive_score(given, 0.1), abs=1e-12)
    assert all(0 <= part <= 1 for part in parts.parts.values())
    assert parts.accuracy <= parts.score <= parts.accuracy + WEIGHT * parts.success
    assert 0 <= parts.score <= 1
    assert parts.score == score(parts.accuracy, parts.success, parts.distortion)


@pytest.mark.parametrize("seed", range(5))
def test_the_credits_of_the_examples_have_the_score_as_their_mean(seed):
    given = drawn(seed)
    parts = scored(given)
    assert np.mean(parts.credits) == pytest.approx(parts.score, abs=1e-12)
    for i, credit in enumerate(parts.credits):
        one = {name: values[i : i + 1] for name, values in given.items()}
        assert credit == pytest.approx(naive_score(one, 0.1), abs=1e-12)
    kept = cmmr.unpack_credits(cmmr.pack_credits(parts.credits))
    assert kept == pytest.approx(parts.credits, abs=1 / 131_070)


def test_the_score_over_attacks_is_the_mean_of_the_mean_credits_with_its_spread():
    names = ("pgd-20", "mi-fgsm-20", "autoattack")
    attacks = {name: scored(drawn(seed)) for seed, name in enumerate(names)}
    over = OverAttacks(attacks)
    scores = [naive_score(drawn(seed), 0.1) for seed in range(3)]
    content = json.loads(json.dumps(over.to_dict(), allow_nan=False))
    assert content["version"] == "cmmr-2"
    assert content["score"] == pytest.approx(np.mean(scores), abs=1e-12)
    assert np.mean(over.credits) == pytest.approx(content["score"], abs=1e-12)
    assert [content["lowest"], content["highest"]] == pytest.approx([min(scores), max(scores)])
    assert content["attacks"] == {name: parts.to_dict() for name, parts in attacks.items()}
    assert list(attack_texts(content)) == ["mean", *names]


def test_one_attack_of_each_family_counts_that_with_the_most_steps():
    named = ["pgd-100(restarts=2)", "pgd-20", "cw-inf-30", "mi-fgsm-5", "fgsm", "autoattack"]
    assert members(named) == ("pgd-100(restarts=2)", "mi-fgsm-5", "autoattack")
    assert members([*named[:-1], "autoattack-plus", "apgd-ce"]) == ()
    assert members(["apgd-ce", "mi-fgsm-5", "autoattack"]) == ()


@pytest.mark.parametrize("seed", range(10))
def test_making_an_example_robust_or_right_never_lowers_the_score(seed):
    given = drawn(seed)
    before = scored(given).score
    for i, right in enumerate(given["correct"]):
        correct, robust = [*given["correct"]], [*given["robust"]]
        correct[i] = True
        if not right:
            assert scored({**given, "correct": correct}).score >= before
        robust[i] = True
        after = scored({**given, "correct": correct, "robust": robust}).score
        gain = 0 if given["robust"][i] else 1 - WEIGHT * right
        assert after >= before + gain / len(robust) - 1e-12


@pytest.mark.parametrize(
    ("name", "raw", "more"), [("ssim", "ass", -0.05), ("mse", "mse", 1e-4), ("ald2", "ald2", 0.05),
                              ("psnr", "psnr", -1.0)]
)  # fmt: skip
def test_each_part_grows_with_its_own_distortion_and_with_no_other(name, raw, more):
    given = drawn(3)
    for values, value in zip(RAW, (0.9, 0.005, 0.3, 30.0), strict=True):
        given[values] = [value] * len(given["mse"])
    before = scored(given)
    after = scored({**given, name: [value + more for value in given[name]]})
    assert after.score > before.score
    assert after.parts[raw] > before.parts[raw]
    assert getattr(after, raw) == pytest.approx(given[name][0] + more)
    rest = {key for key in before.parts if key != raw}
    assert {key: before.parts[key] for key in rest} == {key: after.parts[key] for key in rest}


def test_what_is_read_of_the_examples_that_are_not_fooled():
    given = drawn(5)
    before = scored(given)
    hit = np.array(given["correct"]) & ~np.array(given["robust"])
    for name in RAW:
        given[name] = np.where(hit, given[name], math.nan).tolist()
    assert scored(given) == before


def test_the_ends_of_the_scale():
    one = {"correct": [True], "robust": [False]}
    nothing = scored({**one, "ssim": [1.0], "mse": [0.0], "ald2": [0.0], "psnr": [math.inf]})
    assert nothing.score == 0
    assert nothing.psnr is None
    most = scored({**one, "ssim": [-1.0], "mse": [0.01], "ald2": [7.0], "psnr": [20.0]})
    assert most.parts == pytest.approx({"ass": 1, "mse": 1, "ald2": 1, "psnr": 1})
    assert most.score == pytest.approx(WEIGHT)
    assert most.ald2 == 7.0  # raw means are not cut


def test_psnr_counts_nothing_from_a_hundredth_of_the_largest_length_on():
    one = {"correct": [True], "robust": [False], "ssim": [1.0], "ald2": [0.0]}
    for share, expected in ((1, 1.0), (0.1, 0.5), (0.01, 0.0), (0.001, 0.0)):
        mse = (0.1 * share) ** 2
        found = scored({**one, "mse": [mse], "psnr": [-10 * math.log10(mse)]})
        assert found.parts["psnr"] == pytest.approx(expected, abs=1e-9)
    assert 20 * math.log10(100) == PSNR_SPAN


def test_where_nothing_is_fooled_the_score_is_the_accuracy():
    given = drawn(1)
    given["robust"] = given["correct"]
    given["psnr"] = [math.inf] * len(given["psnr"])
    parts = scored(given)
    assert parts.score == parts.accuracy == np.mean(given["correct"])
    content = parts.to_dict()
    assert all(content[key] is None for key in ("distortion", "ass", "mse", "ald2", "psnr"))
    assert content["parts"] == {"ass": None, "mse": None, "ald2": None, "psnr": None}
    json.dumps(content, allow_nan=False)


def test_at_radius_zero_the_score_is_the_clean_accuracy():
    still = {"ssim": [1.0] * 4, "mse": [0.0] * 4, "ald2": [0.0] * 4, "psnr": [math.inf] * 4}
    right = [True, True, True, False]
    assert scored({"correct": right, "robust": right, **still}, eps=0).score == 0.75
    # A random model can be fooled without a change: that took no distortion.
    found = scored({"correct": right, "robust": [True, True, False, False], **still}, eps=0)
    assert (found.score, found.distortion) == (0.5, 0.0)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_goes_to_the_clean_accuracy_as_the_radius_goes_to_zero(norm):
    """A linear model with margins in [0, 1): fooled are those whose margin the radius reaches."""
    margin = np.random.default_rng(0).random(2000)
    correct = np.random.default_rng(1).random(2000) < 0.9
    scores = []
    for eps in (1e-1, 1e-2, 1e-3, 1e-6):
        mse = np.full(2000, largest_l2(norm, eps, DIMENSIONS) ** 2 / DIMENSIONS)
        robust = correct & (margin > eps)
        given = {
            "correct": correct.tolist(),
            "robust": robust.tolist(),
            "ssim": [0.99] * 2000,
            "mse": mse.tolist(),
            "ald2": np.sqrt(4 * mse).tolist(),
            "psnr": (-10 * np.log10(mse)).tolist(),
        }
        scores.append(scored(given, norm, eps).score)
    assert scores == sorted(scores)
    assert scores[-2] == pytest.approx(correct.mean(), abs=0.002)
    assert scores[-1] == correct.mean()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_same_examples_score_no_more_in_a_larger_threat(norm):
    given = drawn(7, eps=0.01)
    scores = [scored(given, norm, eps).score for eps in (0.1, 0.2, 0.4, 0.8, 1.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1]


def swept(seed):
    """Verdicts at rising radii, not nested: a larger radius may miss what a smaller one found."""
    correct = drawn(seed)["correct"]
    radii = {}
    for i, eps in enumerate((0.4, 0.0, 0.05, 0.1, 0.2)):
        radii[eps] = drawn(100 * seed + i, eps=max(eps, 0.01))
        del radii[eps]["correct"]
        hit = np.random.default_rng(i).random(40) < eps * 2
        radii[eps]["robust"] = (np.array(correct) & ~hit).tolist()
    return correct, radii


@pytest.mark.parametrize("seed", range(10))
def test_a_sweep_keeps_the_first_example_found_and_never_rises(seed):
    correct, radii = swept(seed)
    found = sweep(correct, radii, norm="linf", dimensions=DIMENSIONS)
    assert list(found) == sorted(radii)
    scores = [parts.score for parts in found.values()]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == np.mean(correct)
    for eps, parts in found.items():
        rows = []
        for i, right in enumerate(correct):
            by = [e for e in sorted(radii) if e <= eps and right and not radii[e]["robust"][i]]
            row = radii[by[0] if by else eps]
            rows.append((right, right and not by, *(row[name][i] for name in RAW)))
        columns = zip(*rows, strict=True)
        given = dict(zip(("correct", "robust", *RAW), columns, strict=True))
        assert parts == scored(given, eps=eps)


def test_alone_at_their_radii_attacks_that_use_all_would_make_a_broken_model_rise():
    radii = {}
    for eps in (0.1, 0.2):
        radii[eps] = {"robust": [False], "ssim": [1 - eps], "mse": [eps**2], "ald2": [2 * eps]}
        radii[eps]["psnr"] = [-20 * math.log10(eps)]
    alone = [scored({"correct": [True], **radii[eps]}, eps=eps).score for eps in radii]
    together = sweep([True], radii, norm="linf", dimensions=DIMENSIONS)
    assert alone[0] < alone[1]
    assert alone[0] == together[0.1].score > together[0.2].score


def test_a_sweep_over_different_examples_is_refused():
    correct, radii = swept(0)
    radii[0.2]["psnr"] = radii[0.2]["psnr"][1:]
    with pytest.raises(UserError, match="psnr: 39"):
        sweep(correct, radii, norm="linf", dimensions=DIMENSIONS)


def test_a_score_knows_nothing_of_other_models():
    alone = scored(drawn(0))
    for seed in range(1, 6):
        scored(drawn(seed))
    assert scored(drawn(0)) == alone


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", [0.05, 0.5, 1.0, 3.0])
def test_the_largest_length_bounds_all_that_is_allowed_and_is_reached(norm, eps):
    if norm == "linf" and eps > 1:
        assert largest_l2(norm, eps, 16) == 4
        return
    x = torch.zeros(65, 1, 4, 4)
    far = torch.randn(65, 1, 4, 4, generator=torch.Generator().manual_seed(0)).abs() * 9
    far[0] = 9 * (torch.arange(16).view(1, 4, 4) < max(1, int(eps)) if norm == "l1" else 1)
    threat = Threat(norm, eps)
    lengths = (threat.project(x, far) - x).double().flatten(1).norm(dim=1)
    bound = largest_l2(norm, eps, 16)
    assert lengths.max() <= bound + 1e-6
    assert lengths[0] == pytest.approx(bound, rel=1e-5)
    assert largest_l2(norm, 1e9, 16) == 4
    assert largest_l2(norm, 0, 16) == 0


def test_real_perturbations_at_the_border_of_the_threat_are_accepted():
    x = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    for threat in (Threat("linf", 0.1), Threat("l2", 0.5), Threat("l1", 0.8)):
        far = x + 9 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).sign()
        x_adv = threat.project(x, far)
        raw = {name: f(x, x_adv).tolist() for name, f in distortion.MEASURES.items()}
        verdicts = {"correct": [True] * 6, "robust": [False] * 6}
        found = scored({**verdicts, **raw}, threat.norm, threat.eps)
        assert 0 < found.distortion <= 1
        if threat.norm != "l1":
            assert found.parts["mse"] == pytest.approx(1, rel=1e-4)
            assert found.parts["psnr"] == pytest.approx(1, rel=1e-4)
            with pytest.raises(UserError, match="an mse of at most"):
                scored({**verdicts, **raw}, threat.norm, threat.eps / 4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mse": [0.0]}, "one value an example"),
        (dict.fromkeys(("correct", "robust", *RAW), ()), "one example or more"),
        ({"correct": [False, True]}, r"robust\[0\] without correct\[0\]"),
        ({"ssim": [1.0, math.nan]}, "got ssim without"),
        ({"ald2": [1.0, math.inf]}, "got ald2 without"),
        ({"mse": [0.0, 0.02]}, "an mse of at most 0.01"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, said):
    given = {
        "correct": [True, True],
        "robust": [True, False],
        "ssim": [1.0, 0.9],
        "mse": [0.0, 0.01],
        "ald2": [0.0, 0.1],
        "psnr": [math.inf, 20.0],
    }
    assert scored(given).fooled == 1
    with pytest.raises(UserError, match=said):
        scored({**given, **change})
    with pytest.raises(UserError, match="norm must be one of"):
        scored(given, norm="l0")


def test_a_dictionary_is_what_a_file_of_findings_holds():
    parts = scored(drawn(2))
    content = json.loads(json.dumps(parts.to_dict(), allow_nan=False))
    assert list(content) == [
        *("version", "score", "accuracy", "success", "distortion", "n", "fooled"),
        *("ass", "mse", "ald2", "psnr", "parts"),
    ]
    assert content["version"] == cmmr.VERSION == "cmmr-1"
    assert content["score"] == parts.score
    assert content["n"] == 40
    assert list(content["parts"]) == ["ass", "mse", "ald2", "psnr"]
    assert isinstance(parts, Parts)


def test_neither_the_score_nor_the_metrics_need_torch():
    code = "import sys, equipoise.store.scores as a; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_code_of_the_document_runs(trained, tmp_path, monkeypatch, capsys):
    from equipoise.jobs.evaluate import evaluate_run

    folder = tmp_path / "runs" / "comparison" / "pgd-at-seed0"
    shutil.copytree(trained, folder)
    evaluate_run(folder, attacks="pgd-3", eps=[0.1], n=40, checks=False)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    table, curve = re.findall(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    names = {}
    exec(table, names)  # noqa: S102 - it is our own document
    name, number = capsys.readouterr().out.split()[:2]
    assert name == "pgd-at-seed0"
    assert 0 <= float(number) <= 1
    exec(curve, names)  # noqa: S102 - it is our own document
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = [float(number) for _, number in printed]
    assert len(scores) == 7
    assert scores == sorted(scores, reverse=True)


def test_doctests():
    assert doctest.testmod(cmmr).failed == 0
    assert doctest.testmod(cmmr).attempted == 10
    assert doctest.testmod(over_attacks) == (0, 1)
