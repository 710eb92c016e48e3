"""Audited evaluations of runs: stored, verified, forged, repeated with another nonce, in plans."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from equipoise.errors import RunError, UserError
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.gate import decide
from equipoise.jobs.verify import verify_run
from equipoise.store.verdicts import read
from forks import FORKED
from test_verify import files, reseal

SPEC = "audited(within=10%)"
EPS = 0.01


@pytest.fixture(scope="module")
def audited(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    shutil.copytree(trained, folder)
    evaluate_run(folder, attacks=SPEC, eps=[EPS], n=80, checks=False, nonce="first")
    return folder


@pytest.fixture
def copy(audited: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited, tmp_path / "copy"))


def test_the_audit_is_stored_and_follows_from_the_verdicts(audited):
    (path,) = files(audited)
    stored = read(path).verdicts
    summary = json.loads(path.with_suffix(".json").read_text())["audit"]
    assert stored.audit.nonce == summary["nonce"] == "first"
    assert summary["lower"] == stored.audit.lower <= stored.robust.mean() == summary["upper"]
    assert summary["sentence"] == stored.audit.sentence
    assert not any(v.problems for v in verify_run(audited))


def another_order(tensors: dict, content: dict) -> None:
    content["audit"]["nonce"] = "second"


def fewer_misses(tensors: dict, content: dict) -> None:
    """Put a miss of the audit back among the images that are left."""
    name = f"attacked.{SPEC}/apgd-ce"
    row = int(np.flatnonzero(tensors[name] & tensors["robust"])[0])
    tensors[f"verdict.{SPEC}/apgd-ce"][row] = False
    tensors["robust"][row] = False
    tensors["broken_by"][row] = list(content["outcomes"]).index(f"{SPEC}/apgd-ce")


def more_checked(tensors: dict, content: dict) -> None:
    content["audit"]["rounds"][-1]["checked"] += 1


def another_evaluation(tensors: dict, content: dict) -> None:
    content["audit"]["digest"] = "0" * 64


def not_attacked(tensors: dict, content: dict) -> None:
    attacked = tensors[f"attacked.{SPEC}/square"]
    attacked[np.flatnonzero(attacked)[0]] = False


def stronger_bound(tensors: dict, content: dict) -> None:
    content["audit"]["within"] = 0.001


def stage_taken_away(tensors: dict, content: dict) -> None:
    name = f"{SPEC}/square"
    del tensors[f"attacked.{name}"], tensors[f"verdict.{name}"], content["outcomes"][name]


def interrupted_with_more(tensors: dict, content: dict) -> None:
    content["audit"]["finished"] = False
    content["audit"]["rounds"][-1]["checked"] += 1


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (stage_taken_away, "did not attack"),
        (interrupted_with_more, "does not follow"),
        (another_order, "does not follow|did not attack"),
        (fewer_misses, "does not follow|did not attack"),
        (more_checked, "does not follow"),
        (another_evaluation, "another evaluation"),
        (not_attacked, "did not attack: 1 images for square"),
        (stronger_bound, "does not follow|did not attack"),
    ],
)
def test_a_forged_audit_is_found(copy, change, part):
    (path,) = files(copy)
    reseal(path, change)
    with pytest.raises(RunError, match=part):
        verify_run(copy)


def test_an_audit_is_repeated_with_a_strangers_nonce(audited, command):
    before = [path.read_bytes() for path in files(audited)]
    (again,) = verify_run(audited, audit="a stranger's")
    assert again.audit.audit.nonce == "a stranger's"
    assert "audited again (nonce a stranger's)" in str(again)
    assert [path.read_bytes() for path in files(audited)] == before
    ended = command("verify", audited, "--audit", " ")
    assert (ended.code, "nonce is empty" in ended.err) == (2, True)


def test_images_that_no_stage_attacked_are_not_attacked_again(copy):
    """What AutoAttack finds on images that were not drawn contradicts nothing."""
    (path,) = files(copy)
    stored = read(path).verdicts
    assert not stored.attacked[f"{SPEC}/square"][stored.robust].all()
    (again,) = verify_run(copy, again=20)
    assert again.again.attacked == 20
    assert again.again.false == again.again.odd == 0


def test_later_evaluations_leave_the_audit_as_it_is(copy):
    evaluate_run(copy, attacks="pgd-2", eps=[EPS], n=80, checks=False, seed=5, individual=True)
    (path,) = files(copy)
    assert read(path).verdicts.audit.nonce == "first"
    (again,) = verify_run(copy, audit="b")
    assert again.audit.audit.finished


def test_another_audit_in_the_same_place_begins_with_what_is_known(copy):
    (path,) = files(copy)
    before = read(path).verdicts
    evaluate_run(copy, attacks=SPEC, eps=[EPS], n=80, checks=False, nonce="second", seed=3)
    after = read(path).verdicts
    assert after.audit.nonce == "second"
    assert not (after.robust & ~before.robust).any()
    assert not any(v.problems for v in verify_run(copy))


def test_a_gate_wants_the_audit_of_an_audited_search(copy):
    (path,) = files(copy)
    checked = {"check": "accuracy", "code": "C1", "status": "ok", "message": "", "measured": {}}

    def with_checks(tensors: dict, content: dict) -> None:
        content["about"]["asked"]["checks"] = True
        content["findings"] = [checked]

    reseal(path, with_checks)
    assert "by the audit with 97.5%" in decide(copy, ["worst-case>=0.01"])[0].text
    reseal(path, lambda tensors, content: content.pop("audit"))
    with pytest.raises(UserError, match="evaluate with audited again"):
        decide(copy, ["worst-case>=0.01"])


def test_transferred_examples_stay_a_stage_of_the_search(copy):
    evaluate_run(copy, attacks=SPEC, eps=[0.02], n=80, checks=False)
    evaluate_run(copy, attacks="fgsm", eps=[0.02], n=80, checks=False, transfer=[copy])
    later = read(files(copy)[1])
    assert later.verdicts.outcomes["transfer"]["ensemble"] == SPEC
    assert later.verdicts.audit is not None
    assert not any(v.problems for v in verify_run(copy))


def test_without_an_audit_there_is_none_to_repeat(trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(folder, attacks="pgd-2", eps=[EPS], n=20, checks=False)
    with pytest.raises(UserError, match="--attacks audited"):
        verify_run(folder, audit="x")


def test_a_repeated_audit_that_contradicts_the_stored_one_is_a_problem(copy):
    (path,) = files(copy)

    def forged(tensors: dict, content: dict) -> None:
        """Claim that AutoAttack left every image that the search left, all of them audited."""
        left = tensors["robust"] | ~tensors["robust"] & tensors["correct"]
        for name in content["audit"]["searched"]:
            tensors[f"verdict.{name}"] |= tensors["correct"]
        for name in content["audit"]["stages"]:
            tensors[f"attacked.{name}"] |= tensors["correct"]
        tensors["robust"] = left
        tensors["broken_by"][left] = -1
        items, first = int(left.sum()), content["audit"]["rounds"][0]
        content["audit"]["rounds"] = [{**first, "items": items, "checked": items}]
        tensors["margin"] = np.abs(tensors["margin"])

    reseal(path, forged)
    with pytest.raises(RunError):
        verify_run(copy, audit="z")


def test_an_interrupted_audit_of_a_run_is_resumed(trained, tmp_path, command):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    whole = Path(shutil.copytree(trained, tmp_path / "whole"))
    again = ("--attacks", SPEC, "--eps", "0.01", "-n", "80", "--no-checks", "--nonce", "first")
    often = tmp_path / "often.py"
    often.write_text(
        "from importlib import import_module\n"
        "saving = import_module('equipoise.evaluation.saving')\n"
        "saving.SAVE_SECONDS = saving.SAVE_SHARE = 0\n"
        "real, calls = saving.Store.write, []\n"
        "def write(self, result, *more):\n"
        "    real(self, result, *more)\n"
        "    audited = [o for k, o in result.outcomes.items() if 'apgd-t' in k]\n"
        "    if audited and audited[0].attacked.any() and not calls:\n"
        "        calls.append(1)\n"
        "        raise KeyboardInterrupt\n"
        "saving.Store.write = write\n"
    )
    stopped = command("--import", often, "evaluate", folder, *again)
    assert stopped.code == 130, stopped.err
    assert "--resume" in stopped.err
    begun = read(files(folder)[0]).verdicts
    (record,) = (r for r in begun.records() if r.stages)
    for stage in record.stages:
        attacked = int(begun.attacked[f"{record.attack}/{stage.attack}"].sum())
        assert stage.entered <= attacked, stage.attack
    wrong = command("evaluate", folder, "--resume", "--nonce", "other")
    assert (wrong.code, "nonce first, not other" in wrong.err) == (2, True)
    ended = command("evaluate", folder, "--resume")
    assert ended.code == 0, ended.err
    assert command("evaluate", whole, *again).code == 0
    (one,), (two,) = files(folder), files(whole)
    a, b = read(one).verdicts, read(two).verdicts
    assert a.audit.rounds == b.audit.rounds
    for name in a.verdict:
        assert np.array_equal(a.verdict[name], b.verdict[name]), name
        assert np.array_equal(a.attacked[name], b.attacked[name]), name


def test_examples_of_a_smaller_radius_are_tried_first(copy):
    evaluate_run(copy, attacks=SPEC, eps=[0.02], n=80, checks=False)
    larger = read(files(copy)[1]).verdicts
    assert larger.outcomes["transfer"]["settings"].startswith("points from linf-0.01")
    assert larger.outcomes["transfer"]["ensemble"] == SPEC
    assert not larger.verdict["transfer"][larger.correct].all()
    assert not (larger.attacked[f"{SPEC}/noise"] & ~larger.verdict["transfer"]).any()
    assert not any(v.problems for v in verify_run(copy))


@pytest.mark.slow
def test_the_table_of_a_plan_has_the_bound_for_its_models(tmp_path, command):
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "title: one\nbase: {data: digits, rounds: 1, width: 0.25, eps: 0.05}\n"
        "entries:\n  pgd-at: {attack: {steps: 2}}\n"
        f"evaluate: {{attacks: ['{SPEC}'], n: 24, eps: [0.05]}}\n"
    )
    ended = command("compare", plan, "--out", tmp_path / "out", before=FORKED)
    assert ended.code == 0, ended.err
    table = (tmp_path / "out" / "table.md").read_text()
    assert "images that the searches left on 1 model went through AutoAttack" in table
    assert "AutoAttack's accuracies are on average at most" in table
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert sum("audit" in row for row in rows) == 1


def test_a_front_may_be_audited(trained, command, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "front"))
    ended = command("front", folder, "--points", 4, "--attacks", SPEC, "-n", 12, "--eps", 0.01)
    assert ended.code == 0, ended.err
    paths = [p for p in (folder / "front").glob("*.safetensors") if p.stem != "gallery"]
    assert len(paths) == 4
    for verdicts in (read(path).verdicts for path in paths):
        assert verdicts.audit.finished
        assert verdicts.audit.least <= verdicts.robust.sum() == verdicts.audit.robust
