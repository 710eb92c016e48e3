"""The device a job runs on."""

__all__ = ["choose_device", "deterministic"]

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
    if name != "cpu" and not name.startswith("cuda"):
        raise UserError(f"device must be auto, cpu or cuda, got {name!r}")
    return torch.device(name)


def deterministic() -> None:
    """Ask for algorithms that give the same bits each time; before CUDA is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
