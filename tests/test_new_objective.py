"""A new objective is one new file and one line: in a copy of the package it works by its name."""

import difflib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import equipoise
from equipoise.jobs.train import train
from equipoise.settings.methods import METHODS, learners
from equipoise.settings.recipe import parse
from equipoise.training.method import Method

SRC = Path(equipoise.__file__).parent
NEW = '''"""The squared error of the answers to adversarial inputs."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from equipoise.draws import Draws
from equipoise.objectives.core import Batch
from equipoise.objectives.labels import Labels
from equipoise.objectives.robust import Robust


@dataclass(frozen=True, kw_only=True)
class NewOne(Robust):
    """Squared error on adversarial inputs.

    Arguments:
        scale: A factor on the loss.
    """

    objective: str = "newone"
    scale: float = 2.0

    def loss(
        self, model: nn.Module, batch: Batch, labels: Labels, draws: Draws
    ) -> Callable[[], Tensor]:
        """Search for adversarial inputs; return the squared error on them."""
        x_adv = self.search(model, batch, labels, draws)

        def loss() -> Tensor:
            p = model(x_adv).float().softmax(1)
            return self.scale * (p - labels.target(p.shape[1])).square().sum(1).mean()

        return loss

    def terms(self) -> list[str]:
        """Return the loss."""
        return [f"mean over the batch of {self.scale:g} |p(x') - e_y|^2"]
'''
TABLE = "METHODS: dict[str, MethodRow] = {\n"
LINE = '    "newone": one(objectives.newone.NewOne, "nobody, 2026", "robust.scale"),\n'
SMALL = (
    "rounds=2",
    "width=0.25",
    "limit=250",
    "validation=40",
    "batch_size=25",
    "validation_attack=pgd-2",
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a copy of the package that has the objective ``newone``."""
    copy = tmp_path_factory.mktemp("copy") / "equipoise"
    shutil.copytree(SRC, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "objectives" / "newone.py").write_text(NEW)
    methods = copy / "settings" / "methods.py"
    text = methods.read_text()
    assert text.count(TABLE) == 1
    methods.write_text(text.replace(TABLE, TABLE + LINE))
    return copy.parent


def changes(one: Path, other: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the files that are only in the other folder, and the changed lines of the rest."""

    def texts(folder: Path) -> dict[str, list[str]]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): path.read_bytes().decode("latin-1").splitlines()
            for path in files
            if "__pycache__" not in path.parts
        }

    before, after = texts(one), texts(other)
    assert before.keys() <= after.keys()
    different = {name: after[name] for name in before if before[name] != after[name]}
    return sorted(after.keys() - before.keys()), {
        name: [line for line in difflib.ndiff(before[name], lines) if line[0] in "+-"]
        for name, lines in different.items()
    }


COMMANDS = """
import json, sys
from equipoise.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["equipoise", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code
"""


def run(source: Path, *commands: tuple[str, ...]) -> str:
    """Run commands of a copy of the package in one process; return what they printed."""
    ended = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=source,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_it_is_one_new_file_and_one_line(copied):
    new, changed = changes(SRC, copied / "equipoise")
    assert new == ["objectives/newone.py"]
    assert list(changed) == ["settings/methods.py"]
    assert changed["settings/methods.py"] == [f"+ {LINE.rstrip()}"]


@pytest.mark.slow
def test_it_is_listed_explained_and_trained_by_its_name(copied):
    said = run(
        copied,
        ("list", "methods", "newone"),
        ("explain", "newone", "scale=3"),
        ("train", "newone", "--data", "digits", "--out", "new", "scale=3", *SMALL),
    )
    assert "robust.scale" in said.partition("3 |p(x') - e_y|^2")[0]
    assert "3 |p(x') - e_y|^2" in said
    recipe = yaml.safe_load((copied / "new" / "recipe.yaml").read_text())
    assert (recipe["robust"]["objective"], recipe["robust"]["scale"]) == ("newone", 3)
    assert (copied / "new" / "model.safetensors").is_file()


@pytest.mark.slow
def test_it_is_the_objective_of_any_robust_learner(copied):
    words = ("a3gt", "robust=newone", "robust.scale=3")
    training = ("train", *words, "--data", "digits", "--out", "a3gt", *SMALL)
    assert "3 |p(x') - e_y|^2" in run(copied, ("explain", *words), training)
    recipe = yaml.safe_load((copied / "a3gt" / "recipe.yaml").read_text())
    assert (recipe["robust"]["objective"], recipe["robust"]["scale"]) == ("newone", 3)


def test_a_method_of_one_objective_has_its_name():
    for name, row in METHODS.items():
        assert row.objective is None or row.objective.objective == name
    assert list(learners()) == [name for name, row in METHODS.items() if row.objective]


def test_a_training_builds_its_method_once(tmp_path, monkeypatch):
    built: list[Method] = []
    check = Method.__post_init__

    def counted(method: Method) -> None:
        built.append(method)
        check(method)

    monkeypatch.setattr(Method, "__post_init__", counted)
    small = dict(item.split("=") for item in SMALL)
    recipe = parse({"method": "generalist", "data": "digits", **small, "attack": {"steps": 1}})
    assert built == []
    train(recipe, tmp_path / "run")
    assert len(built) == 1
