"""Two processes on one folder: one works, the other waits or is refused; nothing is lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from equipoise.errors import RunError, UserError
from equipoise.evaluation.stored import Store
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.verify import verify_run
from equipoise.store import locks
from equipoise.store.locks import locked
from equipoise.store.runs import Run
from forks import BLOCKED, FORKED

SYSTEMS = pytest.mark.parametrize("before", ["", BLOCKED], ids=["flock", "without-fcntl"])

WAITING = """
import pathlib, time
from equipoise.attacks import PGD
whole = PGD.__call__
def waiting(self, *arguments, **settings):
    while pathlib.Path({hold!r}).exists():
        time.sleep(0.01)
    return whole(self, *arguments, **settings)
PGD.__call__ = waiting
"""

HOLDER = """
import sys, time
if sys.argv[2:]:
    sys.modules["fcntl"] = None
from pathlib import Path
from equipoise.store.locks import locked
with locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def instead(small, setting):
    name = setting.partition("=")[0]
    return [setting if word.startswith(f"{name}=") else word for word in small]


def held(path):
    path.touch()
    return path


def holder(path, *words):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path), *words], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def run(trained, tmp_path):
    return Run(shutil.copytree(trained, tmp_path / "run"))


@pytest.mark.parametrize("words", [(), ("without fcntl",)], ids=["flock", "without-fcntl"])
def test_a_lock_ends_with_its_process_however_it_ends(tmp_path, words, monkeypatch):
    path = tmp_path / ".x.lock"
    if words:
        monkeypatch.setattr("equipoise.store.locks.fcntl", None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "fcntl", None)
    process = holder(path, *words)
    with pytest.raises(UserError, match="busy"), locked(path, "busy"):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    assert path.exists()
    waited = []
    with locked(path, "busy", wait=5, waiting=lambda: waited.append(1)):
        assert path.exists()
        with pytest.raises(UserError, match="busy"), locked(path, "busy"):
            pass
    assert not path.exists()


LEASES = """
import errno, fcntl
from equipoise.store import locks
def without(handle, how):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock, locks.LEASE_SECONDS = without, 1.0
"""


