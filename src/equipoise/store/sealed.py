"""Sealed files: tensors with metadata, or JSON, with checksums of all of their content.

A file of tensors has a SHA-256 of each tensor and one of the metadata, so that single tensors can
be checked without reading the others. A checksum shows accidents; :mod:`equipoise.jobs.verify`
finds files that were changed and sealed again. No torch is imported.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

_KINDS = {"BOOL": "bool", "U": "uint", "I": "int", "F": "float", "BF": "bfloat"}


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return content for JSON with its SHA-256."""
    text = json.dumps(content, sort_keys=True)
    return {**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Return whether sealed content has the right SHA-256."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return bool(seal(rest)["sha256"] == content.get("sha256"))


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 of an array: type, shape and bytes."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def stamped(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> dict[str, str]:
    """Return the metadata of arrays with the checksums of both."""
    digests = {name: array_digest(array) for name, array in sorted(arrays.items())}
    return seal({**metadata, "digests": json.dumps(digests)})


def read_arrays(
    path: Path, wanted: Callable[[str], bool] = lambda name: True, kind: str = "np"
) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the metadata of a sealed file and some of its arrays, all of them verified.

    Arguments:
        path: The file.
        wanted: Whether an array is wanted, by its name.
        kind: ``"np"`` for arrays, ``"pt"`` for tensors.

    Raises:
        OSError, SafetensorError, ValueError: If it cannot be read or is damaged.
    """
    if not path.is_file():  # to open a pipe would wait for its writer
        raise FileNotFoundError(f"{path.name} is no file")
    with safe_open(str(path), framework=kind) as file:
        metadata = dict(file.metadata() or {})
        names = set(file.keys())
        arrays = {name: file.get_tensor(name) for name in sorted(names) if wanted(name)}
    digests = json.loads(metadata["digests"]) if "digests" in metadata else {}
    if not is_sealed(metadata) or set(digests) != names:
        raise ValueError("its checksum differs")
    for name, array in arrays.items():
        if array_digest(np.asarray(array)) != digests[name]:
            raise ValueError(f"the checksum of {name} differs")
    return metadata, arrays


def are_current(folder: Path, which: str, digest: str) -> bool:
    """Return whether a run folder has weights with this checksum now, or has no such file."""
    path = folder / f"{which}.safetensors"
    return not path.is_file() or weights_digest(path) == digest


def weights_digest(path: Path) -> str:
    """Return the SHA-256 of a file of weights, like ``digests.model_digest`` of the model.

    Raises:
        OSError, ValueError, LookupError: If it cannot be read.
    """
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    digest = hashlib.sha256()
    for name in sorted(key for key in header if key != "__metadata__"):
        entry = header[name]
        shape, (first, end) = tuple(entry["shape"]), entry["data_offsets"]
        kind = entry["dtype"].rstrip("0123456789")
        dtype = f"torch.{_KINDS[kind]}{entry['dtype'].removeprefix(kind)}"
        digest.update(f"{name} {dtype} {shape}\n".encode())
        digest.update(data[start + first : start + end])
    return digest.hexdigest()
