"""The engines that people have: the only place that knows of them.

Each is used through its own interface of ``concurrent.futures``, or what is nearest to it.
"""

import importlib
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from equipoise.errors import UserError
from equipoise.plans.futures import Engine, reason

CONNECT_SECONDS = 20
_SLURM = {"memory": "mem", "cpus": "cpus_per_task", "gpus": "gpus_per_node"}
HOURS = 4.0
"""The time of a SLURM job if none is given; a run that needs more goes on in another job."""

Resources = Mapping[str, Any]
"""What a command needs: ``partition``, ``account``, ``qos``, ``constraint``, ``time`` (seconds),
``memory`` (GiB), ``cpus`` and ``gpus``."""


def connection(kind: str, rest: str, resources: Resources) -> Callable[[Path], Engine]:
    """Return a function that connects an engine.

    Arguments:
        kind: A key of :data:`ENGINES`; empty: ``rest`` is ``module:factory``.
        rest: An address; empty: the engine decides.
        resources: What each command needs.

    Raises:
        UserError: If a package is missing.
    """
    if not kind:
        return partial(_made, rest)
    package, connect = ENGINES[kind]
    if find_spec(package) is None:
        raise UserError(f"--on {kind} needs {package}: pip install 'equipoise[{kind}]'")
    if rest and kind == "slurm":
        raise UserError("--on slurm has no address: run it where sbatch is")
    return partial(connect, rest, resources)


def _slurm(address: str, resources: Resources, folder: Path) -> Engine:
    del address
    if shutil.which("sbatch") is None or shutil.which("srun") is None:
        raise UserError("--on slurm: there is no sbatch and srun here; run it on a login node")
    return Engine(_submitit(resources, folder).submit, lambda: None)


def _submitit(resources: Resources, folder: Path, *, dry: bool = False) -> Any:
    """Return submitit's executor for SLURM; ``dry``: also where there is no SLURM."""
    kind = importlib.import_module("submitit").SlurmExecutor
    if dry:
        kind = type("DryExecutor", (kind,), {"affinity": classmethod(lambda cls: 1)})
    executor = kind(folder / "slurm")
    given = {_SLURM.get(key, key): value for key, value in resources.items()}
    if "mem" in given:
        given["mem"] = f"{round(1024 * given['mem'])}MB"
    given["time"] = max(1, round(resources.get("time", 3600 * HOURS) / 60))
    executor.update_parameters(job_name="equipoise", **given)
    return executor


def slurm_script(resources: Resources, folder: Path) -> str:
    """Return the script that would be submitted to SLURM for each command."""
    executor = _submitit(resources, folder, dry=True)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry"))


def _dask(address: str, resources: Resources, folder: Path) -> Engine:
    del resources, folder  # a worker of Dask has what it was started with
    with _reached("dask", address):
        distributed = importlib.import_module("distributed")
    for name in [*logging.root.manager.loggerDict]:
        if name.partition(".")[0] == "distributed":  # what is lost is said by us
            logging.getLogger(name).setLevel(logging.CRITICAL)
    given: dict[str, Any] = {"timeout": CONNECT_SECONDS, "set_as_default": False}
    if address.endswith(".json"):
        given["scheduler_file"] = address
    elif address:
        given["address"] = address
    elif not distributed.dask.config.get("scheduler-address", None):
        given |= {"dashboard_address": ":0", "silence_logs": logging.CRITICAL}  # a cluster here
    with _reached("dask", address), _uninterrupted():
        client = distributed.Client(**given)
    executor = client.get_executor()

    def submit(*call: Any) -> Any:
        until = time.monotonic() + CONNECT_SECONDS
        while client.status == "connecting" and time.monotonic() < until:
            time.sleep(0.1)
        if client.status != "running":
            raise ConnectionError("the scheduler does not answer")
        return executor.submit(*call)

    return Engine(submit, client.close)


def _ray(address: str, resources: Resources, folder: Path) -> Engine:
    del folder
    with _reached("ray", address), _uninterrupted():
        ray = importlib.import_module("ray")
        ray.init(address=address or None, log_to_driver=False, logging_level=logging.ERROR)
    names = {"cpus": "num_cpus", "gpus": "num_gpus"}
    given = {ours: resources[name] for name, ours in names.items() if name in resources}
    if "memory" in resources:
        given["memory"] = round(resources["memory"] * 2**30)

    def submit(function: Callable[..., int], *arguments: object) -> Any:
        task = ray.remote(max_retries=0, **given)(function)
        return task.remote(*arguments).future()

    return Engine(submit, ray.shutdown)


@contextmanager
def _reached(kind: str, address: str) -> Iterator[None]:
    """Explain an error of the block in a line."""
    try:
        yield
    except Exception as error:
        where = f" at {address}" if address else ""
        raise UserError(f"--on {kind}: cannot be reached{where}: {reason(error)}") from None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let the processes that the block starts ignore Ctrl-C: it is for this process, which saves.

    As of the shell they are in one group with it.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _made(spec: str, folder: Path) -> Engine:
    """Return the engine of a factory of the user's own."""
    del folder
    name, _, factory = spec.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        made = getattr(importlib.import_module(name), factory)()
    except Exception as error:
        raise UserError(f"--on {spec} failed: {reason(error)}") from None
    if not callable(getattr(made, "submit", None)):
        raise UserError(
            f"--on {spec} returned {type(made).__name__}: expected an object with submit, like an "
            "Executor of concurrent.futures"
        )
    return Engine(made.submit, getattr(made, "shutdown", lambda: None))


ENGINES: dict[str, tuple[str, Callable[[str, Resources, Path], Engine]]] = {
    "slurm": ("submitit", _slurm),
    "dask": ("distributed", _dask),
    "ray": ("ray", _ray),
}
"""By the word of ``--on``: the package, and what connects the engine."""
