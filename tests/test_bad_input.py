"""Bad input: one line that says what to do, exit code 2, nothing hung and nothing half done."""

import gzip
import json
import os
import shutil
import signal
import struct
import tarfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from urllib.request import Request

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from equipoise.attacks import parse
from equipoise.data import DATASETS, load
from equipoise.data.fetch import _Secure
from equipoise.errors import RunError, UserError
from equipoise.parsing import number
from equipoise.report import build
from equipoise.store.runs import Run

SECONDS = 30  # a bad input takes less than a second; a hung one has no end

MODEL = """
import torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 10)
    def forward(self, x):
        return self.linear(x.flatten(1))
"""


def recipe(text: str) -> Callable[[Path, Path], list[object]]:
    """Return what writes a recipe and trains it."""

    def words(place: Path, run: Path) -> list[object]:
        (place / "r.yaml").write_text(text)
        return ["train", place / "r.yaml", "--out", place / "out"]

    return words


def settings(*items: str) -> Callable[[Path, Path], list[object]]:
    return lambda place, run: ["train", "pgd-at", *items, "--out", place / "out"]


def attacked(*words: str) -> Callable[[Path, Path], list[object]]:
    return lambda place, run: ["evaluate", run, "-n", "20", *words]


def changed(name: str, change: Callable[[str], str], *words: str) -> Callable[[Path, Path], list]:
    """Return what changes a file of a run and evaluates it, or does something else with it."""

    def prepare(place: Path, run: Path) -> list[object]:
        path = run / name
        path.write_text(change(path.read_text()))
        command = words or ("evaluate", "RUN", "--attacks", "fgsm")
        return [run if word == "RUN" else word for word in command]

    return prepare


def config(**new: object) -> Callable[[Path, Path], list]:
    def change(text: str) -> str:
        content = json.loads(text)
        content["settings"] |= new
        return json.dumps(content)

    return changed("config.json", change)


def npz(**arrays: object) -> Callable[[Path, Path], list]:
    def prepare(place: Path, run: Path) -> list[object]:
        held = {"x": np.zeros((20, 8, 8), np.uint8), "y": np.arange(20) % 2} | arrays
        np.savez(place / "a.npz", **{k: np.asarray(v) for k, v in held.items()})
        return ["train", "standard", "--data", place / "a.npz", "--out", place / "out"]

    return prepare


def weights(write: Callable[[Path], object]) -> Callable[[Path, Path], list]:
    def prepare(place: Path, run: Path) -> list[object]:
        (place / "stranger.py").write_text(MODEL)
        write(place / "w.pt")
        words = ["--model", "stranger:Net", "--weights", place / "w.pt", "--data", "digits"]
        return ["evaluate", *words, "--attacks", "fgsm", "--out", place / "results"]

    return prepare


def unasked(place: Path, run: Path, key: str = "n") -> list[object]:
    """Take the number of images out of what a verdict file says."""
    path = next((run / "evaluations").glob("*.safetensors"))
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    about = json.loads(metadata["about"])
    del about[key]
    save_file(tensors, path, metadata | {"about": json.dumps(about)})
    return ["evaluate", run, "--resume"]


def idx_bomb(place: Path, run: Path) -> list[object]:
    folder = place / "mnist"
    folder.mkdir()
    for name in (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ):
        with gzip.open(folder / f"{name}.gz", "wb", compresslevel=9) as file:
            file.write(b"\0\0\x08\x03" + struct.pack(">3I", 60_000, 28, 28))
            if name.startswith("train-images"):
                for _ in range(3 * 2**7):
                    file.write(bytes(2**20))  # 384 MB from 0.4 MB; gigabytes cost a test too much
    return ["train", "standard", "--data", "mnist", "--data-dir", place, "--out", place / "out"]


def written(name: str, text: str) -> Callable[[Path, Path], list]:
    def prepare(place: Path, run: Path) -> list[object]:
        (place / name).write_text(text)
        return ["compare", place / name, "--out", place / "out"]

    return prepare


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
NINES = "9" * 5000

