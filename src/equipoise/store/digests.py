"""Checksums of models and tensors: the same content has the same checksum in every file."""

import hashlib
from collections.abc import Mapping

from torch import Tensor, nn, uint8


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, by name."""
    return _digest(model.state_dict(), b"")


def tensor_digest(value: Tensor) -> str:
    """Return the SHA-256 of a tensor: type, shape and bytes."""
    return _digest({"": value}, b"{}")


def _digest(tensors: Mapping[str, Tensor], head: bytes) -> str:
    digest = hashlib.sha256(head)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data = value.detach().cpu().contiguous().view(-1).view(uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()
