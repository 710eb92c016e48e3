"""The script for a machine with a GPU, tried here on the CPU at the smallest sizes."""

import json
import os
import subprocess
import sys

import pytest

from benchmarks import gpu, gpu_parts
from house import SRC

JUDGED = {"ours-audited-2", "ours", "pyautoattack"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SRC.parent.parent / "benchmarks" / "gpu.sh"), *words],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_every_part_runs_and_one_file_holds_all_that_was_found(tmp_path):
    out = tmp_path / "gpu.json"
    ended = run(str(out), "--device", "cpu", "--tiny", "--minutes", "40")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    content = json.loads(out.read_text(encoding="utf-8"))
    found = {name: part["found"] for name, part in content["parts"].items()}
    assert list(found) == list(gpu_parts.PARTS)
    assert min(found["peak"]["flops_per_second"].values()) > 1e6
    assert found["tests"]["tests"] >= 12
    assert found["tests"]["failed"] == []
    assert [len(m["seconds_a_round"]) for m in found["training"]["methods"].values()] == [2, 2]
    for sides in found["steps"]["cases"].values():
        assert {"ours", "ours-float32", "plain loop", "plain loop bfloat16"} == set(sides)
    judged = found["judging"]
    assert set(judged["sides"]) | set(judged["absent"]) == {
        "ours-audited-2",
        "ours",
        "pyautoattack",
    }
    said = " ".join(content["summary"])
    for words in ("train pgd-at", "a step of pgd-at, plain loop", "the best bfloat16 product"):
        assert words in said


@pytest.mark.slow
def test_a_part_that_ends_too_late_or_fails_leaves_what_the_others_found(tmp_path):
    late = gpu._part("steps", tmp_path, "cpu", True, 0.5)
    assert late["status"].startswith("out of time")
    assert late["found"] is None
    failed = gpu._part("judging", tmp_path, "cpu", True, 60)
    assert failed["status"] == "failed with exit code 1"
    assert "there is no trained model" in failed["log"][-1]
    assert gpu._part("peak", tmp_path, "cpu", True, 0)["status"].startswith("not begun")
    parts = dict.fromkeys(gpu_parts.PARTS, failed)
    assert gpu.summary(parts) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "tpu"], "device must be auto"),
        (["--minutes", "0"], "--minutes must be"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, words, said):
    ended = run(str(tmp_path / "gpu.json"), *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