BAD: dict[str, tuple[Callable[[Path, Path], list], str]] = {
    "alias bomb": (recipe(f"method: pgd-at\n{BOMB}"), "aliases repeat"),
    "alias bomb in a value": (settings("gamma=[&a [1,1,1,1], &b [*a,*a,*a,*a], *b]"), "gamma"),
    "alias in itself": (
        recipe("method: pgd-at\nrobust: &a {lr: *a}\n"),
        "an alias refers to",
    ),
    "alias in itself, a value": (settings("lr_factors=&a [*a]"), "lr_factors"),
    "brackets": (recipe(f"method: pgd-at\neps: {'[' * 3000}{']' * 3000}\n"), "nested too deeply"),
    "brackets in a value": (settings(f"eps={'[' * 3000}"), "eps"),
    "brackets in a plan": (written("p.yaml", "entries: " + "[" * 3000), "nested too deeply"),
    "digits": (recipe(f"method: pgd-at\nrounds: {NINES}\n"), "rounds"),
    "digits in a value": (settings(f"rounds={NINES}"), "rounds"),
    "digits in a fraction": (settings(f"eps=1/{NINES}"), "eps"),
    "digits of an attack": (attacked("--attacks", f"pgd-{NINES}"), "steps"),
    "more steps than can be": (attacked("--attacks", f"pgd-{'9' * 20}"), "steps"),
    "eps: yes": (recipe("method: pgd-at\neps: yes\n"), "eps: expected a number"),
    "eps=true": (settings("eps=true"), "eps: expected a number"),
    "hexadecimal": (settings("rounds=0x1"), "rounds"),
    "hexadecimal in a file": (recipe("method: pgd-at\nrounds: 0x1\n"), "rounds"),
    "octal": (settings("rounds=010"), "rounds: expected a number"),
    "octal in a file": (recipe("method: pgd-at\nrounds: 010\n"), "rounds: expected a number"),
    "base 60": (settings("rounds=1:30"), "rounds"),
    "base 60 in a file": (recipe("method: pgd-at\nrounds: 1:30\n"), "rounds"),
    "underscores": (settings("rounds=1_000"), "rounds: expected a number"),
    "no value": (settings("eps="), "eps= has no value"),
    "no value in a file": (recipe("method: pgd-at\neps:\n"), "'eps' has no value (line 2)"),
    "too small for a float": (settings("eps=1e-400"), "eps: expected a number"),
    "too large for a float": (settings("eps=1e400"), "eps must be a finite number"),
    "given twice": (settings("eps=0.1", "eps=0.2"), "eps is given twice"),
    "given twice in a file": (recipe("method: pgd-at\neps: 1\neps: 2\n"), "'eps' is given twice"),
    "momentum=2": (settings("momentum=2"), "momentum must lie in"),
    "step_size=0": (settings("attack.step_size=0"), "step_size must be a finite number > 0"),
    "step_size=0 of an attack": (attacked("--attacks", "pgd-2(step_size=0)"), "step_size must be"),
    "momentum=2 of an attack": (attacked("--attacks", "mi-fgsm-2(momentum=2)"), "momentum must"),
    "a truth for a number": (attacked("--attacks", "pgd-2(restarts=true)"), "restarts must be"),
    "an option twice": (attacked("--attacks", "pgd(steps=1, steps=2)"), "given twice"),
    "steps twice": (attacked("--attacks", "pgd-2(steps=3)"), "steps twice"),
    "an option without a value": (attacked("--attacks", "pgd-2(restarts=)"), "restarts="),
    "no attacks": (attacked("--attacks", ""), "pgd-20"),
    "no radius": (attacked("--attacks", "fgsm", "--eps", ""), "--eps"),
    "no norm": (attacked("--attacks", "fgsm", "--norm", ""), "unknown --norm"),
    "seed below 0": (attacked("--attacks", "fgsm", "--seed", "-1"), "seed must be"),
    "seed of 20 digits": (attacked("--attacks", "fgsm", "--seed", "9" * 20), "seed must be"),
    "validation of all images": (settings("validation=99999999"), "validation=99999999"),
    "pad=nan": (npz(pad=np.nan), "pad be whole"),
    "pad=inf": (npz(pad=np.inf), "pad be whole"),
    "pad=1.5": (npz(pad=1.5), "pad be whole"),
    "eps=nan of a file": (npz(eps=np.nan), "eps must lie in"),
    "flip=nan": (npz(flip=np.nan), "flip must be"),
    "idx bomb": (idx_bomb, "holds more than"),
    "text for weights": (weights(lambda path: path.write_text("hello\n")), "w.pt"),
    "complex weights": (
        weights(
            lambda path: torch.save(
                {"linear.weight": torch.zeros(10, 64) * 1j, "linear.bias": torch.zeros(10)}, path
            )
        ),
        "complex",
    ),
    "10^9 classes": (config(classes=10**9), "classes must be whole and in 1..100000"),
    "other classes than the weights": (config(classes=99_999), "shape of linear.weight"),
    "mean=['a']": (config(mean=["a"]), "mean must have a number"),
    "size=8": (config(size=8), "images must have"),
    "width=inf": (config(width=float("inf")), "width must be"),
    "config of brackets": (
        changed("config.json", lambda text: "[" * 100_000),
        "config.json",
    ),
    "recipe of a run": (
        changed("recipe.yaml", lambda text: BOMB, "report", "RUN", "--out", "r.html"),
        "aliases repeat",
    ),
    "summary of brackets": (
        changed("summary.json", lambda t: '{"a":' + "[" * 100_000, "report", "RUN", "--out", "r"),
        "is damaged",
    ),
    "verdicts without n": (unasked, "is damaged"),
    "verdicts without what was asked": (lambda p, r: unasked(p, r, "asked"), "is damaged"),
    "--json in no folder": (
        lambda place, run: ["evaluate", run, "--json", place / "no" / "x.json"],
        "--json",
    ),
    "--json is a folder": (
        lambda place, run: ["evaluate", run, "--json", place],
        "--json",
    ),
    "--json cannot be written": (
        lambda place, run: ["evaluate", run, "--json", "/proc/equipoise.json"],
        "cannot be written",
    ),
}


