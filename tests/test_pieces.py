"""Evaluations of images that do not fit into memory: the same bits, in pieces until the end."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from equipoise.data import rows
from equipoise.errors import RunError, UserError
from equipoise.evaluation import pieces
from equipoise.evaluation.stored import Store
from equipoise.execution import Execution
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.store import files
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console

WORDS = {
    "attacks": "pgd-2,square-5",
    "eps": [0.1],
    "n": 60,
    "execution": Execution(precision="float32"),
    "batch_size": 16,
    "strongest": True,
    "checks": False,
}


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Every evaluation counts as large, with four pieces of 16 images."""
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rows, "LARGE", 1000)
    monkeypatch.setattr(pieces, "BYTES", 16 * 64 * 4)
    monkeypatch.setattr("equipoise.evaluation.saving.SAVE_SECONDS", 0.0)
    monkeypatch.setattr("equipoise.evaluation.saving.SAVE_SHARE", 0)


def file_of(folder: Path) -> Path:
    (path,) = (folder / "evaluations").glob("*.safetensors")
    return path


def store_of(folder: Path) -> Store:
    return Store(Run(folder), file_of(folder).stem)


def stopped(folder: Path, monkeypatch, after: int) -> None:
    """Begin an evaluation that ends after so many batches."""
    calls = []

    def stop(self, progress):
        calls.append(progress)
        if len(calls) == after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Console, "attack", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(folder, **WORDS)


def same(one: Path, other: Path) -> None:
    """Compare all tensors of two evaluations bit by bit."""
    a, b = (store_of(folder).read()[2] for folder in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name].nan_to_num(), b[name].nan_to_num()), name


def test_a_large_evaluation_has_the_bits_of_a_small_one(run, tmp_path, monkeypatch, request):
    small = Path(shutil.copytree(run, tmp_path / "small"))
    evaluate_run(small, **WORDS)
    request.getfixturevalue("large")
    stopped(run, monkeypatch, after=1)
    folder = run / "evaluations" / "pieces" / file_of(run).stem
    assert 0 < len([*folder.iterdir()]) < 4  # what no attack has changed is no file
    with pytest.raises(KeyError):
        _ = store_of(run).read()[2]["x"]
    assert verify_run(run)[0].finished is False
    evaluate_run(run, resume=True)
    assert not folder.parent.exists()
    same(run, small)
    assert verify_run(run)[0].finished
    evaluate_run(run, **WORDS | {"attacks": "fgsm"})  # earlier verdicts count
    evaluate_run(small, **WORDS | {"attacks": "fgsm"})
    same(run, small)


def test_only_pieces_that_changed_are_written(run, large, monkeypatch):
    written, write = [], files.write
    monkeypatch.setattr(
        pieces.files,
        "write",
        lambda path, *a, **k: written.append(path.name) or write(path, *a, **k),
    )
    stopped(run, monkeypatch, after=4)
    names = [name for name in written if name.count("-") == 1 and name[:5].isdigit()]
    assert len(names) == len(set(names))
    assert len(names) <= 6  # images of a batch lie in two pieces, as some are misclassified


def test_a_damaged_or_missing_piece_is_named(run, large, monkeypatch):
    stopped(run, monkeypatch, after=3)
    (folder,) = (run / "evaluations" / "pieces").iterdir()
    first, second, *_ = sorted(folder.iterdir())
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"00000-.* images 1 to 16, is damaged \(the checksum of"):
        evaluate_run(run, resume=True)
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match=r"00000-.*it is another piece"):
        evaluate_run(run, resume=True)
    first.unlink()
    with pytest.raises(UserError, match=r"00000-.*is no file"):
        store_of(run).read()
    first.write_bytes(content)
    evaluate_run(run, resume=True)


def test_a_full_disk_keeps_the_last_save(run, large, monkeypatch):
    stopped(run, monkeypatch, after=1)
    begun = store_of(run).read()[1].x_adv.clone()

    def full(path, content, **words):
        if "pieces" in path.parts:
            raise RunError(f"the disk is full: {path} was not written")
        return write(path, content, **words)

    write = files.write
    with monkeypatch.context() as patch:
        patch.setattr(pieces.files, "write", full)
        with pytest.raises(RunError, match="the disk is full"):
            evaluate_run(run, resume=True)
    assert torch.equal(store_of(run).read()[1].x_adv, begun)
    evaluate_run(run, resume=True)
    assert store_of(run).finished


def test_no_space_for_a_mapped_file_is_one_line(large, monkeypatch):
    def full(*words):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(
        RunError, match=r"GB are needed in .*cache.*No space left.*EQUIPOISE_CACHE"
    ):
        rows.empty((100, 100), torch.float32)


@pytest.mark.parametrize("number", [28, 122])
def test_a_disk_that_is_full_at_the_end_is_one_line(run, large, monkeypatch, number):
    def full(*words, **more):
        raise SafetensorError(f"Error while serializing: I/O error: full (os error {number})")

    monkeypatch.setattr("equipoise.evaluation.stored.save_file", full)
    with pytest.raises(RunError, match=r"the disk is full: .*the former file is intact"):
        evaluate_run(run, **WORDS)
    assert not [*(run / "evaluations").glob(".*part")]
