"""The command line: the whole way, bad input in one line, killed and resumed."""

import gzip
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import equipoise
from equipoise.attacks import ATTACKS
from equipoise.data import DATASETS
from equipoise.models import MODELS
from equipoise.settings.methods import METHODS

WEIGHTS = (
    "model.safetensors",
    "last.safetensors",
    "learner-clean.safetensors",
    "learner-robust.safetensors",
)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def history(folder: Path) -> list[dict[str, object]]:
    """Return the log without the times in it."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    skip = ("seconds", "parts", "images_per_second")
    return [{k: v for k, v in line.items() if k not in skip} for line in lines]


def assert_same_run(one: Path, other: Path) -> None:
    for name in WEIGHTS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert history(one) == history(other)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for summary in summaries:
        del summary["seconds"], summary["parts"]
    assert summaries[0] == summaries[1]


# The whole way


@pytest.mark.slow
def test_train_evaluate_report(command, copy):
    names = {path.name for path in copy.iterdir()}
    assert names == {
        "recipe.yaml",
        "provenance.json",
        "config.json",
        "log.jsonl",
        "state.pt",
        "state.previous.pt",
        "summary.json",
        *WEIGHTS,
    }
    assert len(history(copy)) == 4
    records = copy.parent / "records.json"
    ended = command(
        "evaluate", copy, "--attacks", "clean,fgsm,pgd-3", "-n", 100, "--eps", "8/255,0.1",
        "--json", records,
    )  # fmt: skip
    assert ended.code == 0, ended.err
    for text in (
        "fgsm",
        "pgd-3",
        "worst-case",
        "Linf(8/255), a stratified sample of 100",
        "Linf(0.1)",
        "per class",
    ):
        assert text in ended.out
    found = json.loads(records.read_text())
    assert [r["attack"] for r in found] == ["clean", "fgsm", "pgd-3", "worst-case"] * 2
    assert found == [
        json.loads(line) for line in (copy / "records.jsonl").read_text().splitlines()
    ]
    page = copy.parent / "page.html"
    ended = command("report", copy, "--out", page)
    assert ended.code == 0, ended.err
    assert ended.out.strip() == str(page)
    assert "pgd-3" in page.read_text()


def test_a_model_can_be_used_as_the_library_has_it(trained):
    model = equipoise.load(trained)
    assert set(model.state_dict()) == set(load_file(trained / "model.safetensors"))


@pytest.mark.slow
def test_a_recipe_file_with_overrides(command, tmp_path, trained):
    shutil.copy(trained / "recipe.yaml", tmp_path / "r.yaml")
    ended = command("train", tmp_path / "r.yaml", "--out", tmp_path / "same")
    assert ended.code == 0, ended.err
    assert_same_run(tmp_path / "same", trained)
    ended = command(
        "train", tmp_path / "r.yaml", "rounds=2", "robust.lr=1/100", "--seed", 7,
        "--out", tmp_path / "other", "--quiet",
    )  # fmt: skip
    assert (ended.code, ended.out) == (0, "")
    text = (tmp_path / "other" / "recipe.yaml").read_text()
    assert "seed: 7" in text
    assert "rounds: 2\n" in text
    assert "lr: 0.01" in text


@pytest.mark.slow
def test_standard_and_pgd_at_too(command, small, tmp_path):
    words = [word for word in small[1:] if not word.startswith(("attack", "gamma"))]
    for method in ("standard", "pgd-at"):
        ended = command("train", method, *words, "rounds=1", "--out", tmp_path / method)
        assert ended.code == 0, ended.err
        assert (tmp_path / method / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_that_never_synchronised_says_so(command, small, tmp_path):
    out = tmp_path / "run"
    words = [word for word in small[1:] if not word.startswith("gamma")]
    ended = command("train", "generalist", *words, "start=never", "--quiet", "--out", out)
    assert ended.code == 0
    assert "WARNING: never synchronised" in ended.line
    summary = json.loads((out / "summary.json").read_text())
    assert summary["handovers"] == []
    assert "never synchronised" in summary["warnings"][0]


# Quick, and silent about torch


def test_version_and_module():
    words = [sys.executable, "-m", "equipoise", "--version"]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == equipoise.__version__
    assert found.stderr == ""


def processor_seconds(code: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Return the least time that Python takes for some code, of three, and what it said.

    It is the processor's: the clock also counts what else the machine does.
    """
    best = float("inf")
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return best, found


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "-h"]])
def test_help_is_quick_and_imports_no_torch(words):
    code = (
        "import sys, equipoise.cli\n"
        f"sys.argv = ['equipoise', *{words!r}]\n"
        "try:\n    equipoise.cli.main()\nexcept SystemExit as stop:\n    code = stop.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'sklearn', 'matplotlib', 'pandas'}\n"
        "print(code, sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    ours, found = processor_seconds(code)
    library, _ = processor_seconds("import typer, rich.console, rich.table, rich.panel")
    assert "Usage: equipoise" in found.stdout
    assert found.stderr.strip() == "0 []"
    assert ours < 3 * library


@pytest.mark.parametrize("words", [[], ["data"]])
def test_the_list_of_commands_has_whole_sentences(command, words):
    _, _, listed = command(*words, "--help").out.partition("Commands:\n")
    lines = [line for line in listed.splitlines() if line.strip()]
    assert lines
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []


# Bad input: exit code 2, one line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["a3gt", "eps=8"], ["did you mean 8/255"]),
        (["a3gt", "eps=-0.1"], ["eps"]),
        (["a3gt", "eps=nan"], ["eps"]),
        (["a3gt", "eps=.nan"], ["eps"]),
        (["a3gt", "robust.lr=-1"], ["lr"]),
        (["a3gt", "robust.lr=.nan"], ["lr"]),
        (["a3gt", "attack.steps=-5"], ["steps"]),
        (["a3gt", "attack.steps=.nan"], ["steps"]),
        (["a3gt", "gama=[1]"], ["gama", "did you mean gamma?"]),
        (["a3gt", "robust.momentun=1"], ["did you mean robust.momentum?"]),
        (["a3gtt"], ["unknown method 'a3gtt'", "did you mean 'a3gt'?"]),
        (["a3gt", "--data", "cifar-10"], ["did you mean 'cifar10'?"]),
        (["a3gt", "--model", "resnet18"], ["did you mean 'resnet-18'?"]),
        (["a3gt", "validation_attack=pdg-10"], ["unknown attack", "did you mean 'pgd'?"]),
        (["a3gt", "rouds=3", "eps=8", "model=resnet"], ["rounds", "8/255", "resnet-18"]),
        (["a3gt", "rounds"], ["expected key=value"]),
        (["nothing.yaml"], ["no recipe at nothing.yaml"]),
        (["a3gt", "batch_size=5000"], ["batch_size=5000 is more than"]),
        (["a3gt", "device=gpu"], ["device"]),
        (["a3gt", "device=cuda:99"], ["cuda"]),
        (["a3gt", "width=.inf"], ["width"]),
        (["a3gt", "start.rule=threshold", "start.threshold.clean=0.3"], ["threshold"]),
        (["a3gt", "validation_attack=mi-fgsm-3", "norm=l1", "rounds=1"], ["l1"]),
        (["a3gt", "--data", "nothing.npz"], ["nothing.npz"]),
    ],
)
def test_train_refuses_in_one_line_and_starts_nothing(command, tmp_path, words, texts):
    ended = command("train", *words, "--out", tmp_path / "run")
    assert ended.code == 2, ended.err
    assert ended.line.startswith("equipoise: ")
    assert [text for text in texts if text not in ended.line] == []
    assert ended.out == ""
    # What was started would be in the way of the corrected command.
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "texts"),
    [
        (["--eps", "8"], ["did you mean 8/255"]),
        (["--eps", "-1"], ["eps"]),
        (["--eps", ".nan"], ["eps"]),
        (["--eps", "nan"], ["--eps takes numbers"]),
        (["--eps", "a,b"], ["--eps takes numbers"]),
        (["--norm", "linff"], ["did you mean 'linf'?"]),
        (["--attacks", "pgd-20,fgms,pdg-3"], ["did you mean 'fgsm'?", "did you mean 'pgd'?"]),
        (["--attacks", "pgd-0"], ["steps"]),
        (["--attacks", "pgd-5(restrats=3)"], ["restrats"]),
        (["--attacks", "pgd-5(", "-n", "5"], ["pgd-5("]),
        (["--attacks", "fgsm,cw-inf-2", "--norm", "l2", "--eps", "0.5", "-n", "5"], ["linf"]),
        (["--precision", "float16"], ["precision"]),
        (["--weights", "best"], ["unknown weights 'best'", "last", "learner-clean", "gamma-0.4"]),
        (["--weights", "round-3"], ["unknown weights 'round-003'", "(known: "]),
        (["--weights", "gamma-2"], ["gamma-0.4", "got 'gamma-2'"]),
        (["--batch-size", "0"], ["batch_size"]),
        (["-n", "0"], ["1..500"]),
        (["-n", "9999"], ["1..500"]),
        (["--device", "cuda:99"], ["cuda"]),
    ],
)
def test_evaluate_refuses_in_one_line_and_records_nothing(command, copy, words, texts):
    ended = command("evaluate", copy, "--quiet", *words)
    assert ended.code == 2, ended.err
    assert ended.line.startswith("equipoise: ")
    assert [text for text in texts if text not in ended.line] == []
    assert not (copy / "records.jsonl").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["train"],
        ["train", "a3gt"],
        ["train", "--resume", "nothing"],
        ["train", "--resume", "."],
        ["train", "a3gt", "--resume", "x"],
        ["evaluate", "nothing"],
        ["report", "nothing"],
        ["list", "metods"],
        ["list", "methods", "a3g"],
        ["list", "attacks", "pgd"],
        ["data", "get", "minst"],
        ["data", "get", "digits", "--yes"],
    ],
)
def test_other_bad_input_is_a_line(command, words, tmp_path):
    ended = command(*words, cwd=tmp_path)
    assert ended.code == 2, ended.err
    assert ended.line.startswith("equipoise: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--resume", "RUN", "--seed", "0"],
        ["train", "RUN", "--seed", "0"],
        ["train", "", "--resume", "RUN"],
        ["train", "RUN", "--data", ""],
        ["evaluate", "RUN", "--weights", ""],
        ["evaluate", "RUN", "--eps", ""],
        ["evaluate", "RUN", "--norm", ""],
        ["evaluate", "RUN", "--model", ""],
        ["evaluate", "RUN", "--data", ""],
        ["evaluate", "RUN", "--normalise", ""],
        ["evaluate", "RUN", "--device", ""],
        ["evaluate", "RUN", "-n", "0"],
        ["evaluate", "RUN", "--passes", "0"],
        ["evaluate", "RUN", "--batch-size", "0"],
        ["verify", "RUN", "--again", "0"],
        ["front", "RUN", "--batchnorm", ""],
        ["front", "RUN", "--points", "0"],
        ["pick", "RUN", "--min-clean", ""],
        ["pick", "RUN", "--batchnorm", "", "--gamma", "0"],
        ["reproduce", "fig3", "--only", ""],
        ["reproduce", "fig3", "--workers", "0"],
        ["list", ""],
        ["data", "get", "mnist", "--yes", "--base", ""],
    ],
    ids=" ".join,
)
def test_zero_and_an_empty_value_count_as_given(command, trained, words, tmp_path):
    run = str(trained)
    ended = command(*(run if word == "RUN" else word for word in words), cwd=tmp_path)
    assert ended.code == 2, ended.err
    assert ended.line.startswith("equipoise: ")


