"""Where a result comes from: versions, device, code. No torch is imported until it is asked."""

__all__ = ["describe_device", "provenance"]

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.own import imported


def provenance(device: str, seed: int) -> dict[str, Any]:
    """Return seed, versions, device, threads, platform, git commit, command and time.

    Arguments:
        device: The device that is used, e.g. ``"cpu"``.
        seed: The seed.
    """
    import numpy
    import torch

    commit, dirty = _git()
    return {
        "equipoise": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "git_commit": commit,
        "git_dirty": dirty,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "import": imported(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def describe_device(device: str) -> str:
    """Return a device with the name of its processor."""
    import torch

    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({_processor()})"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _git() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout this package runs from, and whether it was changed."""
    top = Path(__file__).resolve().parents[2]
    if not (top / ".git").exists():
        return None, None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(top), *arguments],  # noqa: S607 - whichever git is installed
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
