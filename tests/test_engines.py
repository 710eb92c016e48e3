"""Commands on engines: what a lost machine, a stop, a repetition and a wrong engine lead to."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from equipoise.errors import UserError
from equipoise.plans import engines, executor, keys, processes, remote
from equipoise.plans.engine import RETRIES, Scheduler
from equipoise.plans.futures import Engine, Futures, reason
from equipoise.plans.plan import parse
from equipoise.plans.prepare import Datasets, tasks
from equipoise.plans.processes import BUSY, LOST
from equipoise.store.locks import locked
from equipoise.terminal.progress import Console

WAITING = """
import signal, sys, time
signal.signal(15, {act})
print("here", flush=True)
time.sleep(60)
"""
ENTRY = {"entries": {"standard": {}}, "evaluate": {"attacks": "fgsm"}}


@pytest.fixture
def scripts(monkeypatch):
    """Make commands of Python's own code of ``equipoise WORDS``, so that they start at once."""

    def spawn(words, log, environment, lock, folder):
        with log.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-S", "-c", *words],
                stdout=file,
                stderr=file,
                env=environment,
                cwd=folder,
                pass_fds=lock,
            )

    monkeypatch.setattr(processes, "spawn", spawn)
    monkeypatch.setattr(remote, "LOOK_SECONDS", 0.02)


@pytest.fixture
def threads(scripts):
    """Return an executor of two threads."""
    pool = ThreadPoolExecutor(2)
    yield Futures("own:threads", lambda folder: Engine(pool.submit, lambda: None))
    pool.shutdown(cancel_futures=True)


