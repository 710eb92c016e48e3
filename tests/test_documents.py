"""What the documents say is true: recipes parse, README's commands and code run, doctests pass."""

import doctest
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
import torch
import typer

from equipoise import cli
from equipoise.jobs.train import train
from equipoise.settings import recipe

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    """Every `equipoise ...` line in a code block of the documents."""
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            for line in (line.strip() for line in lines):
                if line.startswith("equipoise "):
                    yield pytest.param(line, id=f"{document.name}: {line[:60]}")


@pytest.mark.parametrize("path", sorted(ROOT.glob("recipes/**/*.yaml")), ids=lambda p: p.stem)
def test_recipes_are_valid_and_only_change_what_differs(path):
    given = recipe.read(path)
    parsed = recipe.parse(given).to_dict()
    assert set(given) <= set(parsed)


@pytest.mark.parametrize("line", list(commands()))
def test_commands_in_documents_can_be_given(line):
    words = shlex.split(line.replace("$r", "x").replace("$", ""), comments=True)[1:]
    if words[0] == "--import":
        words = words[2:]
    group = typer.main.get_command(cli.app)
    context = click.Context(group)
    name, command, rest = group.resolve_command(context, words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        name, command, rest = command.resolve_command(context, rest)
    made = command.make_context(name, rest, parent=context)
    assert made.params is not None
    for word in words:
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file()


@pytest.mark.slow
def test_the_python_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    given = {
        "method": "a3gt",
        "data": "digits",
        "rounds": 2,
        "width": 0.25,
        "attack": {"steps": 1},
    }
    train(recipe.parse(given), tmp_path / "runs" / "a3gt")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(code.replace("28, 28", "8, 8"), {})  # noqa: S102 - it is our own README
    assert "tensor(" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name",
    [
        "attacks",
        "attacks.ensemble",
        "data.corruptions",
        "draws",
        "measures.paired",
        "measures.seeds",
        "measures.statistics",
        "threat",
        "objectives.core",
        "parsing",
        "losses",
    ],
)
def test_doctests(name):
    module = importlib.import_module(f"equipoise.{name}")
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.failed == 0
    assert results.attempted > 0 or name == "losses"


def anchors(path):
    """The anchors that GitHub and the site give to the headings of a document."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKED = [*ROOT.glob("*.md"), *(d for d in DOCUMENTS[1:] if d.name != "index.md")]
"""Without the first page of the site, which leads to pages that `make docs` makes, and checks."""


@pytest.mark.parametrize("path", LINKED, ids=lambda p: p.name)
def test_links_between_documents_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_files_that_the_architecture_names_are_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_/]+\.py)`", page)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "src" / "equipoise" / name).is_file()] == []


MAKE = shutil.which("make") or ""


@pytest.mark.skipif(not MAKE, reason="make is not installed")
def test_test_workers_have_one_thread_and_every_test_runs_in_ci():
    def lines(target):
        known = ("-o", ".venv/dev", "-o", ".venv/extras", "-o", "check")
        made = subprocess.run(
            (MAKE, "-n", *known, target), cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [line for line in made.stdout.replace("\\\n", " ").splitlines() if "pytest" in line]

    chosen = {"test": "not long and not extras and not cuda", "test-long": "long and not extras"}
    chosen |= {"test-extras": "extras", "quick": f"not slow and {chosen['test']}"}
    for target, marks in chosen.items():
        (line,) = lines(target)
        assert "OMP_NUM_THREADS=1 " in line
        assert shlex.split(line)[-2:] == ["-m", marks]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    tests = ["make test", "make test-long", "make test-extras"]
    assert ci[-5:] == [*tests, "make docs", "make wheel-test"]
