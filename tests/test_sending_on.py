"""Names of elsewhere, positions, and messages whose commands work as they stand."""

import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from equipoise.cli.listing import settings_groups
from equipoise.errors import UserError
from equipoise.plugins import VARIABLE
from equipoise.plugins import command as words_of
from equipoise.settings.methods import METHODS
from equipoise.settings.recipe import defaults, parse

# --- names of elsewhere ---


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"method": "a3gt", "epochs": 3}, "did you mean rounds?"),
        ({"method": "a3gt", "num_epochs": 3}, "did you mean rounds?"),
        ({"method": "a3gt", "learning_rate": 0.1}, "did you mean lr?"),
        ({"method": "pgd-at", "learning_rate": 0.1}, "did you mean lr?"),
        ({"method": "a3gt", "epsilon": 0.1}, "did you mean eps?"),
        ({"method": "a3gt", "batch": 3}, "did you mean batch_size?"),
        ({"method": "a3gt", "dataset": "digits"}, "did you mean data?"),
        ({"method": "a3gt", "arch": "small-cnn"}, "did you mean model?"),
        ({"method": "trades", "iters": 3}, "did you mean attack.steps?"),
        ({"method": "trades", "lambda": 6, "lam": 6}, "'lam'; did you mean beta?"),
        ({"method": "a3gt", "robust": {"attack": {"eps_iter": 0.1}}}, "robust.attack.step_size?"),
        ({"method": "a3gt", "robust": {"wd": 0.1}}, "did you mean robust.weight_decay?"),
        ({"method": "a3gt", "out": "runs/x"}, "it is an option, --out"),
    ],
)
def test_what_settings_are_called_elsewhere_is_understood(given, meant):
    with pytest.raises(UserError) as refused:
        parse(given)
    assert meant in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "a3gt", "--epochs", 3), "rounds=VALUE"),
        (("train", "a3gt", "--eps", 3), "eps=VALUE"),
        (("evaluate", "x", "--epsilon", 3), "did you mean --eps?"),
        (("evaluate", "x", "--attacks", "pgd(iters=3)"), "did you mean 'steps'?"),
        (("train", "a3gt", "--model", "mine", "--out", "x"), "--import FILE.py"),
        (("train", "a3gt", "--model", "mine", "--out", "x"), "package.module:function"),
        (("bench", "--model", "mine"), "--import FILE.py"),
        (("train", "mine", "--out", "x"), "--import FILE.py"),
        (("evaluate", "x", "--attacks", "mine"), "--import FILE.py"),
        (("train", "a3gt", "--data", "mine", "--out", "x"), "--import FILE.py"),
        (
            ("train", "a3gt", "--device", "cpu", "device=cpu", "--out", "x"),
            "device is given twice",
        ),
        (("train", "a3gt", "--data", "a", "data=b", "--out", "x"), "data is given twice"),
        (("train", "a3gt", "--model", "a", "model=b", "--out", "x"), "model is given twice"),
        (("train", "a3gt", "--seed", 1, "seed=1", "--out", "x"), "seed is given twice"),
        (("train", "a3gt", "--data-dir", "a", "data_dir=b", "--out", "x"), "as --data-dir"),
        (("explain", "a3gt", "--data", "digits", "data=digits"), "data is given twice"),
        (("train", "a3gt", "--device", "gpu", "--out", "x"), "device must be auto, cpu or cuda"),
        (("bench", "small-cnn", "--model", "small-cnn"), "given twice"),
    ],
)
def test_what_will_not_do_is_one_line_with_the_remedy(command, tmp_path, words, said):
    ended = command(*words, cwd=tmp_path)
    assert ended.code == 2
    assert said in ended.line
    assert not (tmp_path / "x").exists()


# --- by position ---


@pytest.mark.slow
def test_a_run_by_position_is_gone_on_with(command, trained, tmp_path, small):
    ended = command("train", trained)
    assert ended.code == 0, ended.err
    assert "is finished" in ended.err
    assert command("train", trained, "rounds=3").code == 2
    (tmp_path / "a3gt").mkdir()  # a folder with the name of a method is not meant
    (tmp_path / "a3gt" / "recipe.yaml").write_text("method: a3gt\n")
    ended = command("train", "a3gt", cwd=tmp_path)
    assert ended.code == 2
    assert "--out" in ended.line