@pytest.mark.parametrize(
    "words",
    [
        ["report", "RUN", "--out", "RUN/model.safetensors"],
        ["report", "RUN", "--out", "RUN/recipe.yaml"],
        ["scan", "RUN", "--json", "RUN/recipe.yaml"],
        ["evaluate", "RUN", "--json", "RUN/model.safetensors"],
    ],
    ids=" ".join,
)
def test_a_file_of_another_kind_is_not_replaced(command, trained, words):
    words = [word.replace("RUN", str(trained)) for word in words]
    before = Path(words[-1]).read_bytes()
    ended = command(*words)
    assert (ended.code, Path(words[-1]).read_bytes()) == (2, before)
    assert "is another kind of file" in ended.line


@pytest.mark.parametrize(
    "words",
    [["trian"], ["train", "--sed", "3"], ["train", "--seed", "x"], ["evaluate"], ["report"]],
)
def test_words_the_command_line_does_not_know(command, words):
    ended = command(*words)
    assert ended.code == 2
    assert ended.line.startswith("equipoise: ")
    assert "--help" in ended.line


def test_data_that_are_missing(command, tmp_path):
    home = {"HOME": str(tmp_path), "EQUIPOISE_DATA": ""}
    ended = command("train", "standard", "data=svhn", "--out", "run", cwd=tmp_path, env=home)
    assert ended.code == 2
    assert "svhn is not there" in ended.line
    assert "equipoise data get svhn --yes" in ended.line
    assert not (tmp_path / "run").exists()


