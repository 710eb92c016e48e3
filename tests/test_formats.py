"""docs/formats.md names every field of the files that a training and an evaluation write."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE))
NAMES_AS_KEYS = {"per_class", "learners", "measured", "parts", "described", "facts"}
NAMES_AS_KEYS |= {"attacks", "path", "cycles", "gamma", "weight_decay"}  # of a regime
"""Objects whose keys are names of classes, learners and the like, not fields."""

MODEL = "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"


def fields(content, parent=""):
    """The names of all fields of a JSON value."""
    if isinstance(content, list):
        return set().union(*(fields(item, parent) for item in content))
    if not isinstance(content, dict):
        return set()
    names = set() if parent in NAMES_AS_KEYS else set(content)
    if parent in ("weights", "sha256", "settings"):  # by learner, by file, by setting
        return set()
    return names.union(*(fields(value, key) for key, value in content.items()))


def described(*sections):
    shared = SECTIONS["Objects that stand in several files"]
    text = shared + "".join(SECTIONS[name] for name in sections)
    return set(re.findall(r"`([a-z_0-9]+)`", text))


@pytest.fixture(scope="module")
def folders(command, tmp_path_factory):
    base = tmp_path_factory.mktemp("formats")
    (base / "nets.py").write_text(MODEL)
    small = ("eps=0.1", "rounds=2", "width=0.25", "snapshots=1", "validation=60")
    all_kinds = "pgd-2,mi-fgsm-2,autoattack,audited"
    for words in (
        ("train", "a3gt", "--data", "digits", "--out", "run", *small),
        ("evaluate", "run", "--attacks", all_kinds, "--eps", "0.1", "-n", "30", "--cmmr"),
        ("front", "run", "--points", "6"),
        ("pick", "run", "--gamma", "0.5", "--out", "picked"),
        ("evaluate", "nets:net", "--data", "digits", "--attacks", "pgd-2", "--eps", "0.1"),
    ):
        out = ("--out", "own") if "nets:net" in words else ()
        ended = command(*words, *out, cwd=base)
        assert ended.code == 0, ended.err
    return base


FILES = {
    "run/provenance.json": ("provenance.json",),
    "run/log.jsonl": ("log.jsonl",),
    "run/config.json": ("config.json",),
    "run/summary.json": ("summary.json", "log.jsonl"),
    "run/evaluations/*.json": (
        "evaluations/NAME.safetensors",
        "evaluations/NAME.json",
        "records.jsonl",
    ),
    "run/records.jsonl": ("records.jsonl",),
    "run/front.json": ("front.json",),
    "picked/picked.json": ("picked.json", "front.json"),
    "own/own-model.json": ("own-model.json",),
}


@pytest.mark.slow
@pytest.mark.parametrize("pattern", FILES)
def test_every_field_of_a_file_is_described(folders, pattern):
    (path,) = folders.glob(pattern)
    lines = path.read_text(encoding="utf-8")
    objects = [json.loads(line) for line in lines.splitlines()] if path.suffix == ".jsonl" else []
    found = fields(objects or json.loads(lines))
    assert found
    assert sorted(found - described(*FILES[pattern])) == []


@pytest.mark.slow
def test_every_tensor_and_entry_of_an_evaluation_is_described(folders):
    (path,) = folders.glob("run/evaluations/*.safetensors")
    with safe_open(path, "np") as file:
        metadata = file.metadata()
        tensors = {name for name in file.keys() if "." not in name}  # noqa: SIM118
        dotted = {name.partition(".")[0] for name in file.keys() if "." in name}  # noqa: SIM118
    known = described("evaluations/NAME.safetensors")
    assert dotted == {"verdict", "attacked", "distortion", "own_distortion"}
    outcomes = [*json.loads(metadata["outcomes"]).values()]
    said = [json.loads(metadata["about"]), outcomes]
    assert sorted((tensors | set(metadata) | fields(said)) - known) == []


@pytest.mark.slow
def test_every_file_of_the_folders_is_named(folders):
    names = {
        re.sub(r"^(evaluations/).*(\..+)$", r"\1NAME\2", re.sub(r"round-\d+", "round-005", name))
        for folder in ("run", "picked", "own")
        for path in (folders / folder).rglob("*")
        if path.is_file() and not path.name.startswith(".")
        for name in [path.relative_to(folders / folder).as_posix()]
    }
    there = SECTIONS["The run folder"].split()
    assert sorted(n for n in names if n not in there and not n.startswith("front/")) == []


@pytest.mark.slow
def test_the_recorded_commit_is_that_of_the_checkout(folders):
    commit = None
    if (ROOT / ".git").exists():
        words = ("git", "-C", ROOT, "rev-parse", "HEAD")
        commit = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    provenance = json.loads((folders / "run" / "provenance.json").read_text(encoding="utf-8"))
    assert provenance["git_commit"] == commit


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/results/*/results.json")), ids=str)
def test_every_field_of_kept_results_is_described(path):
    found = fields(json.loads(path.read_text(encoding="utf-8")))
    assert sorted(found - described("results.json")) == []