@pytest.fixture(scope="module")
def evaluated(trained, command, tmp_path_factory) -> Path:
    """Return a finished run with an evaluation."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, run)
    ended = command("evaluate", run, "--attacks", "fgsm", "-n", "20", "--no-checks", "-q")
    assert ended.code == 0, ended.err
    return run


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(command, evaluated, tmp_path, name):
    prepare, said = BAD[name]
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    words = prepare(tmp_path, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    began = time.monotonic()
    running = command.start(*words, cwd=tmp_path)
    ended = running.wait()
    assert time.monotonic() - began < SECONDS
    assert ended.code == 2, ended.err
    assert said in ended.line, ended.err
    assert len(ended.line) < 5000
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert after == before
    assert not (tmp_path / "out").exists()


def test_a_gzip_of_gigabytes_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    member = gzip.compress(bytes(2**26), 1)
    header = gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 60_000, 28, 28))
    with path.open("wb") as file:
        file.write(header)
        for _ in range(200):  # 12.5 GB in all
            file.write(member)
    for name in ("train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / f"{name}-ubyte").touch()
    began = time.monotonic()
    with pytest.raises(UserError, match="holds more than"):
        load("mnist", tmp_path)
    assert time.monotonic() - began < 10


def test_an_archive_is_read_up_to_its_measure(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("README", "data_batch_1.bin"):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = 10 if name != "README" else 2**40
            tar.fileobj.write(member.tobuf())
            tar.fileobj.write(bytes(512))
    with pytest.raises(UserError, match="holds over"):
        load("cifar10", tmp_path)


def test_https_is_never_left_for_http():
    follow = _Secure().redirect_request
    asked = Request("https://127.0.0.1/a")
    with pytest.raises(RunError, match=r"http://127\.0\.0\.1"):
        follow(asked, BytesIO(), 302, "", {}, "http://127.0.0.1/a")
    assert follow(asked, BytesIO(), 302, "", {}, "https://127.0.0.1/b").full_url.endswith("/b")
    plain = Request("http://127.0.0.1/a")
    assert follow(plain, BytesIO(), 302, "", {}, "http://127.0.0.1/b") is not None
    assert follow(plain, BytesIO(), 302, "", {}, "https://127.0.0.1/b") is not None
    for url in ("ftp://127.0.0.1/b", "file:///etc/hostname"):
        with pytest.raises(RunError, match=url):
            follow(plain, BytesIO(), 302, "", {}, url)
    assert DATASETS["cifar10"].remote.base.startswith("https:")


def test_every_download_is_verified_by_sha256():
    for name, source in DATASETS.items():
        files = source.remote.files.values() if source.remote else ()
        assert all(sum_.startswith("sha256:") for sum_ in files), name


def test_markdown_reports_hold_no_html(evaluated, tmp_path):
    run = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(evaluated, run)
    records = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(records.replace('"fgsm"', '"<b>fgsm</b>"'))
    text = build([run], tmp_path / "r.md").read_text()
    assert "<img" not in text
    assert "&lt;img" in text
    assert "<b>" not in text


UNPRIVILEGED = """
import ctypes
libc = ctypes.CDLL(None)
header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
libc.capget(header, data)
data[0] &= ~2  # root without CAP_DAC_OVERRIDE reads everything, and writes what its owner may
libc.capset(header, data)
"""


@pytest.mark.parametrize(
    "words", [("evaluate", "run", "--attacks", "fgsm"), ("front", "run")], ids=" ".join
)
def test_a_folder_that_cannot_be_written_to_is_one_line(command, evaluated, tmp_path, words):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    paths = (run, *run.rglob("*"))
    try:
        for path in paths:
            path.chmod(0o555 if path.is_dir() else 0o444)
        ended = command(*words, "-q", cwd=tmp_path, before=UNPRIVILEGED)
    finally:
        for path in paths:
            path.chmod(0o755)
    assert ended.code == 2, ended.err
    assert "cannot write" in ended.line
    assert "run" in ended.line


@pytest.mark.parametrize("number_", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_saves_as_sigterm_does(command, small, tmp_path, number_):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert command("train", *small, "--out", whole, "-q").code == 0
    running = command.start("train", *small, "--out", cut)
    running.reaches_rounds(1)
    running.signal(number_)
    ended = running.wait()
    assert ended.code in (0, 1), ended.err
    assert "Traceback" not in ended.err
    assert command("train", "--resume", cut, "-q").code == 0
    for name in ("model.safetensors", "last.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


TERMINAL = """
import fcntl, os, pty, termios, threading
pid = os.fork()
if pid:
    os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os.setsid()
