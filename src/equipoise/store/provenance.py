"""The origin of a result: machine, versions, code. Torch is imported only when it is needed."""

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from equipoise.plugins import imported
from equipoise.version import __version__


def machine(device: str) -> dict[str, Any]:
    """Return torch, device, threads and platform, on which the bits of a result depend.

    Arguments:
        device: The name of the device, like ``"cpu"``.
    """
    import torch

    return {
        "torch": torch.__version__,
        "device": _described(device),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def _described(device: str) -> str:
    """Return a device with the name of its processor."""
    import torch

    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def provenance(device: str, seed: int) -> dict[str, Any]:
    """Return seed, versions, device, threads, platform, git commit, command and time."""
    import numpy

    commit, dirty = _git()
    return {
        "equipoise": __version__,
        **machine(device),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "git_commit": commit,
        "git_dirty": dirty,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "import": imported(),
        "command": command_line(),
    }


def command_line() -> str:
    """Return the command that runs, as text."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _git() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout of this package, and whether files were changed."""
    top = Path(__file__).resolve().parents[3]
    if not (top / ".git").exists():
        return None, None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(top), *arguments],  # noqa: S607 - the installed git
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            ).stdout.strip()
            for arguments in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(status)
