"""The device a job runs on."""

import os

import torch

from equipoise.errors import UserError


def choose_device(name: str) -> torch.device:
    """Return a device by name; ``auto`` is CUDA where there is one.

    Raises:
        UserError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("device=cuda, but this torch sees no CUDA device; use device=cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device must be auto, cpu or cuda, got {name!r}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device must be auto, cpu or cuda, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"there is no {name}; this torch sees {torch.cuda.device_count()} device")
    return device


def deterministic() -> None:
    """Ask for algorithms that give the same bits each time; before CUDA is first used.

    It changes settings of the whole process: torch's for cuDNN, and one environment variable.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
