"""How images of a user's own are read: the settings, and the names under which data are found."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from equipoise.errors import UserError, out_of_range

SMALLEST, LARGEST = 8, 512  # pixels a side
MOST_CHANNELS = 16
HUB = "hf-datasets:"
GIVEN = "python:"
"""What stands before the name of data that were given from Python."""

OWN = "the path of an .npz or a .csv file, a folder of images, or hf-datasets:NAME"

Resize = Literal["crop", "pad", "stretch"]
OnBadImage = Literal["refuse", "skip"]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How pictures in files become images of one size; the default reads them as they are.

    Arguments:
        size: Height and width of the images; None: that of the files, which must be the same.
        resize: How other sizes become this one: ``crop`` scales the shorter side and cuts the
            middle out, ``pad`` scales the longer side and adds a black border, ``stretch`` changes
            the proportions.
        channels: 1 for grey images, 3 for colour; None: 1 if all files are grey.
        on_bad_image: Whether a file that cannot be read is refused, or named and skipped.
        labels: A CSV file with a path, a label and perhaps a split in each line; None: folders
            name the classes.
        classes: A file with the names of all classes in the order of the model's outputs; None:
            the names that occur, sorted.
    """

    size: Annotated[int, f"[{SMALLEST}, {LARGEST}]"] | None = None
    resize: Resize = "crop"
    channels: Literal[1, 3] | None = None
    on_bad_image: OnBadImage = "refuse"
    labels: str | None = None
    classes: str | None = None

    def __post_init__(self) -> None:
        if problems := out_of_range(self):
            raise UserError("; ".join(problems))

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Reading":
        """Return the way in which ``inputs`` of a ``config.json`` were made from pictures."""
        if not inputs:
            return cls()
        channels: Any = 1 if inputs.get("mode") == "L" else 3
        size = inputs.get("size")
        side = size[0] if isinstance(size, list) and len({*size}) == 1 else None
        return cls(size=side, resize=inputs.get("resize", "crop"), channels=channels)

    def settled(self) -> "Reading":
        """Return the same with paths that mean the same from every folder."""
        files = {name: absolute(path) for name in FILES if (path := getattr(self, name))}
        return Reading(**{**vars(self), **files})

    def given(self) -> dict[str, object]:
        """Return the settings that differ from the defaults."""
        return {
            f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default
        }


FILES = ("labels", "classes")
"""The settings that are paths."""


def is_own(name: str, known: Collection[str]) -> bool:
    """Return whether a name of data is a place of the user's own, rather than one of ``known``."""
    if name in known:
        return False
    path = Path(name).expanduser()
    if name.startswith(HUB) or path.suffix.lower() in {".npz", ".csv"}:
        return True
    return "/" in name or path.is_dir()


def is_given(name: str) -> bool:
    """Return whether a name in a recipe is that of data which were given from Python."""
    return name.startswith(GIVEN)


def settled(name: str, known: Collection[str]) -> str:
    """Return the name of data that means the same from every folder."""
    if not is_own(name, known):
        return name
    if name.startswith(HUB):
        place = Path(name.removeprefix(HUB)).expanduser()
        return f"{HUB}{absolute(place)}" if place.is_dir() else name
    return absolute(name)


def absolute(path: str | Path) -> str:
    """Return a path that means the same from every folder."""
    return str(Path(path).expanduser().resolve())


def from_hub(name: str) -> bool:
    """Return whether a name has the form of a data set of the hub, like ``owner/name``."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name.removeprefix(HUB)) is not None
