"""The pictures of the documents: the rooms of the code, and the report of the demo.

``python -m website.pictures`` (``make pictures``) writes docs/pictures. The second needs
runs/demo/report.html, which ``make demo`` writes, and Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "docs" / "pictures"

FLOORS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("cli", "commands and their options"),),
    (("plans", "compare, reproduce: tasks, processes"), ("paper", "the paper's figures, claims")),
    (
        ("jobs", "train, evaluate, verify, front, pick"),
        ("card", "what strangers can check"),
        ("report", "run folders to a page"),
    ),
    (("fronts", "models between two ends, measured and picked"),),
    (("settings", "recipes, methods, presets, explain"),),
    (("training", "the loop, learners, merge, t'"), ("evaluation", "judge, protocol, checks")),
    (("objectives", "what a learner minimises, attack included"),),
    (("attacks", "PGD, APGD, FAB, Square, AutoAttack, C&W"),),
    (("execution", "search form, precision, layout"), ("models", "networks, weights files")),
    (
        ("threat", "ball, range"),
        ("losses", "on logits"),
        ("draws", "randomness"),
        ("measures", "statistics"),
        ("stopwatch", "time"),
    ),
)
"""The rooms from top to bottom: each imports only what is further down, or at the side."""

SIDE: tuple[tuple[str, str], ...] = (
    ("store", "run folders, seals, locks"),
    ("data", "datasets, samples"),
    ("terminal", "progress, tables"),
    ("plugins", "--import, --trust"),
    ("sample", "which images"),
    ("parsing", "numbers in texts"),
    ("errors", "one line each"),
)
"""The rooms that several floors use."""

_WIDTH, _SIDE, _HEIGHT, _GAP = 620, 190, 50, 10
_STYLE = (
    "text{font-family:system-ui,sans-serif;fill:#1f2933}.n{font-weight:600;font-size:14px}"
    ".w{font-size:11.5px}rect{fill:#eef2f7;stroke:#9aa5b1}.s{fill:#fdf3e1;stroke:#d9a441}"
)


def rooms() -> str:
    """Return the rooms as SVG: floors, and at the side what several of them use."""
    whole = len(FLOORS) * (_HEIGHT + _GAP) - _GAP
    drawn = []
    for number, floor in enumerate(FLOORS):
        y: float = number * (_HEIGHT + _GAP)
        width = (_WIDTH - _GAP * (len(floor) - 1)) / len(floor)
        for place, (name, words) in enumerate(floor):
            drawn.append(_box(place * (width + _GAP), y, width, _HEIGHT, name, words, ""))
    high = (whole - _GAP * (len(SIDE) - 1)) / len(SIDE)
    for number, (name, words) in enumerate(SIDE):
        y = number * (high + _GAP)
        drawn.append(_box(_WIDTH + 30, y, _SIDE, high, name, words, ' class="s"'))
    box = f"-10 -10 {_WIDTH + 30 + _SIDE + 20} {whole + 20}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img">\n'
        f"<style>{_STYLE}</style>\n"
        f'<rect x="-10" y="-10" width="100%" height="100%" style="fill:#fff;stroke:none"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _box(x: float, y: float, width: float, height: float, name: str, words: str, of: str) -> str:
    """Return one room: a rectangle with its name and what it holds."""
    middle, line = x + width / 2, y + height / 2
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"{of}/>'
        f'<text class="n" x="{middle:g}" y="{line - 4:g}" text-anchor="middle">{name}</text>'
        f'<text class="w" x="{middle:g}" y="{line + 13:g}" text-anchor="middle">'
        f"{escape(words)}</text>"
    )


def photograph(page: Path, picture: Path, size: tuple[int, int] = (1100, 960)) -> None:
    """Write what Chromium shows of a page, as a PNG of 64 colours."""
    browser = shutil.which("chromium") or sys.exit("expected chromium on the PATH; install it")
    with tempfile.TemporaryDirectory() as folder:
        taken = Path(folder) / "taken.png"
        command = [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *(f"--window-size={size[0]},{size[1]}", f"--screenshot={taken}", page.as_uri()),
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        Image.open(taken).convert("RGB").quantize(64).save(picture, optimize=True)


def main() -> None:
    """Draw all pictures."""
    report = ROOT / "runs" / "demo" / "report.html"
    if not report.is_file():
        sys.exit(f"expected {report}; write it with: make demo")
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "rooms.svg").write_text(rooms(), encoding="utf-8")
    photograph(report, PICTURES / "report.png")


if __name__ == "__main__":
    main()
