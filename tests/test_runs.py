"""The run folder: whole or not at all, damaged and noticed, on a full disk."""

import contextlib
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from blobs import SCHEDULED
from equipoise import models
from equipoise.errors import RunError, UserError
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.front import measure_front, pick
from equipoise.jobs.train import resume, train
from equipoise.jobs.verify import verify_run
from equipoise.report.runs_reader import read_run
from equipoise.settings.recipe import parse, read, stored
from equipoise.store.digests import model_digest
from equipoise.store.runs import Run, load

STATES = ("state.pt", "state.previous.pt")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "run", "method: a3gt\n")


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def state(value: int) -> dict[str, object]:
    return {"value": value, "weights": torch.full((50,), float(value)), "list": [1.5, None]}


def flip(path: Path, at: float = 0.5) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[int(at * (len(data) - 1))] ^= 16
    path.write_bytes(data)


def cut(path: Path, to: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(to * len(data))])


# Writing


def test_a_write_that_fails_leaves_what_was_there(run):
    run.write("log.txt", "before")
    run.again = "equipoise train --resume there"

    def breaks(file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="the disk is full") as error:
        run.write("log.txt", breaks)
    assert "equipoise train --resume there" in str(error.value)
    assert (run.path / "log.txt").read_text() == "before"
    assert {path.name for path in run.path.iterdir()} == {"log.txt", "recipe.yaml"}


def test_a_write_that_is_killed_leaves_what_was_there(run):
    run.write("log.txt", "before")

    def killed(file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.write("log.txt", killed)
    assert (run.path / "log.txt").read_text() == "before"
    run.write("log.txt", "after")
    assert (run.path / "log.txt").read_text() == "after"
    assert {path.name for path in run.path.iterdir()} == {"log.txt", "recipe.yaml"}


def test_other_failures_to_write_are_a_line_too(run):
    def breaks(file: io.BufferedIOBase) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(RunError, match="Input/output error"):
        run.write("log.txt", breaks)


def test_the_former_file_can_be_kept(run):
    for value in range(3):
        run.write("a", lambda file, value=value: file.write(bytes([value])), keep="b")
    assert (run.path / "a").read_bytes() == b"\2"
    assert (run.path / "b").read_bytes() == b"\1"


def test_lines_are_appended(run):
    for value in range(3):
        run.append_line("log.jsonl", {"value": value})
    lines = (run.path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"value": v} for v in range(3)]


@pytest.mark.parametrize("rest", ["", '{"val', '{"value": 0}'])
def test_a_line_cut_by_a_crash_is_closed_or_dropped_before_the_next(run, rest):
    path = run.path / "log.jsonl"
    path.write_text('{"value": -1}\n' + rest)
    run.append_line("log.jsonl", {"value": 7})
    lines = path.read_text().splitlines()
    assert lines[0] == '{"value": -1}'
    assert lines[1:-1] == ([rest] if rest.endswith("}") else [])  # half an object is none
    assert json.loads(lines[-1]) == {"value": 7}


# Making and opening


def test_a_folder_that_is_there_is_not_overwritten(run):
    before = (run.path / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match="exists; choose another --out") as error:
        Run.create(run.path, "method: other\n")
    assert "--resume" in str(error.value)
    assert (run.path / "recipe.yaml").read_bytes() == before


