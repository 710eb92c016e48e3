"""A stranger's folder runs none of its code: it is named, and run only where the user says so."""

import hashlib
import importlib.util
import json
import marshal
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from forks import FORKED

MODEL = """
from pathlib import Path
Path({mark!r}).touch()
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""

OWN = """
from pathlib import Path
Path({mark!r}).touch()
from equipoise import attacks, models
from equipoise.attacks import PGD
from equipoise.models.small_cnn import SmallCNN

models.MODELS["own-cnn"] = (SmallCNN, "small-cnn by another name")
attacks.ATTACKS["own-pgd"] = (PGD, "PGD by another name")
"""

NAMES = ("mymodel", "own", "evil", "torchvision")


@pytest.fixture
def mark(tmp_path):
    """Return the file that appears when code of the stranger's is run."""
    return tmp_path / "mark"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=np.arange(60) % 3)
    return tmp_path / "images.npz"


@pytest.fixture
def owned(command, tmp_path, mark, images):
    """Return the folder of an evaluation of a stranger's own model."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "mymodel.py").write_text(MODEL.format(mark=str(mark)))
    ended = command(
        *("evaluate", "mymodel:net", "--data", images, "--attacks", "pgd-2", "--out", "run"),
        *("--no-checks", "-q"),
        cwd=home,
    )
    assert ended.code == 0, ended.err
    assert mark.exists()
    mark.unlink()
    return home / "run"


def traps(folder, mark):
    """Lay modules into a folder that leave a mark when they are imported."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        code = MODEL if name == "mymodel" else OWN
        (folder / f"{name}.py").write_text(code.format(mark=str(mark)))
    return folder


