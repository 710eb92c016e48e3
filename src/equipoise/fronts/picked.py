"""A picked model: an ordinary one, in a folder like any other run's."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from equipoise.errors import UserError
from equipoise.fronts.picking import Choice
from equipoise.plugins import command
from equipoise.store.digests import model_digest
from equipoise.store.runs import PICKED, Run, is_free

_COPIED = ("config.json", "provenance.json")


@dataclass(frozen=True, eq=False, repr=False)
class Picked:
    """A model that was picked from a front.

    Arguments:
        model: The model, in eval mode, on the CPU.
        choice: Why this one: the constraint, its bound, what was measured.
        run: The run folder of the front.
        origin: What the front is: its ends and how it was measured.
    """

    model: nn.Module
    choice: Choice
    run: Run
    origin: dict[str, Any] = field(repr=False)

    def __repr__(self) -> str:
        return f"Picked({str(self.choice)!r} of {str(self.run.path)!r})"

    @property
    def gamma(self) -> float:
        """Where on the line the model is."""
        return self.choice.gamma

    def write(self, out: str | Path) -> Run:
        """Write the model as the folder of a finished run.

        Arguments:
            out: The folder; it must not exist, or be empty.

        Raises:
            UserError: If it is something else, or cannot be written.
        """
        path = Path(out)
        with Run(path).lock("making a run"):
            return self._write(path)

    def _write(self, path: Path) -> Run:
        if not is_free(path):
            raise UserError(f"{path} exists; choose another --out, or remove it")
        recipe = (self.run.path / "recipe.yaml").read_text(encoding="utf-8")
        run, digest = Run.create(path, recipe), model_digest(self.model)
        try:
            for name in _COPIED:
                if (self.run.path / name).is_file():
                    run.write_json(name, self.run.read_json(name))
            run.write_model("model.safetensors", self.model.state_dict())
            content = {
                "format": 1,
                "from": str(self.run.path),
                **self.choice.content(),
                "front": self.origin,
                "sha256": digest,
                "command": command("pick", self.run.path),
            }
            run.write_json(PICKED, content)
            summary = {"finished": True, "rule": str(self.choice), "sha256": {"model": digest}}
            run.write_json("summary.json", summary)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)  # half a folder would pass for a run
            raise
        return run
