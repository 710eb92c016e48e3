"""Builds the wheel and runs the demo from it, in an environment and a folder of its own.

``python tests/wheel.py``, or ``make wheel-test``. It exits with 1 and one line if the wheel
has a file that is not part of the package, lacks one, or cannot run the demo.
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def built(folder: Path) -> Path:
    """Return the wheel of this checkout, built into a folder."""
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT))
    subprocess.run(pip, check=True)
    (wheel,) = folder.glob("equipoise-*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """Exit with a line where the wheel is not the package, the whole package and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    package = {
        path.relative_to(source).as_posix()
        for path in (source / "equipoise").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    for name in sorted(held - package):
        sys.exit(f"{wheel.name} holds {name}, which is no file of the package")
    for name in sorted(package - held):
        sys.exit(f"{wheel.name} lacks {name}")


def run_demo(wheel: Path, folder: Path) -> None:
    """Install the wheel in an empty environment, run the demo and look for its report."""
    venv.create(folder / "venv", with_pip=True)
    binaries = folder / "venv" / "bin"
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = (binaries / "python", "-m", "pip", "install", "-q", f"{wheel}[torch-tested]")
    subprocess.run(install, cwd=folder, env=outside, check=True)
    demo = subprocess.run((binaries / "equipoise", "demo"), cwd=folder, env=outside, check=False)
    report = folder / "runs" / "demo" / "report.html"
    if demo.returncode or not report.is_file() or "<html" not in report.read_text("utf-8"):
        sys.exit(
            f"equipoise demo ended with exit code {demo.returncode} and left no whole {report}"
        )


def main() -> None:
    """Build, look into the wheel, run the demo."""
    with tempfile.TemporaryDirectory(prefix="equipoise-wheel-") as name:
        folder = Path(name)
        wheel = built(folder)
        check_content(wheel)
        run_demo(wheel, folder)
        sys.stdout.write(f"{wheel.name} holds the package alone, and its demo wrote a report\n")


if __name__ == "__main__":
    main()
