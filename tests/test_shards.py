"""Evaluations in shards: joined they are one of all images; what is missing is named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from equipoise.errors import RunError, UserError
from equipoise.evaluation.ahead import AHEAD
from equipoise.evaluation.search import Search
from equipoise.evaluation.stored import Store
from equipoise.execution import Execution
from equipoise.jobs.audit_shards import audit_part
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.join import join_run
from equipoise.jobs.shards import SHARDS, Shard, stored
from equipoise.jobs.target_model import of_run
from equipoise.jobs.verify import verify_run
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console

WORDS = {"attacks": "pgd-3,apgd-t-4,square-20", "eps": [0.1], "n": 60}
EXACT = {"execution": Execution(precision="float32")}
EXACT_VERDICTS = ("y", "correct", "robust", "clean_prediction", "broken_by")


def join(folder: Path) -> list:
    return join_run(folder, lambda which: of_run(folder, which, None, Console(quiet=True)))


def read(folder: Path):
    (path,) = (folder / "evaluations").glob("*.safetensors")
    return Store(Run(folder), path.stem).read()


def part(folder: Path, number: int, of: int, **changed) -> None:
    assert evaluate_run(folder, shard=Shard(number, of), **WORDS | EXACT | changed) == []


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated on all images at once."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(trained, folder)
    evaluate_run(folder, **WORDS, **EXACT)
    return folder


@pytest.fixture(scope="module")
def three(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the three shards of the same evaluation, made in any order."""
    folder = tmp_path_factory.mktemp("three") / "run"
    shutil.copytree(trained, folder)
    for number in (3, 1, 2):
        part(folder, number, 3)
    return folder


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "copy"))


def test_joined_they_are_the_evaluation_of_all_images(whole, copy):
    records = join(copy)
    about, result, tensors = read(copy)
    about_whole, one, tensors_whole = read(whole)
    assert tensors.keys() == tensors_whole.keys()
    for name in (
        k for k in tensors if k in EXACT_VERDICTS or k.startswith(("verdict", "attacked"))
    ):
        assert torch.equal(tensors[name], tensors_whole[name]), name
    torch.testing.assert_close(tensors["x"], tensors_whole["x"], rtol=0, atol=0)
    assert about == about_whole
    assert result.finished
    assert one.robust.any()
    kinds = [(f.check, f.status) for f in result.findings]
    assert kinds == [(f.check, f.status) for f in one.findings]
    counted = ("attack", "n", "accuracy")
    wanted = [[r[key] for key in counted] for r in records_of(whole)]
    assert [[r[key] for key in counted] for r in records] == wanted
    for name, outcome in result.outcomes.items():
        assert outcome.backwards == one.outcomes[name].backwards
    assert verify_run(copy)


def records_of(folder: Path) -> list:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_joined_again_nothing_changes(copy):
    join(copy)
    before = read(copy)[2]
    join(copy)
    after = read(copy)[2]
    assert all(torch.equal(before[k].nan_to_num(), after[k].nan_to_num()) for k in before)


def test_earlier_verdicts_on_all_images_count_too(copy):
    evaluate_run(copy, **WORDS | {"attacks": "fgsm"}, **EXACT)
    fooled = read(copy)[1].outcomes["fgsm"].broken
    join(copy)
    joined = read(copy)[1]
    assert {"fgsm", "pgd-3"} <= set(joined.outcomes)
    assert not (joined.robust & fooled).any()


AUDITED = {"attacks": "audited(within=10%)", "n": 40}


