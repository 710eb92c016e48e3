"""What a front keeps of every model that was measured: a file each, whole or not there.

A file is named by what its verdicts depend on: the weights, the images, the threat, the attacks
and their settings. The same question about the same weights is answered from the file, whoever
asks, in whichever order; everything else is measured anew.
"""

__all__ = ["FOLDER", "Ledger"]

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from equipoise.fronts.measure import Measured
from equipoise.store.digests import content_digest
from equipoise.store.runs import Run

FOLDER = "front"
_TENSORS = ("correct", "robust", "prediction", "adversarial_prediction", "x_adv")
_COUNTS = tuple(f.name for f in fields(Measured) if f.name not in _TENSORS)


class Ledger:
    """The measured models of a run folder, in its subfolder ``front``.

    Arguments:
        run: The run folder.
        warn: Told of a file that is damaged; what it held is measured again.
    """

    def __init__(self, run: Run, warn: Callable[[str], None] = lambda sentence: None) -> None:
        self.run, self.warn = run, warn

    @staticmethod
    def name(identity: Mapping[str, Any]) -> str:
        """Return the file of what an identity names, from the run folder."""
        text = json.dumps(dict(identity), sort_keys=True)
        return f"{FOLDER}/{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"

    def find(self, identity: Mapping[str, Any]) -> Measured | None:
        """Return what is known under an identity; None: nothing that is whole."""
        name = self.name(identity)
        if not (self.run.path / name).is_file():
            return None
        found = self.read(name)
        if found is None or found[0] != json.loads(json.dumps(dict(identity))):
            self.warn(f"{self.run.path / name} is damaged: it is measured again")
            return None
        return found[1]

    def read(self, name: str) -> tuple[dict[str, Any], Measured] | None:
        """Return the identity and the verdicts that a file holds; None if it is damaged.

        Arguments:
            name: The file, from the run folder.
        """
        try:
            with safe_open(self.run.path / name, "pt") as file:
                metadata = dict(file.metadata() or {})
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if metadata.pop("sha256") != content_digest(tensors, metadata):
                return None
            counts = json.loads(metadata["counts"])
            return json.loads(metadata["identity"]), Measured(**tensors, **counts)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError):
            return None

    def write(self, identity: Mapping[str, Any], measured: Measured) -> str:
        """Keep verdicts, whole or not at all.

        Returns:
            The file, from the run folder.
        """
        tensors: dict[str, Tensor] = {key: getattr(measured, key).contiguous() for key in _TENSORS}
        metadata = {
            "identity": json.dumps(dict(identity)),
            "counts": json.dumps({key: getattr(measured, key) for key in _COUNTS}),
        }
        metadata["sha256"] = content_digest(tensors, metadata)
        payload = save(tensors, metadata=metadata)
        name = self.name(identity)
        self.run.write(name, lambda file: file.write(payload))
        return name

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.run.path / FOLDER
