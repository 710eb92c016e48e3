"""What several tests share: the command line as it is, without its seconds of imports.

A server process imports everything once; each command runs in a fork of it, through the real
``main``, with its own folder, streams, signals and exit code. So a command takes what it does,
and a hundred of them can be tried, stopped and killed.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Files of minutes: whoever begins one last leaves the other processes waiting.
LONGEST = ("test_reproduce.py", "test_compare.py", "test_cli.py", "test_checks.py")

SERVER = """
import gc, importlib, json, os, pkgutil, signal, sys
import matplotlib.backends.backend_agg, matplotlib.backends.backend_svg, pydantic.types
import PIL.JpegImagePlugin, scipy.stats, sklearn.datasets
import torch._dynamo  # as every optimizer does
import equipoise.cli, benchmarks.__main__
for module in pkgutil.walk_packages(equipoise.__path__, "equipoise."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
gc.freeze()

def child(order):
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests run under
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup among it
    for number, name in ((0, "/dev/null"), (1, order["out"]), (2, order["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(name, flags, 0o600), number)
    os.chdir(order["cwd"])
    os.environ.update(order["env"])
    sys.argv = ["equipoise", *order["arguments"]]
    main = equipoise.cli.main
    if sys.argv[1:2] == ["bench"]:  # python -m benchmarks
        sys.argv, main = ["benchmarks", *sys.argv[2:]], benchmarks.__main__.main
    code = 0
    try:
        exec(order["before"], {})
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        import traceback
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    if "wait" in order:
        _, status = os.waitpid(order["wait"], 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
        continue
    pid = os.fork()
    if not pid:
        child(order)
    print(pid, flush=True)
"""


class Usual(str):
    """A word of a command that gives way to another one with the same key."""

    __slots__ = ()


@dataclass
class Ended:
    """A command that has ended."""

    code: int  # negative: by that signal
    out: str
    err: str

    @property
    def line(self) -> str:
        """Return the one line of standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass
class Running:
    """A command on its way."""

    server: "CommandLine"
    pid: int
    place: Path

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    @property
    def err(self) -> str:
        return (self.place / "err").read_text()

    def reaches(self, text: str, seconds: float = 60) -> None:
        """Return when the command has written a text to standard error."""
        until = time.monotonic() + seconds
        while text not in self.err:
            assert time.monotonic() < until, self.err
            time.sleep(0.002)

    def reaches_rounds(self, count: int, seconds: float = 60) -> None:
        """Return when a training has shown so many rounds, or has ended."""
        until = time.monotonic() + seconds
        while self.err.count("\nround ") < count and "\nnext: " not in self.err:
            assert time.monotonic() < until, self.err
            time.sleep(0.002)

    def wait(self) -> Ended:
        code = int(self.server.ask({"wait": self.pid}))
        return Ended(code, (self.place / "out").read_text(), self.err)


class CommandLine:
    """Runs ``equipoise`` in forks of one process, and ``python -m benchmarks`` as ``bench``."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | dict.fromkeys(names, "1") | {"COLUMNS": "200"},
            text=True,
        )
        assert self.server.stdout is not None
        if self.server.stdout.readline() != "ready\n":
            self.close()
            pytest.fail("the package cannot be imported; see standard error")

    def ask(self, order: dict[str, Any]) -> str:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.write(json.dumps(order) + "\n")
        self.server.stdin.flush()
        return self.server.stdout.readline()

    def start(
        self,
        *arguments: object,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        before: str = "",
    ) -> Running:
        """Start a command.

        Arguments:
            arguments: The words after ``equipoise``.
            cwd: Where it runs.
            env: Variables of its environment.
            before: Python that runs in its process first.
        """
        given = {str(word).partition("=")[0] for word in arguments if not isinstance(word, Usual)}
        words = [
            str(word)
            for word in arguments
            if not isinstance(word, Usual) or word.partition("=")[0] not in given
        ]
        self.count += 1
        place = self.folder / str(self.count)
        place.mkdir()
        for name in ("out", "err"):  # a command may be killed before it writes anything
            (place / name).touch()
        order = {
            "arguments": words,
            "out": str(place / "out"),
            "err": str(place / "err"),
            "cwd": str(cwd or place),
            "env": env or {},
            "before": before,
        }
        return Running(self, int(self.ask(order)), place)

    def __call__(self, *arguments: object, **settings: Any) -> Ended:
        """Run a command to its end."""
        return self.start(*arguments, **settings).wait()

    def close(self) -> None:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        self.server.stdin.close()
        self.server.wait(60)
        self.server.stdout.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, end with the shortest."""
    items.sort(key=lambda item: (item.path.name not in LONGEST, -item.path.stat().st_size))


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Return the command line: ``command("list", "methods").out``."""
    server = CommandLine(tmp_path_factory.mktemp("commands"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def trained(command: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small finished run; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    ended = command("train", *SMALL, "--out", folder)
    assert ended.code == 0, ended.err
    return folder


SMALL = (
    "a3gt",
    "rounds=4",
    "width=0.25",
    "limit=300",
    "validation=60",
    "batch_size=40",
    "attack.steps=2",
    "validation_attack=pgd-2",
    "gamma=0.5",
    "horizon=10/6",
)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Return the words after ``equipoise train`` of a training that takes half a second."""
    return tuple(map(Usual, SMALL))