@pytest.fixture(scope="module")
def audited(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run with an audited evaluation of all images, and one with its two shards."""
    base = tmp_path_factory.mktemp("audited")
    folders = [Path(shutil.copytree(trained, base / name)) for name in ("whole", "parts")]
    evaluate_run(folders[0], **WORDS | EXACT | AUDITED)
    for number in (1, 2):
        part(folders[1], number, 2, **AUDITED)
    return folders


@pytest.mark.long
def test_an_audit_follows_when_they_are_joined(audited, tmp_path):
    folder = Path(shutil.copytree(audited[1], tmp_path / "parts"))
    (shards,) = stored(folder).values()
    assert all(p.result.audit is None for p in shards)
    join(folder)
    _same_audit(folder, audited[0])


def _same_audit(folder: Path, other: Path) -> None:
    """Compare an audit with another one: rounds, verdicts and which images were attacked."""
    one, two = (read(each)[1] for each in (folder, other))
    assert one.audit is not None
    assert two.audit is not None
    assert one.audit.rounds == two.audit.rounds
    assert one.outcomes.keys() == two.outcomes.keys()
    for name, outcome in one.outcomes.items():
        assert torch.equal(outcome.verdict, two.outcomes[name].verdict), name
        assert torch.equal(outcome.attacked, two.outcomes[name].attacked), name
    torch.testing.assert_close(one.margin, two.margin, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_audit_is_attacked_in_shards_before_they_are_joined(audited, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(audited[1], tmp_path / "parts"))
    subject = lambda which: of_run(folder, which, None, Console(quiet=True))  # noqa: E731
    asked = [audit_part(folder, subject, Shard(number, 2)) for number in (2, 1, 2, 1)]
    assert asked[0]
    assert not asked[-1]
    files = sorted((folder / AHEAD).glob("*.safetensors"))
    stages = {Store(Run(folder), f.stem, AHEAD).about()["stage"] for f in files}
    assert {name.partition("/")[2] for name in stages} >= {"restarts", "apgd-t", "square"}
    attack, ran = Search._attack, []
    with monkeypatch.context() as patch:  # joining attacks nothing
        patch.setattr(Search, "_attack", lambda *words: ran.append(1) or attack(*words))
        join(folder)
    assert not ran
    _same_audit(folder, audited[0])
    for name, outcome in read(folder)[1].outcomes.items():
        assert outcome.backwards == read(audited[0])[1].outcomes[name].backwards, name
    assert verify_run(folder)


# What is missing or does not fit


def test_what_is_missing_is_named_and_alone_repeated(copy):
    (path,) = (copy / SHARDS).glob("*-2-of-3.safetensors")
    path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in (copy / SHARDS).iterdir()}
    with pytest.raises(RunError, match=r"of 3 shards there are 2; 2 \(missing\): .*--shard 2/3"):
        join(copy)
    part(copy, 2, 3)
    join(copy)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_one_that_was_stopped_goes_on_with_the_same_command(copy, monkeypatch):
    (path,) = (copy / SHARDS).glob("*-1-of-3.safetensors")
    path.unlink()
    calls = []

    def stop(self, progress):
        calls.append(progress)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Console, "attack", stop)
    with pytest.raises(KeyboardInterrupt):
        part(copy, 1, 3, batch_size=8)
    monkeypatch.undo()
    with pytest.raises(RunError, match=r"1 \(not finished\)"):
        join(copy)
    attacked = int(Store(Run(copy), path.stem, SHARDS).read()[1].outcomes["pgd-3"].attacked.sum())
    assert attacked > 0
    part(copy, 1, 3)
    assert Store(Run(copy), path.stem, SHARDS).about()["finished"]


@pytest.mark.parametrize("changed", [{"attacks": "fgsm"}, {"seed": 1}])
def test_shards_of_different_evaluations_are_refused(copy, changed):
    (name,) = changed
    with pytest.raises(UserError, match=f"of another evaluation .another {name}.: remove it"):
        part(copy, 2, 3, **changed)
    (path,) = (copy / SHARDS).glob("*-2-of-3.safetensors")
    path.unlink()
    part(copy, 2, 3, **changed)
    with pytest.raises(UserError, match=f"not of one evaluation: they have another {name}"):
        join(copy)


def test_shards_of_two_divisions_or_renamed_ones_are_refused(copy):
    (path,) = (copy / SHARDS).glob("*-1-of-3.safetensors")
    again = path.with_name(path.name.replace("-1-of-3", "-2-of-2"))
    shutil.copy(path, again)
    with pytest.raises(UserError, match="holds shard 1 of 3: it was renamed"):
        join(copy)
    again.unlink()
    part(copy, 1, 2)
    with pytest.raises(UserError, match=r"has shards of [23] and of [23]: remove"):
        join(copy)


def test_a_damaged_shard_is_named(copy):
    (path,) = (copy / SHARDS).glob("*-3-of-3.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"3-of-3.safetensors is damaged"):
        join(copy)


def test_other_weights_than_those_of_the_shards_are_refused(copy):
    def changed(which):
        subject = of_run(copy, which, None, Console(quiet=True))
        for weight in subject.model.parameters():
            weight.data += 1
        return subject

    with pytest.raises(UserError, match="made with another model"):
        join_run(copy, changed)


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/0", "-1/2", "1/99999999"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(UserError, match="expects K/N"):
        Shard.parse(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--shard", "1/2", "--resume"), "continued by the command that began it"),
        (("--shard", "1/2", "--cmmr"), "has no numbers of its own"),
        (("--shard", "1/500", "-n", "20"), "only 20 images for 500 shards"),
    ],
)
def test_what_does_not_go_with_a_shard_is_one_line(command, trained, words, said):
    done = command("evaluate", trained, "--attacks", "fgsm", *words)
    assert done.code == 2
    assert said in done.line


def test_a_folder_without_shards_says_how_to_make_them(command, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    done = command("join", folder)
    assert done.code == 2
    assert "--shard 1/2" in done.line


@pytest.mark.long
def test_processes_of_torchrun_have_a_part_each_and_the_first_one_joins(whole, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = ["-m", "equipoise", "evaluate", str(folder), "--attacks", WORDS["attacks"]]
    words += ["--eps", "0.1", "-n", "60", "--precision", "float32", "--quiet"]
    done = subprocess.run(
        [*start, "--standalone", *words],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("worst-case") == 2  # one table, in two parts
    assert len(list((folder / SHARDS).glob("*.safetensors"))) == 2
    assert torch.equal(read(folder)[1].robust, read(whole)[1].robust)
