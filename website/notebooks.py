"""Notebooks of the examples, made from the scripts: ``python -m website.notebooks``.

A script has cells in the percent format: ``# %%`` begins code, ``# %% [markdown]`` a text, which
stands in comments.
"""

import json
import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FOLDER = EXAMPLES / "notebooks"


def scripts() -> list[Path]:
    """Return the scripts that have cells."""
    return [path for path in sorted(EXAMPLES.glob("*.py")) if path.read_text().startswith("# %%")]


def notebook(script: str) -> str:
    """Return the notebook of a script, without outputs."""
    cells = []
    for number, (kind, text) in enumerate(_cells(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell | {"source": text.splitlines(keepends=True)})
    about = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    content = {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _cells(script: str) -> list[tuple[str, str]]:
    """Return kind and text of each cell."""
    parts = re.split(r"^# %%( \[markdown\])?\n", script, flags=re.MULTILINE)[1:]
    cells = []
    for marked, text in zip(parts[::2], parts[1::2], strict=True):
        if marked:
            cells.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            cells.append(("code", text.strip()))
    return cells


def main() -> None:
    """Write the notebooks."""
    FOLDER.mkdir(exist_ok=True)
    for path in scripts():
        (FOLDER / f"{path.stem}.ipynb").write_text(notebook(path.read_text()), encoding="utf-8")


if __name__ == "__main__":
    main()