def toy(path: Path, seed: int = 0, count: int = 150) -> Path:
    generator = np.random.default_rng(seed)
    y = np.arange(count) % 3
    x = generator.integers(0, 100, (count, 8, 8)) + 60 * y[:, None, None]
    np.savez(path, x=x.astype(np.uint8), y=y)
    return path


QUICK = ("width=0.25", "rounds=1", "batch_size=16", "validation_attack=pgd-1", "validation=20")


def test_a_truncated_npz_is_a_line(command, tmp_path):
    path = toy(tmp_path / "toy.npz")
    whole = path.read_bytes()
    for part in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:part])
        ended = command("train", "standard", *QUICK, "--data", path, "--out", tmp_path / "run")
        assert ended.code == 2, ended.err
        assert "toy.npz" in ended.line
    path.write_bytes(gzip.compress(whole))
    assert command("train", "standard", "--data", path, "--out", tmp_path / "run").code == 2
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_of_other_data_is_refused(command, tmp_path):
    path, out = toy(tmp_path / "toy.npz"), tmp_path / "run"
    ended = command("train", "standard", *QUICK, "--data", path, "--out", out)
    assert ended.code == 0, ended.err
    toy(path, seed=1)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    for words in (["train", "--resume", out], ["evaluate", out, "--attacks", "fgsm"]):
        ended = command(*words)
        assert ended.code == 2
        assert "checksums differ" in ended.err.splitlines()[-1]  # after how the file is read
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


