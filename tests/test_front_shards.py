"""A front in shards: joined, it is the front of the same models on all images."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import equipoise as eq
from equipoise.errors import RunError, UserError
from equipoise.evaluation.stored import Store
from equipoise.execution import Execution
from equipoise.fronts.record import FrontRecord
from equipoise.fronts.survey import PARTS
from equipoise.jobs.front import measure_front
from equipoise.jobs.front_shards import join_front, spread
from equipoise.jobs.shards import Shard
from equipoise.store.runs import Run

FULL = Execution(precision="float32")
QUICK = {"attacks": "pgd-3", "points": 4, "execution": FULL}


def tensors(folder: Path, place: str) -> dict[str, torch.Tensor]:
    return Store(Run(folder), Path(place).stem, "front").read()[2]


def part(folder: Path, number: int, of: int, **changed) -> None:
    assert measure_front(folder, shard=Shard(number, of), **QUICK | changed) is None


@pytest.fixture(scope="module")
def three(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the three shards of a front, made in any order."""
    folder = tmp_path_factory.mktemp("three") / "run"
    shutil.copytree(trained, folder)
    shutil.rmtree(folder / "front", ignore_errors=True)
    (folder / "front.json").unlink(missing_ok=True)
    for number in (2, 3, 1):
        part(folder, number, 3)
    return folder


@pytest.fixture
def copy(three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "copy"))


def test_the_models_are_the_first_ones_and_the_middles_of_the_widest_gaps():
    ends = [(1.0,), (0.0,), (0.5,)]
    assert spread(ends, 3) == ends
    assert spread(ends, 5) == [*ends, (0.75,), (0.25,)]
    assert spread([*ends, (0.4,)], 6) == [*ends, (0.4,), (0.75,), (0.2,)]
    assert len(spread(ends, 1000)) == 65  # as fine as it goes
    three = [(1.0, 0.0), (0.0, 0.0), (0.0, 1.0)]
    assert spread(three, 5) == three
    with pytest.raises(UserError, match=r"at least 3, for gamma = 1, 0, 0.5"):
        spread(ends, 2)


def test_joined_it_is_the_front_of_the_same_models_on_all_images(copy, tmp_path, three):
    joined = join_front(copy)
    whole = Path(shutil.copytree(three, tmp_path / "whole"))
    shutil.rmtree(whole / PARTS)
    gammas = [place[0] for place in spread(eq.Front(whole).first(4, 0.0), 4)]
    fields = {key: value for key, value in QUICK.items() if key != "points"}
    eq.Front(whole).measure(gammas=gammas, **fields)
    one = FrontRecord.read(whole)
    assert one is not None
    counts = ("gamma", "clean", "robust", "transferred", "searched", "backwards", "file", "sha256")
    for here, there in zip(joined.points, one.points, strict=True):
        assert [getattr(here, key) for key in counts] == [getattr(there, key) for key in counts]
        a, b = tensors(copy, here.file), tensors(whole, there.file)
        assert a.keys() == b.keys()
        for name in a:
            exact = name.startswith(("verdict", "attacked")) or a[name].dtype in (
                torch.bool,
                torch.int64,
            )
            if exact and name != "adversarial_prediction":
                assert torch.equal(a[name], b[name]), name
    assert any(p.transferred for p in joined.points)
    assert (joined.clean_barrier, joined.robust_barrier) == (one.clean_barrier, one.robust_barrier)
    again = join_front(copy)
    assert again == joined
    more = measure_front(copy, **QUICK | {"points": 5})
    assert more is not None
    assert {p.gamma for p in joined.points} < {p.gamma for p in more.points}


def test_what_is_missing_is_named_and_alone_repeated(copy):
    files = sorted((copy / PARTS).glob("*-2-of-3.safetensors"))
    files[0].unlink()
    kept = {p: p.stat().st_mtime_ns for p in (copy / PARTS).iterdir()}
    with pytest.raises(RunError, match=r"of 3 shards there are 2; 2 \(not finished\): .*2/3"):
        join_front(copy)
    for path in files[1:]:
        path.unlink()
    with pytest.raises(RunError, match=r"2 \(missing\)"):
        join_front(copy)
    part(copy, 2, 3)
    join_front(copy)
    same = {p: t for p, t in kept.items() if "-2-of-3" not in p.name}
    assert {p: p.stat().st_mtime_ns for p in same} == same


def test_shards_of_other_fronts_renamed_or_damaged_ones_are_refused(copy):
    with pytest.raises(UserError, match=r"of another front .another attacks.: remove "):
        part(copy, 2, 3, attacks="fgsm")
    with pytest.raises(UserError, match=r"of another front .another points.: remove "):
        part(copy, 2, 3, points=5)
    path = sorted((copy / PARTS).glob("*-3-of-3.safetensors"))[0]
    content = path.read_bytes()
    other = path.with_name(path.name.replace("-3-of-3", "-2-of-3"))
    shutil.copy(path, other)
    with pytest.raises(UserError, match="holds shard 3 of 3: it was renamed"):
        join_front(copy)
    path.write_bytes(content[:-40])
    with pytest.raises(UserError, match=r"3-of-3.safetensors is damaged"):
        join_front(copy)
    path.unlink()
    part(copy, 1, 2, n=20)
    with pytest.raises(UserError, match=r"has shards of [23] and of [23]: remove"):
        join_front(copy)


@pytest.mark.long
def test_processes_of_torchrun_have_a_part_each_and_the_first_one_joins(copy):
    before = join_front(copy)
    shutil.rmtree(copy / "front")
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    words = ["-m", "equipoise", "front", str(copy), "--attacks", "pgd-3"]
    words += ["--points", "4", "--precision", "float32", "--quiet"]
    done = subprocess.run(
        [*start, "--standalone", *words],
        capture_output=True,
        text=True,
        timeout=250,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Front between") == 1
    after = FrontRecord.read(copy)
    assert after is not None
    assert [(p.clean, p.robust) for p in after.points] == [
        (p.clean, p.robust) for p in before.points
    ]


def test_a_folder_that_lacks_shards_is_told_how_to_make_them(trained):
    with pytest.raises(UserError, match=r"no shards in .*: equipoise front .* --shard 1/2"):
        join_front(trained)
