"""Checksums of tensors and models: what a file holds, whatever the file looks like."""

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def model_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers, by name."""
    return _tensors_digest(model.state_dict(), b"")


def tensor_digest(value: Tensor) -> str:
    """Return the SHA-256 of a tensor: type, shape and bytes."""
    return content_digest({"": value}, {})


def content_digest(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Return the SHA-256 of named tensors and their metadata."""
    return _tensors_digest(tensors, json.dumps(dict(metadata), sort_keys=True).encode())


def _tensors_digest(tensors: Mapping[str, Tensor], head: bytes) -> str:
    digest = hashlib.sha256(head)
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        data = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
        digest.update(data.numpy().data)
    return digest.hexdigest()
