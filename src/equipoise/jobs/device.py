"""The device a job runs on."""

import os

import torch

from equipoise.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA if there is a CUDA device.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda, got {name!r}")
    count = len(cuda_devices())
    if device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f"there is no device {name}: torch has {count} CUDA devices; use cpu")
    return device


def cuda_devices() -> range:
    """Return the indices of the CUDA devices; none if CUDA cannot start, as with an old driver."""
    return range(torch.cuda.device_count() if torch.cuda.is_available() else 0)


def deterministic() -> None:
    """Make CUDA give the same bits each time; to be called before CUDA is first used.

    It changes settings of the whole process: torch's for cuDNN, and one environment variable.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
