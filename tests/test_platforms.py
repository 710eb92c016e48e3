"""Systems without ``fcntl`` and ``resource``, like Windows, or with a CUDA that cannot start."""

import os
import subprocess
import sys

import pytest
import torch

from equipoise.errors import UserError
from equipoise.jobs.device import choose_device, cuda_devices
from forks import BLOCKED, FORKED

WITHOUT = """
import sys
sys.modules["fcntl"] = sys.modules["resource"] = None
"""

IN_PYTHON = """
import torch
import equipoise as eq
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
with torch.no_grad():
    y = net(x).argmax(1)
result = eq.evaluate(net, x, y, threat=eq.Linf(0.5), attacks=["pgd-5"])
assert len(result.robust) == 12
"""

PLAN = """
title: small
base: {data: digits, limit: 200, validation: 40, rounds: 1, width: 0.25, batch_size: 40}
entries: {standard: {}}
evaluate: {attacks: pgd-1, n: 20, individual: true}
"""


@pytest.fixture
def python(tmp_path):
    def run(*words, code=""):
        """Run Python with what Windows lacks out of reach, in its children as well."""
        (tmp_path / "site").mkdir(exist_ok=True)
        (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
        known = os.environ.get("PYTHONPATH")  # an empty entry would be the current folder
        path = os.pathsep.join([str(tmp_path / "site"), *([known] if known else [])])
        ended = subprocess.run(
            [sys.executable, *words] if words else [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended

    return run


@pytest.mark.slow
def test_import_and_evaluate(python):
    python(code=IN_PYTHON)


@pytest.mark.long
def test_compare(python, tmp_path):
    (tmp_path / "plan.yaml").write_text(PLAN)
    for name in ("yaml", "torch", "typer", "rich", "safetensors"):  # not taken from where one is
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported by chance')")
    python("-m", "equipoise", "compare", "plan.yaml", "--out", "out", "-q")
    assert (tmp_path / "out" / "table.csv").read_text().count("\n") == 2
    log = (tmp_path / "out" / "logs" / "standard-seed0.log").read_text()
    assert "Error" not in log
    assert not list((tmp_path / "out").rglob(".*.lock"))


@pytest.mark.slow
def test_reproduce(command, tmp_path):
    words = "reproduce fig3 --scale smoke --only trades --slice --out out -q"
    ended = command(*words.split(), cwd=tmp_path, before=FORKED + BLOCKED)
    assert ended.code == 0, ended.err
    assert (tmp_path / "out" / "smoke-slice" / "index.html").is_file()
    assert not list((tmp_path / "out").rglob(".*.lock"))


def test_a_cuda_device_that_cannot_start_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert len(cuda_devices()) == 0
    assert choose_device("auto").type == "cpu"
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match="0 CUDA devices"):
            choose_device(name)
