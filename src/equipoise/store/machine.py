"""The machine that computes: what the bits of a result depend on. Torch is imported late."""

__all__ = ["machine"]

import platform
from functools import cache
from pathlib import Path
from typing import Any


def machine(device: str) -> dict[str, Any]:
    """Return what the bits of a computation depend on: torch, device, threads, platform.

    Arguments:
        device: The device that is used, e.g. ``"cpu"``.
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