def reading(run, tmp_path):
    """Return every command that reads a folder."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN)
    return [
        ("verify", run),
        ("evaluate", run, "--attacks", "pgd-1", "-n", 10),
        ("evaluate", run, "--resume"),
        ("report", run, "--out", tmp_path / "page.html"),
        ("train", "--resume", run),
        ("train", "standard", "--out", run),
        ("front", run, "--points", 4, "-n", 10, "--attacks", "pgd-1"),
        ("front", run, "--ends", "last", run, "-n", 10, "--attacks", "pgd-1"),
        ("pick", run, "--gamma", 0.5, "--out", tmp_path / "picked"),
        ("bench", run, "--what", "evaluate", "--images", 5, "-n", 1, "--no-memory"),
        ("compare", plan, "--out", run.parent, "-q"),
    ]


PLAN = """
title: small
base: {data: digits, limit: 200, validation: 40, rounds: 1, width: 0.25, batch_size: 40}
entries: {standard: {}}
evaluate: {attacks: pgd-1, n: 20, individual: true}
"""


def refuse_to_run(command, run, mark, tmp_path, cwd):
    """Try every command; return what they said."""
    said = {}
    for words in reading(run, tmp_path):
        copy = tmp_path / "copies" / str(len(said)) / "standard-seed0"
        shutil.copytree(run, copy)
        words = [copy.parent if w == run.parent else copy if w == run else w for w in words]
        ended = command(*words, cwd=cwd or copy, before=FORKED)
        assert not mark.exists(), words
        assert ended.code in (0, 1, 2), ended.err
        assert "Traceback" not in ended.err
        said[len(said)] = ended.err
    return said


@pytest.mark.slow
@pytest.mark.parametrize("inside", [True, False], ids=["in-the-run-folder", "beside-it"])
def test_no_command_runs_the_model_that_a_folder_names(command, owned, mark, tmp_path, inside):
    cwd = None if inside else traps(tmp_path / "here", mark)
    traps(owned, mark)
    said = refuse_to_run(command, owned, mark, tmp_path, cwd)
    digest = json.loads((owned / "own-model.json").read_text())["source"]["sha256"]
    for line in (said[0], said[1], said[2]):  # verify, evaluate
        assert "--model mymodel:net" in line
        assert "--trust" in line
        assert str(owned.parent / "mymodel.py") in line
        assert digest in line


HOSTILE = {
    "recipe.yaml": {"model": "mymodel:net", "data": "evil", "validation_attack": "evil:attack"},
    "config.json": {"model": "mymodel:net", "method": "evil"},
    "picked.json": {"from": "evil", "model": "mymodel:net", "import": "own.py"},
    "front.json": {"ends": ["mymodel:net", "evil"], "import": {"file": "own.py"}},
    "provenance.json": {"import": {"file": "own.py", "sha256": "0" * 64}},
    "own-model.json": {"model": "mymodel:net", "weights": None, "data": "digits",
                       "data_dir": None, "import": {"file": "own.py", "sha256": "0" * 64}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_no_file_of_a_folder_runs_code_by_a_name(command, trained, mark, tmp_path, name):
    run = Path(shutil.copytree(trained, tmp_path / "stranger" / "standard-seed0"))
    path, changed = run / name, HOSTILE[name]
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changed))
    else:
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(known | changed))
    if name == "own-model.json":
        (run / "recipe.yaml").unlink()
    refuse_to_run(command, traps(run, mark), mark, tmp_path, None)


def test_examples_of_a_strangers_evaluation_are_tried_without_its_model(
    command, owned, mark, tmp_path, images
):
    traps(owned, mark)
    (tmp_path / "user.py").write_text(MODEL.format(mark=str(tmp_path / "users")))
    ended = command(
        *("evaluate", "user:net", "--data", images, "--attacks", "pgd-2", "--no-checks"),
        *("--transfer", owned, "-q"),
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert not mark.exists()


def test_trust_and_a_named_model_run_it(command, owned, mark, tmp_path):
    for words in (["--trust"], ["--model", "mymodel:net"]):
        ended = command("verify", owned, *words, cwd=owned.parent)
        assert ended.code == 0, ended.err
        assert "the code has changed" not in ended.err
        mark.unlink()
    ended = command("evaluate", owned, "--trust", "--attacks", "fgsm", "--no-checks", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert mark.exists()


def test_what_is_trusted_is_the_text_that_one_can_look_at(command, owned, mark, tmp_path):
    # Python would take this compiled file in the place of the text beside it.
    source, hidden = owned.parent / "mymodel.py", tmp_path / "hidden"
    cache = Path(importlib.util.cache_from_source(str(source)))
    cache.parent.mkdir(exist_ok=True)
    code = compile(MODEL.format(mark=str(hidden)), str(source), "exec")
    unchecked = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
    cache.write_bytes(unchecked + marshal.dumps(code))
    assert command("verify", owned, "--trust").code == 0
    assert mark.exists()
    assert not hidden.exists()


def test_other_code_than_was_recorded_is_a_warning(command, owned):
    source = owned.parent / "mymodel.py"
    source.write_text(source.read_text() + "# later\n")
    said = command("verify", owned).line
    assert said.count("SHA-256") == 1
    assert ", now " in said
    for words in (["--trust"], ["--model", "mymodel:net"]):
        ended = command("verify", owned, *words, cwd=owned.parent)
        assert ended.code == 0, ended.err
        assert "the code has changed" in ended.err


def test_a_file_that_is_gone_or_elsewhere_is_one_line(command, owned, mark):
    (owned.parent / "mymodel.py").rename(owned.parent / "other.py")
    ended = command("verify", owned, "--trust")
    assert ended.code == 2
    assert "there is no module mymodel at" in ended.line
    about = json.loads((owned / "own-model.json").read_text())
    for changed in (
        {"source": None},
        {"source": {"file": str(owned.parent / "other.py"), "sha256": "x"}},
        {"model": "other:net\nrm -r", "source": {"file": "x", "sha256": "x"}},
        {"model": ["other:net"]},
        {"model": "os:abort", "source": {"file": "/os.py", "sha256": "x"}},
    ):
        (owned / "own-model.json").write_text(json.dumps(about | changed))
        ended = command("verify", owned, "--trust")
        assert ended.code == 2
        assert ended.line
    assert not mark.exists()


# --- files of --import ---


@pytest.fixture
def imported(command, small, tmp_path, mark):
    """Return an interrupted training whose model stands in a file of its owner's."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    (home / "own.py").write_text(OWN.format(mark=str(mark)))
    settings = [word for word in small if not word.startswith("rounds=")]
    words = ("train", *settings, "model=own-cnn", "rounds=2", "--out", home / "trained")
    ended = command("--import", home / "own.py", *words)
    assert ended.code == 0, ended.err
    mark.unlink()
    return home / "trained"