@pytest.mark.slow
def test_a_folder_that_exists_is_refused(command, small, copy):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    ended = command("train", *small, "--out", copy)
    assert ended.code == 2
    assert "exists" in ended.line
    assert f"equipoise train --resume {copy}" in ended.line
    ended = command("train", *small, "rounds=9", "--out", copy)
    assert ended.code == 2
    assert "belongs to another recipe (rounds: 4 there, 9 here)" in ended.line
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_refused(command, small, tmp_path):
    (tmp_path / "file").write_text("mine")
    ended = command("train", *small, "--out", tmp_path / "file" / "run")
    assert ended.code == 2
    assert "cannot write to" in ended.line
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_that_are_damaged(command, copy):
    for name, words in (("model.safetensors", []), ("last.safetensors", ["--weights", "last"])):
        path = copy / name
        path.write_bytes(path.read_bytes()[:-100])
        ended = command("evaluate", copy, "--attacks", "fgsm", "--quiet", *words)
        assert ended.code == 2
        assert f"cannot read the weights in {path}" in ended.line


@pytest.mark.slow
def test_a_loss_that_explodes_is_a_line_with_exit_code_one(command, small, tmp_path):
    out = tmp_path / "run"
    ended = command("train", *small, "trunk.lr=1e20", "--quiet", "--out", out)
    assert ended.code == 1
    assert "not finite for the trunk learner in round 1 of 4" in ended.line
    assert "trunk.lr=" in ended.line


FULL = """
import pathlib
def full(self, *given, **how):
    raise OSError(28, "No space left on device")
pathlib.Path.write_text = full
"""


@pytest.mark.slow
def test_records_that_cannot_be_written_are_still_in_the_run(command, copy, tmp_path):
    words = ("--attacks", "fgsm", "-n", 20, "--quiet", "--json", tmp_path / "records.json")
    ended = command("evaluate", copy, *words, before=FULL)
    assert ended.code == 1
    assert "cannot write" in ended.line
    assert len((copy / "records.jsonl").read_text().splitlines()) == 3


# Killed, stopped and resumed

LONG = ("rounds=12", "limit=500", "attack.steps=3")


@pytest.fixture(scope="module")
def whole(command, small, tmp_path_factory):
    """Return a longer run that nobody disturbed, and how long it took."""
    out = tmp_path_factory.mktemp("whole") / "run"
    began = time.monotonic()
    ended = command("train", *small, *LONG, "--out", out)
    assert ended.code == 0, ended.err
    return out, time.monotonic() - began