def test_without_flock_a_silent_process_loses_the_lock_in_time(tmp_path, monkeypatch):
    path = tmp_path / ".x.lock"
    process = subprocess.Popen(
        [sys.executable, "-c", LEASES + HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"

    def without(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", without)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    with pytest.raises(UserError, match="busy"), locked(path, "busy", wait=1.5):
        pass
    process.send_signal(signal.SIGSTOP)  # like one on a machine that is gone: it is not dead
    began = time.monotonic()
    with locked(path, "busy", wait=10):
        assert 0.5 < time.monotonic() - began < 5
        with pytest.raises(UserError, match="busy"), locked(path, "busy"):
            pass
    process.kill()
    process.wait()
    process.stdout.close()


def test_whoever_waits_gets_the_lock_when_it_is_free(tmp_path):
    path, waited = tmp_path / ".x.lock", []
    process = holder(path)

    def waiting():
        waited.append(time.monotonic())
        process.terminate()

    with locked(path, "busy", wait=30, waiting=waiting):
        pass
    process.wait()
    process.stdout.close()
    assert len(waited) == 1


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path):
    with (
        pytest.raises(UserError, match=r"cannot write to .*nowhere"),
        locked(tmp_path / "nowhere" / ".x.lock", "busy"),
    ):
        pass


@pytest.mark.slow
@SYSTEMS
def test_two_evaluations_of_one_radius_the_second_is_refused(command, run, before):
    words = ["evaluate", run.path, "--attacks", "pgd-3", "-n", 60]
    words += ["--eps", "0.1", "--no-checks"]
    hold = held(run.path.with_name("hold"))
    running = command.start(*words, before=before + WAITING.format(hold=str(hold)))
    running.reaches("evaluating")
    second = command(*words, "-q", before=before)
    assert second.code == 2
    assert "another process is evaluating linf-0.1" in second.line
    # A list of radii of which one is being evaluated is refused before anything is done.
    second = command(*words[:-3], "--eps", "0.05,0.1", "-q", before=before)
    assert second.code == 2
    hold.unlink()
    ended = running.wait()
    assert ended.code == 0, ended.err
    assert len(Store.all(run)) == 1
    records = lines(run.path / "records.jsonl")
    assert [record["attack"] for record in records] == ["clean", "pgd-3", "worst-case"]
    assert not list((run.path / "evaluations").glob(".*"))


@pytest.mark.slow
@SYSTEMS
def test_evaluations_of_different_radii_at_once_are_all_recorded(command, run, before):
    radii = ("0.02", "0.04", "0.06", "0.08")
    some = [
        command.start(
            *("evaluate", run.path, "--attacks", "fgsm,pgd-1,pgd-2", "-n", 30, "--no-checks"),
            *("--eps", eps, "-q"),
            before=before,
        )
        for eps in radii
    ]
    for running in some:
        ended = running.wait()
        assert ended.code == 0, ended.err
    records = lines(run.path / "records.jsonl")
    found = {(record["eps"], record["attack"]) for record in records}
    names = ("clean", "fgsm", "pgd-1", "pgd-2", "worst-case")
    assert found == {(float(eps), name) for eps in radii for name in names}
    assert len(records) == len(found)
    assert command("verify", run.path, "-q").code == 0


@pytest.mark.slow
@SYSTEMS
def test_two_trainings_in_one_folder_the_second_is_refused(command, small, tmp_path, before):
    out, hold = tmp_path / "run", held(tmp_path / "hold")
    words, resume = ("train", *small, "--out", out), ("train", "--resume", out)
    slowly = before + WAITING.format(hold=str(hold))
    running = command.start(*words, before=slowly)
    running.reaches("kept:")
    for second in (words, resume):
        ended = command(*second, "-q", before=before)
        assert ended.code == 2
        assert "another process is training in" in ended.line
    running.signal(signal.SIGTERM)
    hold.unlink()
    assert running.wait().code == 1
    held(hold)
    running = command.start(*resume, before=slowly)
    running.reaches("kept:")
    ended = command(*resume, "-q", before=before)
    assert ended.code == 2
    assert "another process is training in" in ended.line
    hold.unlink()
    assert running.wait().code == 0
    assert [record["round"] for record in lines(out / "log.jsonl")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_an_evaluation_during_a_training_disturbs_neither(command, small, tmp_path):
    out, hold = tmp_path / "run", tmp_path / "hold"
    before = WAITING.format(hold=str(hold))
    words = ("train", *instead(small, "rounds=30"), "--out", out)
    running = command.start(*words, before=before)
    running.reaches_rounds(1)
    held(hold)
    ended = command("evaluate", out, "--attacks", "pgd-1", "-n", 20, "--no-checks", "-q")
    assert ended.code == 0, ended.err
    hold.unlink()
    assert running.wait().code == 0
    assert [record["round"] for record in lines(out / "log.jsonl")] == list(range(1, 31))
    assert {r["attack"] for r in lines(out / "records.jsonl")} == {"clean", "pgd-1", "worst-case"}


PLAN = """
title: small
base: {data: digits, limit: 200, validation: 40, rounds: 2, width: 0.25, batch_size: 40}
entries: {standard: {}}
evaluate: {attacks: pgd-1, n: 20, individual: true}
"""


@pytest.mark.slow
def test_two_comparisons_at_once_without_fcntl(command, tmp_path):
    plan, out = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(PLAN)
    words = ("compare", plan, "--out", out, "-q")
    both = [command.start(*words, before=FORKED + BLOCKED) for _ in range(2)]
    for running in both:  # the second waits, and finds nothing left to do
        ended = running.wait()
        assert ended.code == 0, ended.err
    log = (out / "logs" / "standard-seed0.log").read_text()
    assert log.count("$ equipoise train") == 1
    assert log.count("$ equipoise evaluate") == 1


@pytest.mark.slow
def test_a_start_that_was_killed_does_not_stand_in_the_way(command, small, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    process = holder(out / ".run.lock")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert [path.name for path in out.iterdir()] == [".run.lock"]
    ended = command("train", *instead(small, "rounds=2"), "--out", out)
    assert ended.code == 0, ended.err
    assert not list(out.glob(".*"))


def test_verify_looks_again_at_what_is_just_being_written(run, monkeypatch):
    evaluate_run(run.path, attacks="pgd-1", eps=[0.1], n=20, checks=False)
    (store,) = Store.all(run)
    whole = store.summary.read_bytes()
    store.summary.write_bytes(b"{}")  # as before the new one is written
    monkeypatch.setattr("time.sleep", lambda seconds: store.summary.write_bytes(whole))
    with pytest.raises(RunError):  # nobody is at it
        verify_run(run.path)
    with store.lock():
        (verified,) = verify_run(run.path)
    assert not verified.problems
