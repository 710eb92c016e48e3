"""The adversarial examples of a large evaluation that is not finished, in pieces.

A piece is a sealed file of some images. A save writes those in which an example has changed, then
the file of the evaluation, which names the pieces, and only then removes those that it names no
more. So a save costs what has changed, and whatever happens, one state is there as a whole. At the
end all examples are written once, into the file of the evaluation.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from equipoise.data.rows import empty
from equipoise.errors import UserError
from equipoise.evaluation.result import Result
from equipoise.store import files
from equipoise.store.sealed import read_arrays, stamped
from equipoise.store.verdicts import UNREADABLE

FOLDER = "pieces"
BYTES = 1 << 26  # of a piece, about


class Pieces:
    """The pieces of one evaluation.

    Arguments:
        folder: Their folder.
        again: The command that continues after a full disk, for the message.
    """

    def __init__(self, folder: Path, again: str = "") -> None:
        self.folder, self.again = folder, again
        self.names: list[str] = []
        self.margin = torch.zeros(0)

    def write(self, x_adv: Tensor, margin: Tensor) -> str:
        """Write the pieces that have changed; return what the evaluation says of all, as JSON.

        An example changes only if its margin does. A piece without any point is not written: there
        each example is the image itself, and its margin infinite.

        Arguments:
            x_adv: The examples, with shape (N, ...).
            margin: Their margins, with shape (N,).
        """
        each = max(1, BYTES // max(1, x_adv[0].nbytes))
        count = -(-len(x_adv) // each)
        before = self.names if len(self.margin) == len(margin) else [""] * count
        names = []
        for k in range(count):
            rows = slice(k * each, (k + 1) * each)
            if before[k] and torch.equal(margin[rows], self.margin[rows]):
                names.append(before[k])
            elif bool((margin[rows] == torch.inf).all()):
                names.append("")
            else:
                names.append(self._write(k, x_adv[rows].numpy()))
        self.names, self.margin = names, margin.clone()
        return json.dumps({"shape": [*x_adv.shape], "each": each, "files": names})

    def _write(self, k: int, x_adv: Any) -> str:
        arrays = {"x_adv": np.ascontiguousarray(x_adv)}
        sealed = stamped(arrays, {"piece": str(k)})
        name = f"{k:05}-{sealed['sha256'][:16]}.safetensors"
        files.write(self.folder / name, save(arrays, metadata=sealed), again=self.again)
        return name

    def read(self, stored: str, margin: Tensor) -> Tensor:
        """Return the examples, verified; zeros where no point was found in a whole piece.

        Raises:
            UserError: If a piece is damaged or missing.
        """
        content = json.loads(stored)
        x_adv, each = empty(content["shape"], torch.float32), int(content["each"])
        for k, name in enumerate(content["files"]):
            rows = slice(k * each, (k + 1) * each)
            if not name:
                x_adv[rows] = 0
                continue
            path = self.folder / name
            try:
                metadata, arrays = read_arrays(path, kind="pt")
                if name != f"{k:05}-{metadata['sha256'][:16]}.safetensors":
                    raise ValueError("it is another piece")
                x_adv[rows] = arrays["x_adv"]
            except (*UNREADABLE, RuntimeError) as error:
                raise UserError(
                    f"{path}, the examples of images {rows.start + 1} to "
                    f"{min(rows.stop, len(x_adv))}, is damaged ({' '.join(str(error).split())}); "
                    "put it back from a copy, or remove the evaluation and evaluate again"
                ) from None
        self.names, self.margin = content["files"], margin.clone()
        return x_adv

    def tidy(self, names: list[str]) -> None:
        """Remove all pieces but some; nothing needs them."""
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            if path.name not in names:
                with suppress(OSError):
                    path.unlink()
        if not names:
            with suppress(OSError):
                self.folder.rmdir()
                self.folder.parent.rmdir()


def completed(result: Result, tensors: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Return the tensors of an unfinished evaluation in pieces with its images.

    Where no point was found the examples become the images, in place.
    """
    none = (result.margin == torch.inf).nonzero()[:, 0]
    for row in none.tolist():
        result.x_adv[row] = x[row]
    return {**tensors, "x": x}