@pytest.mark.slow
def test_killed_at_ten_random_moments_and_resumed(command, small, whole, tmp_path):
    reference, seconds = whole
    generator = random.Random(5)  # noqa: S311
    kills, runs, killed_in = 0, 0, set()
    while kills < 10:
        runs += 1
        out = tmp_path / f"run{runs}"
        ended = None
        while ended is None or ended.code:
            if (out / "recipe.yaml").exists():
                words = ["--resume", out]
            else:  # killed before there was a run to go on with
                shutil.rmtree(out, ignore_errors=True)
                words = [*small, *LONG, "--out", out]
            running = command.start("train", *words)
            if kills < 10:
                # After up to two more rounds, and some part of a round, a save or the start.
                running.reaches_rounds(generator.choice((0, 0, 1, 2)))
                time.sleep(generator.uniform(0, seconds / 8))
                running.signal(signal.SIGKILL)
            ended = running.wait()
            assert ended.code in (0, -signal.SIGKILL), ended.err
            assert "damaged" not in ended.err
            if ended.code:
                kills += 1
                log = out / "log.jsonl"
                killed_in.add(len(log.read_text().splitlines()) if log.exists() else -1)
        assert_same_run(out, reference)
    assert len(killed_in) > 2  # they were killed in different rounds


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_it_saves_and_says_how_to_go_on(
    command, small, whole, tmp_path, number
):
    reference, _ = whole
    out = tmp_path / "run"
    running = command.start("train", *small, *LONG, "--out", out)
    running.reaches("round   2/12")
    running.signal(number)
    ended = running.wait()
    assert ended.code == 1
    last = ended.err.strip().splitlines()[-1]
    name = signal.Signals(number).name  # which comes in a round, or while one is being saved
    assert re.match(rf"equipoise: {name}: stopped (in|after) round \d+ of 12[,;]", last), last
    assert last.endswith(f"continue with: equipoise train --resume {out}")
    assert 2 <= len(history(out)) < 12
    assert not (out / "summary.json").exists()
    evaluated = command("evaluate", out, "--attacks", "fgsm", "-n", 20, "--quiet")
    assert evaluated.code == 0
    assert "is not finished" in evaluated.line
    (out / "records.jsonl").unlink()
    ended = command("train", "--resume", out)
    assert ended.code == 0, ended.err
    assert "continuing after round" in ended.err
    assert_same_run(out, reference)


@pytest.mark.slow
def test_the_command_it_prints_works_as_it_is(command, small, whole, tmp_path):
    # Also with a space in the name: what is printed is meant to be copied.
    out = tmp_path / "my run"
    running = command.start("train", *small, *LONG, "--out", out)
    running.reaches("round   1/12")
    running.signal(signal.SIGTERM)
    line = running.wait().err.strip().splitlines()[-1]
    words = shlex.split(line.split("equipoise ")[-1])  # as a shell reads it
    ended = command(*words, "--quiet")
    assert ended.code == 0, ended.err
    assert_same_run(out, whole[0])


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(command, copy):
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    ended = command("train", "--resume", copy)
    assert ended.code == 0, ended.err
    assert "is finished: 4 of 4 rounds" in ended.line
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [("width: 0.25", "width: 0.5"), ("rounds: 4", "rounds: 6"), ("rounds: 4", "rounds: 2")],
)
def test_a_recipe_that_was_changed_does_not_go_on_in_silence(command, copy, old, new):
    # The state belongs to the recipe it was trained with.
    path = copy / "recipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    ended = command("train", "--resume", copy)
    assert ended.code == 2, ended.err
    assert "recipe" in ended.line


# Lists


def test_lists_name_everything(command):
    ended = command("list")
    assert ended.code == 0
    for names in (METHODS, ATTACKS, MODELS, DATASETS):
        assert [name for name in names if name not in ended.out] == []
    assert "ResNet-18" in command("list", "models").out
    assert "mi-fgsm" in command("list", "attacks").out
    ended = command("list", "methods", "generalist")
    for text in ("gamma: [1.0, 1.0, 1.0, 0.4]", "every: 5", "fraction: 0.625", "horizon: 2.5"):
        assert text in ended.out


def test_data_says_what_is_there_and_how_to_get_the_rest(command, tmp_path):
    home = {"HOME": str(tmp_path), "EQUIPOISE_DATA": ""}
    ended = command("data", cwd=tmp_path, env=home)
    assert ended.code == 0, ended.err
    assert "digits: found" in ended.out
    assert "svhn: not found" in ended.out
    assert "equipoise data get svhn --yes" in ended.out
    assert str(tmp_path / ".cache" / "equipoise" / "svhn") in ended.out


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_nothing_is_downloaded_without_yes(command, name, tmp_path):
    home = {"HOME": str(tmp_path), "EQUIPOISE_DATA": str(tmp_path / "data")}
    ended = command("data", "get", name, env=home, cwd=tmp_path)
    assert ended.code == 2
    assert "licence" in ended.line
    assert f"equipoise data get {name} --yes" in ended.line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_pipe_that_is_closed_is_no_traceback():
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(
        [sys.executable, "-m", "equipoise", "list", "models"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert "Traceback" not in found.stderr
