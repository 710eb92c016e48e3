"""The demo: training, evaluation and report on embedded data, in under two minutes."""

import shutil
from pathlib import Path
from typing import Any

from equipoise.errors import UserError
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.tables import write_table
from equipoise.jobs.train import train
from equipoise.report.page import build
from equipoise.settings import recipe
from equipoise.terminal.progress import Console

RECIPES: dict[str, dict[str, Any]] = {
    "standard": {"method": "standard", "rounds": 15, "batch_size": 64},
    "a3gt": {"method": "a3gt", "rounds": 30, "batch_size": 64},
}
EPS = (0.05, 0.1, 0.15, 0.2)
ATTACKS = "fgsm,pgd-20,mi-fgsm-10,cw-inf-20"


def run_demo(out: Path, *, console: Console) -> Path:
    """Train ``standard`` and ``a3gt`` on the digits, attack both, and write a report.

    Arguments:
        out: The folder of the runs and of ``report.html``; an earlier demo there is replaced.
        console: Where progress is shown.

    Returns:
        The path of the report.

    Raises:
        UserError: If the folder holds something else.
    """
    own = {*RECIPES, "report.html"}
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - own):
        raise UserError(f"{out} holds more than a demo; choose another --out")
    if out.exists():
        shutil.rmtree(out)
    folders = {name: out / name for name in RECIPES}
    for name, given in RECIPES.items():
        train(recipe.parse({"data": "digits", **given}), folders[name], console=console)
    records = {
        name: evaluate_run(folder, attacks=ATTACKS, eps=EPS, console=console)
        for name, folder in folders.items()
    }
    for name, lines in records.items():
        write_table([line for line in lines if line["eps"] == EPS[2]], title=name)
    page = build(list(folders.values()), out / "report.html")
    console.say(f"report: {page}")
    return page