master, slave = pty.openpty()
fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
os.dup2(slave, 1)
os.dup2(slave, 2)
os.close(slave)

def close():
    seen = b""
    while b"round   1" not in seen:
        seen += os.read(master, 4096)
    os.close(master)

threading.Thread(target=close, daemon=True).start()
"""


def test_a_terminal_that_is_really_closed_takes_nothing_along(command, small, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    longer = (*small, "rounds=12")
    assert command("train", *longer, "--out", whole, "-q").code == 0
    assert command("train", *longer, "--out", cut, before=TERMINAL, cwd=tmp_path).code == 1
    state = Run(cut).read_state(print)
    assert state is not None
    assert len(state["history"]) == len((cut / "log.jsonl").read_text().splitlines()) > 0
    assert not (cut / "summary.json").exists()
    assert command("train", "--resume", cut, "-q").code == 0
    assert (cut / "last.safetensors").read_bytes() == (whole / "last.safetensors").read_bytes()


def test_a_closed_terminal_keeps_what_an_evaluation_found(command, evaluated, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    running = command.start("evaluate", run, "--attacks", "fgsm,square-20000", "--no-checks")
    running.reaches("evaluating")
    until = time.monotonic() + 60
    while not (found := [p for p in run.glob("evaluations/*.safetensors") if "n20" not in p.name]):
        assert time.monotonic() < until, running.err
        time.sleep(0.01)
    running.signal(signal.SIGHUP)
    ended = running.wait()
    assert ended.code == 130, ended.err
    assert "--resume" in ended.err
    assert found[0].exists()


def test_nohup_is_left_alone(command, small, tmp_path):
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"
    running = command.start("train", *small, "--out", tmp_path / "run", before=before)
    running.reaches_rounds(1)
    running.signal(signal.SIGHUP)
    assert running.wait().code == 0


@pytest.mark.parametrize("text", ["010", "0x1", "1:30", "1e-400", "1e400", "1_000", NINES, ""])
def test_what_is_no_decimal_number_stays_text(text):
    assert number(text) == text


def test_numbers_are_read_as_they_are_written():
    assert number("1e-300") == 1e-300
    assert number("0.10") == 0.1
    assert number("-0") == 0
    assert number("0e0") == 0
    assert number("[010, 10, 1/4]") == ["010", 10, 0.25]
    assert parse("pgd-20(restarts=2)").steps == 20


def test_a_validation_split_that_cannot_be_had_is_said(command, small, tmp_path):
    words = [word for word in small if not word.startswith("validation=")]
    ended = command("train", *words, "validation=200", "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "60 held-out" in ended.err
    assert "validation=200" in ended.err


def test_bytes_of_0_and_1_are_warned_of_in_training_as_in_evaluation(command, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.integers(0, 2, (150, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(150) % 3)
    quick = ("width=0.25", "rounds=1", "batch_size=16", "validation_attack=pgd-1", "validation=20")
    words = ("--data", tmp_path / "a.npz", "--out", tmp_path / "run", "-q")
    ended = command("train", "standard", *quick, *words)
    assert ended.code == 0, ended.err
    assert "WARNING: range: the inputs lie in [0, 0.003922]" in ended.err.replace("\n", " ")
    again = command("evaluate", tmp_path / "run", "--attacks", "fgsm", "-q")
    assert "WARNING: range: the inputs lie in [0, 0.003922]" in again.err.replace("\n", " ")


def test_values_out_of_the_range_by_rounding_are_said_by_the_command(command, tmp_path):
    x = np.random.default_rng(0).random((150, 8, 8)).astype(np.float32)
    x[0, 0, 0] = 1.0000001
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(150) % 3)
    quick = ("width=0.25", "rounds=1", "batch_size=16", "validation_attack=pgd-1", "validation=20")
    words = ("--data", tmp_path / "a.npz", "--out", tmp_path / "run", "-q")
    ended = command("train", "standard", *quick, *words)
    assert ended.code == 0, ended.err
    assert ended.err.startswith("WARNING: ")
    assert "set to the border" in ended.line


assert len(BAD) >= 40
assert os.sep == "/", "paths like /proc are those of Linux"