@pytest.mark.slow
def test_a_device_may_be_given_to_a_training(command, tmp_path):
    given = ("train", "standard", "rounds=1", "limit=60", "validation=20", "batch_size=20")
    ended = command(*given, "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["device"] == "cpu"


@pytest.mark.slow
def test_a_network_by_position_is_benched(command, tmp_path):
    words = ("--what", "attack", "--width", 0.125, "--batch-size", 2, "--steps", 1, "-n", 1)
    rest = ("--sides", "ours", "--no-memory", "--out", tmp_path / "b.json", "--size", 8)
    ended = command("bench", "resnet-18", *words, *rest)
    assert ended.code == 0, ended.err
    assert "resnet-18" in (tmp_path / "b.json").read_text()


# --- commands in messages ---

OWN = """
from beside import WIDTH
from equipoise import models
from equipoise.models.small_cnn import SmallCNN

class Mine(SmallCNN):
    def __init__(self, **settings):
        super().__init__(**settings | {"width": WIDTH})

models.MODELS["mine-net"] = (Mine, "a net of one's own")
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    folder = tmp_path / "my code"
    folder.mkdir()
    (folder / "beside.py").write_text("WIDTH = 0.25\n")
    (folder / "own.py").write_text(OWN)
    return folder / "own.py"


@pytest.mark.slow
def test_an_imported_file_finds_modules_beside_it_and_messages_name_it(command, own, tmp_path):
    given = ("train", "standard", "rounds=1", "limit=60", "validation=20", "batch_size=20")
    ended = command("--import", own, *given, "--model", "mine-net", "--out", "run", cwd=tmp_path)
    assert ended.code == 0, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("next: ")]
    program, *words = shlex.split(line.removeprefix("next: "))
    assert program == "equipoise"
    assert words[:2] == ["--import", str(own)]
    again = command(*words, "-n", 20, "--attacks", "fgsm", "--no-checks", cwd=tmp_path)
    assert again.code == 0, again.err
    without = command("evaluate", "run", cwd=tmp_path)
    assert without.code == 2
    assert "--import" in without.line


def test_commands_are_quoted_and_name_the_import(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert (
        words_of("evaluate", Path("my run"), "--resume") == "equipoise evaluate 'my run' --resume"
    )
    monkeypatch.setenv(VARIABLE, "/a b/own.py")
    assert words_of("verify", "x") == "equipoise --import '/a b/own.py' verify x"


STOP = """
from equipoise.terminal.progress import Console
seen = []
attack = Console.attack

def stop(self, progress):
    attack(self, progress)
    seen.append(progress)
    if len(seen) == 2:
        raise KeyboardInterrupt

Console.attack = stop
"""


def interrupted(command, *words: object, cwd: Path) -> list[str]:
    """Return the words of the command that goes on with an evaluation that was interrupted."""
    rest = ("--attacks", "pgd-10", "--no-checks", "--batch-size", 2, "-n", 50)
    ended = command("evaluate", *words, *rest, cwd=cwd, before=STOP)
    assert ended.code == 130, ended.err
    (line,) = [line for line in ended.err.splitlines() if "continue with: " in line]
    program, *again = shlex.split(line.partition("continue with: ")[2])
    assert program == "equipoise"
    return again


@pytest.mark.slow
def test_other_weights_are_named_where_an_evaluation_goes_on(command, trained, tmp_path):
    copy = shutil.copytree(trained, tmp_path / "a run")
    again = interrupted(command, copy, "--weights", "last", cwd=tmp_path)
    assert again[-3:] == ["--weights", "last", "--resume"]
    ended = command(*again, cwd=tmp_path)
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_a_model_of_ones_own_is_named_where_its_evaluation_goes_on(command, tmp_path):
    net = "nn.Sequential(nn.Flatten(), nn.Linear(64, 10))"
    (tmp_path / "mine.py").write_text(
        f"import torch\nfrom torch import nn\ntorch.manual_seed(0)\nnet = {net}\n"
    )
    again = interrupted(command, "mine:net", "--data", "digits", cwd=tmp_path)
    assert again[2:4] == ["--model", "mine:net"]
    assert command(*again, cwd=tmp_path).code == 0
    again = interrupted(command, "runs/mine.net", "--trust", "--eps", 0.1, cwd=tmp_path)
    assert again[2:] == ["--trust", "--resume"]
    ended = command(*again, cwd=tmp_path)
    assert ended.code == 0, ended.err


@pytest.mark.slow
def test_a_trusted_file_finds_modules_beside_it(command, own, tmp_path):
    given = ("train", "standard", "rounds=1", "limit=60", "validation=20", "batch_size=20")
    command("--import", own, *given, "--model", "mine-net", "--out", "run", cwd=tmp_path)
    words = ("evaluate", "run", "-n", 20, "--attacks", "fgsm", "--no-checks")
    assert command(*words, cwd=tmp_path).code == 2
    ended = command(*words, "--trust", cwd=tmp_path)
    assert ended.code == 0, ended.err


# --- what settings mean ---


def leaves(values: dict[str, object], path: str = "") -> list[str]:
    found = []
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found += leaves(value, f"{path}{name}.")
        else:
            found.append(f"{path}{name}")
    return found


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_a_method_is_explained(method):
    rows = {
        f"{path}.{name}".lstrip("."): text
        for path, _, settings in settings_groups(method)
        for name, _, text in settings
    }
    assert [leaf for leaf in leaves(defaults(method)) if not rows.get(leaf)] == []
    assert all(text for text in rows.values())
    assert not any("``" in text or ":math:" in text for text in rows.values())


def test_other_rules_are_explained_with_their_settings(command):
    out = command("list", "methods", "generalist").out
    for text in ("rounds ", "start.threshold", "start.fraction", "robust.attack.steps"):
        assert text in out
