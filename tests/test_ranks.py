"""Trainings in several processes: equal to those in one, ended together, refused in one line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blobs import THREAT, small
from equipoise.draws import GeneratorDraws, PartDraws
from equipoise.errors import UserError
from equipoise.settings.methods import METHODS
from equipoise.settings.recipe import parse
from equipoise.training.batchnorm import Together
from equipoise.training.ranks import balanced, divided

PROGRAM = Path(__file__).parent / "ranked.py"
OURS = Path(__file__).parents[1] / "src"


def learners(method: str = "", **settings: Any) -> Any:
    if not method:
        return small(**settings).build(THREAT).learners
    return parse({"method": method, **settings}).settings.build(THREAT).learners


def torchrun(*words: object, n: int = 2, **settings: Any) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    paths = os.pathsep.join([str(OURS), str(PROGRAM.parent)])
    return subprocess.Popen(
        [*start, "--nproc-per-node", str(n), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        **settings,
    )


# Who trains what


def test_the_dearest_learners_are_given_first_to_the_process_with_the_least_to_do():
    costs = {"clean": 1, "robust": 11, "l2": 11, "weather": 2}
    assert balanced(costs, 2) == {"clean": [1], "robust": [0], "l2": [1], "weather": [0]}


def test_what_can_be_gained_is_said():
    division = divided(learners("generalist"), 2, "learners", 128, 1)
    assert "clean 1, robust 11; at most 1.09 times faster" in division.sentence
    assert division.crews == {"clean": [1], "robust": [0]}


@pytest.mark.parametrize(
    ("method", "settings", "why"),
    [
        ("iat", {}, "mixup mixes"),
        ("pgd-at", {"cutmix": 1.0}, "cutmix mixes"),
        ("pgd-at", {"awp": 0.01}, "awp perturbs"),
        ("sat", {}, "labels"),
        ("fat", {}, "omega draws"),
        ("yopo", {}, "passes that search"),
        ("corrupted", {}, "corruption"),
        ("pgd-at", {"attack": {"restarts": 2}}, "restarts"),
    ],
)
def test_what_mixes_the_images_of_a_batch_is_not_divided(method, settings, why):
    with pytest.raises(UserError, match=why):
        divided(learners(method, **settings), 2, "data", 128, 1)
    with pytest.raises(UserError, match=f"{why}.*2 processes cannot share it; train it in one"):
        divided(learners(method, **settings), 2, "auto", 128, 1)


def test_too_many_processes_are_refused():
    with pytest.raises(UserError, match="too few for 32 processes"):
        divided(learners(), 32, "data", 16, 1)
    with pytest.raises(UserError, match=r"16 images in 3 parts, too few for 6 processes"):
        divided(learners(), 6, "data", 16, 3)
    with pytest.raises(UserError, match=r"3 processes are more than the 2 learners"):
        divided(learners(), 3, "learners", 16, 1)
    assert divided(learners(), 2, "auto", 16, 1).parallel == "data"
    assert divided(learners(), 2, "auto", 1, 1).parallel == "learners"


# Parts of a batch


def test_a_part_of_a_batch_has_its_numbers_of_the_whole():
    x = torch.zeros(7, 2, 3)
    whole = GeneratorDraws(torch.Generator().manual_seed(3))
    draws = PartDraws(torch.Generator().manual_seed(3), 7, slice(2, 5))
    for _ in range(2):
        assert torch.equal(draws.uniform(x[2:5]), whole.uniform(x)[2:5])
    with pytest.raises(UserError, match="for some images of its batch"):
        draws.uniform(x)
    with pytest.raises(UserError, match="for some images of its batch"):
        draws.select(torch.tensor([0])).uniform(x[:1])


@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_of_one_part_is_that_of_torch(affine):
    torch.manual_seed(0)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    ours, theirs = (nn.BatchNorm2d(3, affine=affine, dtype=torch.float64) for _ in range(2))
    with Together(lambda tensor: tensor[None], lambda tensor: None):
        found = ours(x)
    wanted = theirs(x)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-12)
    assert torch.allclose(ours.running_var, theirs.running_var, rtol=0, atol=1e-12)
    torch.manual_seed(1)
    weights = torch.randn_like(x)
    grads = [
        torch.autograd.grad((y * weights).sum(), [x, *norm.parameters()])
        for y, norm in ((found, ours), (wanted, theirs))
    ]
    for mine, other in zip(*grads, strict=True):
        assert torch.allclose(mine, other, rtol=0, atol=1e-12)


# Two processes


def port() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return str(place.getsockname()[1])


def world_of(n: int) -> list[dict[str, str]]:
    """Return the variables that torchrun gives to its processes."""
    at = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port(), "WORLD_SIZE": str(n)}
    return [at | {"RANK": str(k), "LOCAL_RANK": str(k)} for k in range(n)]


def world(command: Any, *words: object, **settings: Any) -> list[Any]:
    """Start a command in two processes, as torchrun does."""
    return [command.start(*words, env=env, **settings) for env in world_of(2)]


def test_two_processes_that_share_the_learners_write_the_bits_of_one(command, small, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert command("train", *small, "--out", one, "-q").code == 0
    words = "train", *small, "--parallel", "learners", "--out", two
    first, second = (process.wait() for process in world(command, *words, cwd=tmp_path))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.err == ""
    assert "2 processes, each with its learners" in first.err
    for name in ("model", "last", "learner-clean", "learner-robust"):
        file = f"{name}.safetensors"
        assert (one / file).read_bytes() == (two / file).read_bytes()
    made = json.loads((two / "provenance.json").read_text())
    assert (made["processes"], made["parallel"]) == (2, "learners")


def test_an_error_of_all_processes_is_said_once_and_that_of_one_names_it(command, small, tmp_path):
    ended = [p.wait() for p in world(command, "train", "no-such-method", "--out", tmp_path / "x")]
    assert [each.code for each in ended] == [2, 2]
    assert sum("unknown method" in each.err for each in ended) == 1
    assert sum(len(each.err.splitlines()) for each in ended) == 1
    envs = world_of(2)
    words = "train", *small, "--out", tmp_path / "x", "--seed"
    first, second = (command.start(*words, k, env=env) for k, env in enumerate(envs))
    ended = [first.wait(), second.wait()]
    assert [each.code for each in ended] == [2, 2]
    assert ended[0].line == "equipoise: rank 1 has another seed than rank 0: 1, not 0"
    assert ended[1].err == ""
    assert not (tmp_path / "x").exists()


def test_what_cannot_be_shared_is_said_once(command):
    ended = [process.wait() for process in world(command, "harden", "model.pt")]
    assert [each.code for each in ended] == [2, 2]
    assert ended[0].line == (
        "equipoise: harden runs in one process: start it without torchrun, whose processes can "
        "share train, evaluate, front"
    )
    assert ended[1].err == ""


CASES: dict[str, dict[str, Any]] = {
    "own": {"method": "merged", "parallel": "learners"},
    "branched": {"method": "branched", "parallel": "learners"},
    "shared": {
        "method": "merged",
        "parallel": "learners",
        "settings": {"batches": "shared", "granularity": "step", "every": 1},
    },
    "a3gt": {"method": "a3gt", "parallel": "learners"},
    "a3gt-paper": {"method": "a3gt-paper", "parallel": "learners"},
    "generalist": {"method": "generalist", "parallel": "learners"},
    **{
        f"data {name}": {"method": name, "parallel": "data"}
        for name in ("merged", "a3gt", "generalist")
    },
    "data parts": {
        "method": "merged",
        "parallel": "data",
        "updates": {"accumulate": 3, "clip": 0.5, "balance": "loss"},
    },
    **{
        f"data {name}": {"method": name, "parallel": "data"}
        for name in METHODS
        if name not in ("a3gt", "generalist", "iat", "sat", "fat", "yopo", "corrupted")
    },
}


@pytest.mark.long
@pytest.mark.parametrize("n", [2, 4])
def test_several_processes_train_what_one_trains(tmp_path, n):
    cases = {name: case for name, case in CASES.items() if n == 2 or case["parallel"] == "data"}
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    ended = torchrun(PROGRAM, tmp_path / "cases.json", tmp_path / "found.json", n=n)
    said, _ = ended.communicate(timeout=900)
    assert ended.returncode == 0, said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found.keys() == cases.keys()
    for name, case in cases.items():
        exact = case["parallel"] == "learners"
        assert found[name]["apart"] <= (0 if exact else 1e-10), name
        assert found[name]["records"] or not exact, name


@pytest.mark.long
def test_a_killed_process_ends_all_and_torchrun_goes_on(command, small, tmp_path):
    words = [word for word in map(str, small) if not word.startswith("rounds=")] + ["rounds=12"]
    assert command("train", *words, "--out", tmp_path / "one", "-q").code == 0
    words = ["-m", "equipoise", "train", *words, "--parallel", "learners", "--out"]
    killed = torchrun("--max-restarts", 1, *words, tmp_path / "two")
    until = time.monotonic() + 200
    log = tmp_path / "two" / "log.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
    workers = [k for k in children if "equipoise" in Path(f"/proc/{k}/cmdline").read_text()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    said, _ = killed.communicate(timeout=300)
    assert killed.returncode == 0, said
    assert said.count("another process has ended") == 1
    assert "continuing after round" in said
    for name in ("model", "last"):
        file = f"{name}.safetensors"
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