@pytest.mark.slow
def test_no_command_runs_the_file_that_a_run_was_made_with(command, imported, mark, tmp_path):
    made = json.loads((imported / "provenance.json").read_text())["import"]
    assert made["file"] == str(imported.parent / "own.py")
    said = refuse_to_run(command, traps(imported, mark), mark, tmp_path, None)
    needed = (0, 1, 2, 4, 6, 7, 8, 9)
    for index in needed:
        assert "unknown model 'own-cnn'" in said[index]
        assert f"--import ({made['file']}, SHA-256 {made['sha256']})" in said[index]
        assert "--trust" in said[index]


@pytest.mark.slow
def test_trust_runs_it_for_every_command(command, imported, tmp_path):
    small = ("--attacks", "own-pgd-1", "-n", 10)
    for words in (
        ("evaluate", imported, *small),
        ("verify", imported),
        ("evaluate", imported, "--resume"),
        ("front", imported, "--points", 4, *small),
        ("pick", imported, "--gamma", 0.5, "--out", tmp_path / "picked"),
        ("train", "--resume", imported),
        ("verify", imported),
    ):
        ended = command(*words, "--trust")
        assert ended.code == 0, ended.err
    picked = json.loads((tmp_path / "picked" / "provenance.json").read_text())
    assert picked["import"]["file"].endswith("own.py")
    found = json.loads(next((imported / "evaluations").glob("*.json")).read_text())
    assert found["origin"]["versions"]["import"] == picked["import"]


@pytest.mark.slow
def test_another_file_than_was_recorded_is_a_warning_and_is_recorded(command, imported):
    source = imported.parent / "own.py"
    before = json.loads((imported / "provenance.json").read_text())["import"]
    source.write_text(source.read_text() + "# later\n")
    for words in (("train", "--resume", imported), ("evaluate", imported, "-n", 10)):
        ended = command("--import", source, *words)
        assert ended.code == 0, ended.err
        assert "the code has changed" in ended.err
    after = json.loads((imported / "provenance.json").read_text())
    assert after["import"] == before
    assert after["resumed_with"]["sha256"] != before["sha256"]


@pytest.mark.slow
def test_the_processes_of_a_comparison_have_the_import_of_the_user(command, tmp_path, mark):
    (tmp_path / "own.py").write_text(OWN.format(mark=str(mark)))
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    text = PLAN.replace("entries: {standard: {}}", "entries: {standard: {model: own-cnn}}")
    plan.write_text(text.replace("pgd-1", "own-pgd-1"))
    words = ("compare", plan, "--out", out, "-q")
    ended = command("--import", tmp_path / "own.py", *words, before=FORKED)
    assert ended.code == 0, ended.err
    run = out / "standard-seed0"
    assert json.loads((run / "provenance.json").read_text())["import"]["file"].endswith("own.py")
    assert command(*words, before=FORKED).code == 2  # it is not taken from the folder


@pytest.mark.slow
def test_the_report_shows_the_code_and_that_it_was_another(command, owned, imported, tmp_path):
    page, other = tmp_path / "report.md", tmp_path / "report.html"
    made = json.loads((owned / "own-model.json").read_text())["source"]
    assert command("report", owned, "--out", page).code == 0
    assert made["sha256"] in page.read_text()
    assert "the code has changed" not in page.read_text()
    for folder, words in ((owned, ()), (imported, ("--no-checks",))):
        source = folder.parent / ("mymodel.py" if folder is owned else "own.py")
        source.write_text(source.read_text() + "# later\n")
        words = ("evaluate", folder, "--trust", "--attacks", "pgd-1", *words)
        assert command(*words).code == 0
        assert command("report", folder, "--out", page).code == 0
        assert command("report", folder, "--out", other).code == 0
        assert "Other code" in other.read_text()
        for text in (page.read_text(), other.read_text()):
            assert "he code has changed" in text
            assert hashlib.sha256(source.read_bytes()).hexdigest() in text