def test_a_file_is_no_folder_and_an_empty_folder_is_fine(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists"):
        Run.create(tmp_path / "file", "method: a3gt\n")
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (Run.create(tmp_path / "empty", "x: 1\n").path / "recipe.yaml").read_text() == "x: 1\n"


def test_a_folder_below_a_file_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*Not a directory"):
        Run.create(tmp_path / "file" / "run", "method: a3gt\n")


def test_folders_above_are_made(tmp_path):
    assert Run.create(tmp_path / "a" / "b" / "c", "x: 1\n").path.is_dir()


def test_only_run_folders_can_be_opened(tmp_path):
    with pytest.raises(UserError, match="no run folder at"):
        Run.open(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"it has no recipe\.yaml"):
        Run.open(tmp_path)


def test_json_that_is_damaged_is_a_line(run):
    assert run.read_json("summary.json") == {}
    (run.path / "summary.json").write_text('{"finished": tr')
    with pytest.raises(UserError, match=r"summary\.json"):
        run.read_json("summary.json")


# The state


def test_the_state_comes_back_and_the_one_before_is_kept(run):
    messages: list[str] = []
    assert run.read_state(messages.append) is None
    for value in range(3):
        run.write_state(state(value))
    loaded = run.read_state(messages.append)
    assert loaded is not None
    assert loaded["value"] == 2
    assert loaded["list"] == [1.5, None]
    assert torch.equal(loaded["weights"], torch.full((50,), 2.0))
    assert messages == []
    assert {path.name for path in run.path.iterdir()} == {*STATES, "recipe.yaml"}


@pytest.mark.parametrize("damage", ["cut", "empty", "header", "digest", "body", "end", "text"])
def test_a_damaged_state_is_noticed_and_the_one_before_is_used(run, damage):
    run.write_state(state(1))
    run.write_state(state(2))
    path = run.path / "state.pt"
    if damage in ("cut", "empty"):
        cut(path, 0.6 if damage == "cut" else 0.0)
    elif damage == "text":
        path.write_text("not a state")
    else:
        size = path.stat().st_size
        flip(path, {"header": 2 / size, "digest": 30 / size, "body": 0.5, "end": 1.0}[damage])
    messages: list[str] = []
    loaded = run.read_state(messages.append)
    assert loaded is not None
    assert loaded["value"] == 1
    (sentence,) = messages
    assert "state.pt is damaged" in sentence
    assert "previous" in sentence


def test_every_single_byte_counts(run):
    run.write_state({"weights": torch.arange(4.0)})
    path = run.path / "state.pt"
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert run.read_state(lambda sentence: None) is None, at


def test_where_both_states_are_damaged_none_is_left_and_both_are_named(run):
    run.write_state(state(1))
    run.write_state(state(2))
    for name in STATES:
        flip(run.path / name)
    messages: list[str] = []
    assert run.read_state(messages.append) is None
    assert all(name in line for name, line in zip(STATES, messages, strict=True))
    assert "previous state" not in messages[-1]  # there is none


def test_a_state_that_was_not_put_in_place_yet_is_not_missed(run):
    run.write_state(state(1))
    (run.path / "state.pt").rename(run.path / "state.previous.pt")  # killed between two renames
    loaded = run.read_state(lambda sentence: None)
    assert loaded is not None
    assert loaded["value"] == 1


@pytest.mark.slow
def test_a_damaged_state_resumes_from_the_one_before(command, small, trained, copy):
    log = (trained / "log.jsonl").read_text()
    flip(copy / "state.pt")
    ended = command("train", "--resume", copy)
    assert ended.code == 0, ended.err
    assert "state.pt is damaged" in ended.err
    assert "continuing after round 3" in ended.err
    for name in ("model.safetensors", "last.safetensors"):
        assert (copy / name).read_bytes() == (trained / name).read_bytes()
    assert len((copy / "log.jsonl").read_text().splitlines()) == len(log.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [False, True])
def test_without_a_sound_state_it_begins_again_and_says_so(command, trained, copy, quiet):
    for name in STATES:
        cut(copy / name)
    ended = command("train", "--resume", copy, *(["--quiet"] if quiet else []))
    assert ended.code == 0, ended.err
    assert "state.pt is damaged" in ended.err
    assert "state.previous.pt is damaged" in ended.err
    assert "from the beginning" in ended.err
    for name in ("model.safetensors", "last.safetensors"):
        assert (copy / name).read_bytes() == (trained / name).read_bytes()


# Runs of an earlier version


def make_old(run: Path) -> None:
    """Give a run ``alpha``, a decay a step, in place of ``horizon``, as earlier versions wrote."""
    text = (run / "recipe.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("horizon:"))
    (run / "recipe.yaml").write_text(text.replace(line, "alpha: 0.9"))
    saved = Run(run).read_state(print)
    assert saved is not None
    del saved["recipe"]["horizon"]
    saved["recipe"]["alpha"] = 0.9
    Run(run).write_state(saved)


@pytest.mark.slow
def test_a_finished_run_that_has_alpha_is_read_and_judged(command, copy):
    make_old(copy)
    ended = command("train", "--resume", copy)
    assert ended.code == 0, ended.err
    assert "is finished: 4 of 4 rounds" in ended.err
    assert stored(Run(copy)).settings.decay(6) == pytest.approx(0.9)
    assert "alpha: 0.9" in (copy / "recipe.yaml").read_text()
    ended = command("evaluate", copy, "--attacks", "fgsm", "-n", "40")
    assert ended.code == 0, ended.err


def test_a_run_that_has_alpha_is_not_trained_on_or_anew(command, copy, tmp_path):
    make_old(copy)
    ended = command("train", copy / "recipe.yaml", "--out", tmp_path / "anew")
    assert ended.code == 2
    assert "with S = 6 steps a round: horizon=1.66667" in ended.line
    (copy / "summary.json").unlink()
    ended = command("train", "--resume", copy)
    assert ended.code == 2
    assert "finish it with that version, or train anew" in ended.line


def rewrite(run: Run, recipe: dict[str, Any]) -> None:
    """Give a run another recipe, in all its files."""
    text = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None)
    (run.path / "recipe.yaml").write_text(text)
    run.write_json("config.json", run.read_json("config.json") | {"method": recipe["method"]})
    saved = run.read_state(print)
    assert saved is not None
    run.write_state(saved | {"recipe": recipe})


TINY = {"rounds": 2, "width": 0.25, "limit": 200, "validation": 40, "batch_size": 40}
TINY |= {"attack": {"steps": 1}, "validation_attack": "pgd-1", "precision": "float32"}


@pytest.fixture(scope="module", params=["a3gt", "a3gt-front", "start=stable"])
def former(request, tmp_path_factory) -> Run:
    """Return a finished run of a method that an earlier version had."""
    given = {"method": "a3gt", "gamma": 0.5, "start": 0.5}
    if request.param == "a3gt":
        given = SCHEDULED | {"every": 1, "gamma": [1, 0.4]}
    run = train(parse(given | TINY), tmp_path_factory.mktemp("former") / "run")
    recipe = {**read(run.path / "recipe.yaml")}
    if request.param == "start=stable":
        recipe["start"] = {"rule": "stable", "window": 3, "threshold": 0.1, "deadline": 0.75}
    else:
        recipe["method"] = request.param
    if request.param == "a3gt-front":
        recipe["trunk_weight"] = recipe.pop("trunk")["weight"]
        recipe |= {"every": None, "momentum": "keep"}
        del recipe["more"], recipe["max_clean_drop"], recipe["min_clean"]
    rewrite(run, recipe)
    return run


def test_a_finished_run_of_a_former_method_is_judged_and_picked_from(former, tmp_path):
    path = Path(shutil.copytree(former.path, tmp_path / "run"))
    before = {name: (path / name).read_bytes() for name in ("recipe.yaml", "config.json")}
    assert resume(path).path == path
    records = evaluate_run(path, attacks="pgd-1", n=20)
    assert verify_run(path)
    assert records[0]["n"] == 20
    assert len(measure_front(path, attacks=("fgsm",), points=4).points) >= 3
    picked = pick(path, tmp_path / "picked", gamma=0.5)
    evaluate_run(picked.run.path, attacks="pgd-1", n=20)
    assert read_run(path).method == yaml.safe_load(before["recipe.yaml"])["method"]
    assert {name: (path / name).read_bytes() for name in before} == before


def test_an_unfinished_run_of_a_former_method_is_not_gone_on_with(former, tmp_path):
    path = Path(shutil.copytree(former.path, tmp_path / "run"))
    (path / "summary.json").unlink()
    with pytest.raises(
        UserError, match=r"begun by an earlier version \(.*a3gt.*\): finish it with"
    ):
        resume(path)


# The disk is full


@contextlib.contextmanager
def tmpfs(place: Path, size: int) -> Iterator[Path]:
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)],  # noqa: S607
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True, capture_output=True)  # noqa: S607


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_nothing_is_lost(command, small, trained, tmp_path):
    try:
        disk = tmpfs(tmp_path / "disk", 1 << 20)
        place = disk.__enter__()
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    try:
        ballast, out = place / "ballast", place / "run"
        # Enough for the first states, and full a little later.
        size = sum(path.stat().st_size for path in trained.iterdir())
        ballast.write_bytes(bytes((1 << 20) - size * 6 // 10 - (16 << 10)))
        ended = command("train", *small, "--quiet", "--out", out)
        assert ended.code == 1, (ended.code, ended.err)
        assert ended.line.startswith("equipoise: the disk is full: ")
        assert f"equipoise train --resume {out}" in ended.line
        messages: list[str] = []
        loaded = Run(out).read_state(messages.append)
        assert loaded is not None
        assert 1 <= len(loaded["history"]) < 4
        assert messages == []
        assert not list(out.glob(".*.part"))
        again = command("train", "--resume", out, "--quiet")  # still full: the same, once more
        assert again.code == 1
        assert "the disk is full" in again.line
        found_again = Run(out).read_state(messages.append)
        assert found_again is not None
        assert len(found_again["history"]) >= len(loaded["history"])
        ballast.unlink()
        ended = command("train", "--resume", out)
        assert ended.code == 0, ended.err
        assert "continuing after round" in ended.err
        for name in ("model.safetensors", "last.safetensors"):
            assert (out / name).read_bytes() == (trained / name).read_bytes()
        assert len((out / "log.jsonl").read_text().splitlines()) == 4
    finally:
        disk.__exit__(None, None, None)


@pytest.mark.slow
@pytest.mark.parametrize("writes", [0, 1, 5, 8, 12])
def test_wherever_the_disk_is_full_the_run_can_go_on(command, small, trained, tmp_path, writes):
    # The same without a mount: the n-th flush to the disk fails, in the process of the command.
    before = f"""
import errno, os
from equipoise.store import runs
left = [{writes}]
def fsync(number, real=os.fsync):
    left[0] -= 1
    if left[0] < 0:
        raise OSError(errno.ENOSPC, "No space left on device")
    real(number)
os.fsync = fsync
"""
    out = tmp_path / "run"
    ended = command("train", *small, "--quiet", "--out", out, before=before)
    assert ended.code in (1, 2), ended.err  # 2: not even the recipe could be written
    assert "the disk is full" in ended.line
    assert not list(out.glob(".*.part"))
    resume = ["--resume", out] if (out / "recipe.yaml").exists() else [*small, "--out", out]
    ended = command("train", *resume)
    assert ended.code == 0, ended.err
    assert "damaged" not in ended.err
    for name in ("model.safetensors", "last.safetensors"):
        assert (out / name).read_bytes() == (trained / name).read_bytes()


# The model


def test_a_model_comes_back_in_eval_mode_with_its_weights(trained):
    for which in ("model", "last"):
        model = load(trained, which)
        assert not model.training
        assert isinstance(model, models.Classifier)
        assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert model_digest(load(trained)) == model_digest(Run.open(trained).model("model"))


@pytest.mark.parametrize("to", [0.0, 0.05, 0.5, 0.99])
def test_weights_that_were_cut_are_refused(copy, to):
    cut(copy / "model.safetensors", to)
    with pytest.raises(UserError, match=r"cannot read the weights in .*model\.safetensors"):
        load(copy)


def test_weights_of_another_model_are_refused(copy):
    config = json.loads((copy / "config.json").read_text())
    config["settings"]["width"] = 0.5
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot read the weights"):
        load(copy)


def test_a_description_that_lacks_something_is_refused(copy):
    (copy / "config.json").write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"config\.json"):
        load(copy)
    (copy / "config.json").write_text('{"format": 2}')
    with pytest.raises(UserError, match="format 2"):
        load(copy)


def test_a_run_without_a_model_says_what_to_do(run):
    with pytest.raises(UserError, match=r"no model yet.*--resume"):
        load(run.path)


def digits_net() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        settings = {"channels": 1, "size": (8, 8), "classes": 10, "width": 0.25}
        return models.build("small-cnn", settings)


def test_the_digest_is_of_the_weights_and_nothing_else():
    model = digits_net()
    digest = model_digest(model)
    assert digest == model_digest(digits_net().eval())
    layout = digits_net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert model_digest(layout) == digest
    for name in ("conv1.weight", "linear.bias", "bn1.running_var", "bn2.num_batches_tracked"):
        other = digits_net()
        with torch.no_grad():
            other.state_dict()[name].flatten()[0].add_(1)
        assert model_digest(other) != digest, name
    assert model_digest(digits_net().double()) != digest


def test_the_documents_list_the_files_of_a_folder(trained):
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    section = page.partition("## The run folder")[2].partition("\n## ")[0]
    for path in trained.iterdir():
        assert path.name in section, path.name
