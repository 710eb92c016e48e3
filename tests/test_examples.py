"""The examples run, at a tiny scale, and their notebooks are those of the scripts."""

import ast
import json

import pytest

from website.notebooks import FOLDER, notebook, scripts

TINY = {
    "harden_photos": {"EPOCHS": 4, "ROUNDS": 2, "EACH": 40},
    "audit_a_model": {"EPOCHS": 4, "IMAGES": 60},
    "choose_a_tradeoff": {"ROUNDS": 3, "POINTS": 5},
    "own_loop": {"EPOCHS": 1},
    "new_threat": {"EPOCHS": 1, "IMAGES": 60},
}


def test_every_example_is_run_and_has_a_notebook():
    assert {path.stem for path in scripts()} == set(TINY)
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(TINY)


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_a_notebook_is_that_of_its_script(path):
    made = notebook(path.read_text())
    there = (FOLDER / f"{path.stem}.ipynb").read_text(encoding="utf-8")
    assert there == made, "python -m website.notebooks makes them again"
    code = ["".join(c["source"]) for c in json.loads(made)["cells"] if c["cell_type"] == "code"]
    compile("\n".join(code), path.stem, "exec")


@pytest.mark.slow
def test_a_loop_of_ones_own_runs(tmp_path, monkeypatch, capsys):
    run("own_loop", tmp_path, monkeypatch)
    assert capsys.readouterr().out.count("clean") == 4  # three models, one called clean


@pytest.mark.slow
def test_a_new_threat_is_trained_against(tmp_path, monkeypatch):
    robust = run("new_threat", tmp_path, monkeypatch)["robust"]
    assert robust["against stickers"] > robust["standard"]


@pytest.mark.long
def test_an_audit_finds_masked_gradients(tmp_path, monkeypatch, capsys):
    place = run("audit_a_model", tmp_path, monkeypatch)
    assert place["both"].robust_accuracy < place["gradient"].robust_accuracy
    assert "failed: gradients" in capsys.readouterr().out


@pytest.mark.long
def test_a_tradeoff_is_chosen(tmp_path, monkeypatch):
    place = run("choose_a_tradeoff", tmp_path, monkeypatch)
    assert 0 <= place["gamma"] <= 1
    assert len(place["front"].points) >= 5


@pytest.mark.long
def test_photos_are_hardened(tmp_path, monkeypatch):
    place = run("harden_photos", tmp_path, monkeypatch)
    assert (tmp_path / "runs" / "hard" / "report.html").is_file()
    assert 0 <= place["result"].robust_accuracy <= place["result"].clean_accuracy <= 1
    assert place["exported"]["changed"] == 0
    assert place["exported"]["about"]["inputs"]["orientation"] == "exif"


def run(name, folder, monkeypatch):
    """Run an example with tiny settings in a folder; return what it leaves."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("EQUIPOISE_CACHE", str(folder / "cache"))
    (path,) = (path for path in scripts() if path.stem == name)
    tree, left = ast.parse(path.read_text()), dict(TINY[name])
    for node in tree.body:
        if isinstance(node, ast.Assign):
            pair = isinstance(node.targets[0], ast.Tuple)
            names = node.targets[0].elts if pair else node.targets
            for place, target in enumerate(names):
                if (value := left.pop(getattr(target, "id", ""), None)) is None:
                    continue
                if pair:
                    node.value.elts[place] = ast.copy_location(ast.Constant(value), node.value)
                else:
                    node.value = ast.copy_location(ast.Constant(value), node.value)
    assert not left, "these constants are not in the script"
    place = {"__name__": "__main__"}
    exec(compile(tree, path, "exec"), place)  # noqa: S102 - it is our own example
    return place