def polled(commands, name):
    until = time.monotonic() + 20
    while name not in (ended := commands.poll()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return ended[name]


def wait_for_text(path, text, seconds=20):
    until = time.monotonic() + seconds
    while not (path.exists() and text in path.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_command_has_its_output_exit_code_and_environment(threads, tmp_path):
    log = tmp_path / "a.log"
    code = "import os, sys; print(os.environ['EQUIPOISE_DATA']); sys.exit(3)"
    threads.submit("a", [code], log, {"EQUIPOISE_DATA": "/data/here"})
    assert polled(threads, "a") == 3
    first, second = log.read_text().splitlines()
    assert first.startswith("$ equipoise 'import os")
    assert "# on " in first
    assert second == "/data/here"
    assert [*tmp_path.iterdir()] == [log]


def test_a_command_that_a_signal_ended_is_told_from_one_that_failed(threads, tmp_path):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    threads.submit("a", [code], tmp_path / "a.log", {})
    assert polled(threads, "a") == -9


def test_a_stop_ends_what_runs_and_takes_back_what_waits(threads, tmp_path):
    code = WAITING.format(act="lambda *a: sys.exit(7)")
    for name in "abc":
        threads.submit(name, [code], tmp_path / f"{name}.log", {})
    for name in "ab":
        wait_for_text(tmp_path / f"{name}.log", "here\n")
    threads.stop()
    threads.stop()  # once is enough: a second signal would not save
    assert threads.poll() == {"c": LOST}
    ended = {}
    while len(ended) < 2:
        ended |= threads.poll()
        time.sleep(0.01)
    assert ended == {"a": 7, "b": 7}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.log", "b.log"]


def test_what_is_killed_is_not_waited_for(threads, tmp_path):
    code = WAITING.format(act="signal.SIG_IGN")
    threads.submit("a", [code], tmp_path / "a.log", {})
    wait_for_text(tmp_path / "a.log", "here\n")
    threads.stop(now=True)
    assert threads.poll() == {"a": LOST}


def test_a_repetition_of_an_engine_runs_nothing(scripts, tmp_path):
    log, words = tmp_path / "a.log", ("print('ran')",)
    call = (words, str(log), {}, str(tmp_path), "0a0b0c0d")
    assert (remote.work(*call), remote.work(*call)) == (0, LOST)
    assert log.read_text().count("ran\n") == 1
    assert "it was lost where it ran before" in log.read_text().splitlines()[-1]
    assert remote.work(*call[:-1], "1a1b1c1d") == 0


def test_a_command_whose_log_another_process_uses_is_busy(scripts, tmp_path):
    log = tmp_path / "a.log"
    with locked(processes.lock_of(log), "busy"):
        assert remote.work(("print()",), str(log), {}, str(tmp_path), "0a") == BUSY
        assert not log.exists()
        local = processes.LocalProcesses(2)
        local.submit("a", ["print()"], log, {})
        assert local.poll() == {"a": BUSY}


def test_a_machine_without_the_folder_is_named(threads, tmp_path):
    with pytest.raises(UserError, match=r"nowhere is not on .*: all machines must share it"):
        remote.work((), str(tmp_path / "nowhere" / "a.log"), {}, str(tmp_path), "0a")


def test_an_ended_call_ends_its_command(scripts, tmp_path, monkeypatch):
    """As submitit does where the time of a job is over: an error in the main thread."""
    log = tmp_path / "a.log"
    code = WAITING.format(act="lambda *a: print('saved') or sys.exit(1)")
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.05)

    def over(*arguments):
        wait_for_text(log, "here\n")
        raise TimeoutError("the time of the job is over")

    monkeypatch.setattr(remote, "_until_it_ends", over)
    with pytest.raises(TimeoutError):
        remote.work((code,), str(log), {}, str(tmp_path), "0a")
    assert log.read_text().splitlines()[-1] == "saved"


def test_what_an_engine_loses_is_in_the_log(threads, tmp_path):
    class Dead:
        def done(self):
            return True

        def result(self):
            raise RuntimeError("worker 3 died\nand more")

    (tmp_path / "a.log").touch()
    threads.engine = Engine(lambda *arguments: Dead(), lambda: None)
    threads.submit("a", [], tmp_path / "a.log", {})
    assert threads.poll() == {"a": LOST}
    line = "equipoise: lost by --on own:threads: RuntimeError: worker 3 died\n"
    assert (tmp_path / "a.log").read_text() == line


def test_the_reason_of_a_traceback_is_its_last_line():
    trace = 'Traceback (most recent call last):\n  File "x"\nmy.KeyError: 3\n'
    text = f"failed with:\n---\n{trace}---\nlogs:\n - x"
    assert reason(RuntimeError(text)) == "my.KeyError: 3"
    assert reason(RuntimeError("")) == "RuntimeError"


FACTORIES = """
def three():
    return 3
def fails():
    raise KeyError("no cluster")
class Full:
    def submit(self, *arguments):
        raise OSError("the queue is full")
"""


@pytest.mark.parametrize(
    ("on", "text"),
    [
        ("clouds_of_mine:three", "returned int: expected an object with submit"),
        ("clouds_of_mine:fails", "--on clouds_of_mine:fails failed: KeyError: 'no cluster'"),
        ("clouds_of_mine:four", "has no attribute 'four'"),
        ("nowhere_at_all:four", "No module named 'nowhere_at_all'"),
        ("clouds_of_mine:Full", "takes no command: OSError: the queue is full"),
        ("slurm:host", "--on slurm has no address"),
        ("dask:", "expected --on local:N, slurm"),
        ("local:two", "expected --on local:N, slurm"),
    ],
)
def test_an_engine_that_is_none_is_a_line(tmp_path, monkeypatch, on, text):
    (tmp_path / "clouds_of_mine.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(engines, "find_spec", lambda name: True)
    with pytest.raises(UserError) as caught:
        executor.of(on).submit("a", [], tmp_path / "a.log", {})
    assert text in str(caught.value)
    sys.modules.pop("clouds_of_mine", None)


@pytest.mark.parametrize("kind", engines.ENGINES)
def test_a_missing_package_is_named(monkeypatch, kind):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'equipoise\[{kind}\]'"):
        executor.of(kind)


def test_resources_are_read_from_a_plan_and_from_an_option():
    given = {"partition": "gpu", "time": "2h", "gpus": 1, "memory": "16G"}
    read = {"partition": "gpu", "time": 7200.0, "gpus": 1, "memory": 16.0}
    assert parse({**ENTRY, "resources": given}).resources == read
    text = "partition=gpu, time=2h,gpus=1,memory=16G"
    assert keys.resources(text, "slurm") == read
    assert keys.resources("memory=512MB,cpus=4", "ray:host:1") == {"memory": 0.5, "cpus": 4}
    assert keys.resources(None, "local:1") == {}


def test_everything_that_is_wrong_with_resources_is_said_at_once():
    wrong = {"partition": "a b", "time": "soon", "gpus": -1, "memory": "much", "cpu": 3}
    with pytest.raises(UserError) as caught:
        parse({**ENTRY, "resources": wrong})
    for text in (
        "unknown key of resources 'cpu'; did you mean 'cpus'",
        "resources.partition: ",
        "'a b'",
        "resources.time: a job takes a time like 90s, 30m or 2h, got 'soon'",
        "resources.gpus: ",
        "resources.memory: expected a size like 16G or 500M, got 'much'",
    ):
        assert text in str(caught.value), text
    with pytest.raises(
        UserError, match=r"--resources: .* got 'gpu'; gpus: expected a whole number, got 'x'"
    ):
        keys.resources("gpu,gpus=x", "slurm")
    with pytest.raises(UserError, match="--resources are for --on slurm and --on ray, not for l"):
        keys.resources("gpus=1", "local:2")


class Dying(Futures):
    """An engine of which every command is lost; ``makes``: what the first ones do before that."""

    def __init__(self, makes=()):
        super().__init__("own:dying", lambda folder: None)
        self.makes, self.submitted = list(makes), []

    def submit(self, name, words, log, environment):
        self.submitted.append(words)
        log.write_text("equipoise: lost by --on own:dying: the node is gone\n")
        if self.makes:
            self.makes.pop(0)()
        self.dropped[name] = LOST


@pytest.fixture
def planned(tmp_path):
    entries = {"standard": {"rounds": 9, "data": "digits"}}
    return tasks(parse({**ENTRY, "entries": entries}), tmp_path, Datasets())


def test_a_lost_command_is_tried_again_three_times_without_progress(planned, tmp_path, capsys):
    (task,) = planned
    dying = Dying()
    scheduler = Scheduler(dying, planned, [], tmp_path, Console())
    scheduler.work()
    reason = "training failed: lost by --on own:dying: the node is gone"
    assert scheduler.failures == {task.name: reason}
    assert len(dying.submitted) == 1 + RETRIES
    said = capsys.readouterr().err.splitlines()
    again = f"{task.name}: lost by --on own:dying: the node is gone; it goes on"
    assert said == [*[again] * RETRIES, f"FAILED: {task.name}: {reason}"]


def test_progress_begins_the_count_again_and_the_next_command_resumes(planned, tmp_path):
    (task,) = planned

    def rounds(number):
        def write():
            task.run.path.mkdir(exist_ok=True)
            (task.run.path / "recipe.yaml").touch()
            lines = "".join(f'{{"round": {i + 1}}}\n' for i in range(number))
            (task.run.path / "log.jsonl").write_text(lines)

        return write

    dying = Dying([lambda: None, lambda: None, rounds(1), lambda: None, lambda: None, rounds(2)])
    Scheduler(dying, planned, [], tmp_path, Console(quiet=True)).work()
    assert len(dying.submitted) == 6 + RETRIES
    assert [words[1] == "--resume" for words in dying.submitted] == [False] * 3 + [True] * 6


# With the engines themselves


def plan_file(folder):
    base = {"data": "digits", "width": 0.25, "limit": 300, "validation": 60, "batch_size": 40}
    plan = {
        "base": {**base, "validation_attack": "pgd-2"},
        "entries": {"standard": {"rounds": 20}},
        "evaluate": {"attacks": "fgsm", "n": 50},
        "resources": {"partition": "gpu", "time": "90m", "memory": "1500M", "gpus": 2},
    }
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return path


LOCAL = """
import submitit
def local():
    return submitit.AutoExecutor("jobs", cluster="local")
"""


@pytest.mark.extras
@pytest.mark.parametrize("on", ["dask", "ray", "own_cluster:local"])
def test_a_plan_on_an_engine_has_the_results_of_one_without(command, tmp_path, on):
    if on != "own_cluster:local":
        pytest.importorskip({"dask": "distributed"}.get(on, on))
    (tmp_path / "own_cluster.py").write_text(LOCAL)
    plan, rows = plan_file(tmp_path), []
    for where in ("local:1", on):
        out = tmp_path / where.partition(":")[0]
        ended = command("compare", plan, "--out", out, "--on", where, "-q", cwd=tmp_path)
        assert (ended.code, ended.err) == (0, "")
        content = json.loads((out / "results.json").read_text())
        rows.append([{**row, "seconds": 0} for row in content["results"]])
        assert not [*out.rglob(".*")]
    assert rows[0] == rows[1]


@pytest.mark.extras
@pytest.mark.parametrize("on", ["dask", "own_cluster:local"])
def test_a_worker_that_is_killed_is_no_failure(command, tmp_path, on):
    (tmp_path / "own_cluster.py").write_text(LOCAL)
    out = tmp_path / "out"
    running = command.start(
        "compare", plan_file(tmp_path), "--out", out, "--on", on, "-q", cwd=tmp_path
    )
    wait_for_text(out / "logs" / "standard-seed0.log", "round   2/20", 120)
    (process,) = [
        each
        for each in pytest.importorskip("psutil").process_iter(["cmdline"])
        if str(out / "standard-seed0") in (each.info["cmdline"] or ())
        and "train" in each.info["cmdline"]
    ]
    process.parent().kill()  # the worker: its command saves, as its parent is gone
    ended = running.wait()
    assert ended.code == 0, ended.err
    log = (out / "logs" / "standard-seed0.log").read_text()
    assert "SIGTERM: stopped " in log
    assert "$ equipoise train --resume " in log


@pytest.mark.extras
def test_the_script_for_slurm_is_shown_and_asks_for_what_is_given(command, tmp_path):
    out = tmp_path / "out"
    words = ["compare", plan_file(tmp_path), "--out", out, "--on", "slurm", "--dry-run"]
    ended = command(*words, "--resources", "partition=big,account=me")
    assert ended.code == 0, ended.err
    for line in (
        "#SBATCH --account=me",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --mem=1500MB",
        "#SBATCH --partition=big",
        "#SBATCH --time=90",
    ):
        assert line in ended.out.splitlines(), line
    assert f"-m submitit.core._submit {out}/logs/slurm" in ended.out
    assert not out.exists()
