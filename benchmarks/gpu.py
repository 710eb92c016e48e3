"""Everything to be measured on a GPU, within some minutes: ``benchmarks/gpu.sh``.

Each part runs in a process of its own and writes what it has found so far. A part that fails, or
whose time is over, leaves the others as they are.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.gpu_parts import HERE, PARTS, Order
from equipoise.cli import run as run_app
from equipoise.errors import RunError, UserError

NAME = "benchmarks/gpu.sh"
FORMAT = 1
SECONDS = 480  # of which the parts have their shares
LAST = 40  # lines of the log of a part that failed

app = typer.Typer(
    name="gpu",
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.command()
def gpu(
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The JSON file.")] = Path("gpu.json"),
    device: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    tiny: Annotated[
        bool, typer.Option("--tiny", help="The smallest sizes, to try the script itself.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="The most time for everything.")] = SECONDS / 60,
    part: Annotated[str | None, typer.Option(hidden=True)] = None,
    folder: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Test and time this project on one GPU, in at most eight minutes, without a network.

    In order: the best matrix product, the tests for CUDA, rounds (epochs) of pgd-at and a3gt
    with PGD-10 on 50,000 images of 3x32x32 and a ResNet-18, a step of them against a plain loop,
    and the audited search and AutoAttack on 1,000 images against pyautoattack (where that is
    installed). All of it goes to one JSON file, which is written anew after each part.
    """
    if part is not None and folder is not None:
        _measure(part, Order(folder=folder, device=device, tiny=tiny), out)
        return
    from equipoise.jobs.device import choose_device

    if minutes <= 0:
        raise UserError(f"--minutes must be above 0, got {minutes:g}")
    choose_device(device)
    if not _all(out, device, tiny, minutes * 60):
        raise RunError(f"not every part is done: see {out}")


def _all(out: Path, device: str, tiny: bool, seconds: float) -> bool:
    """Run the parts one after the other; return whether all are done."""
    ends = time.monotonic() + seconds
    content: dict[str, Any] = {"format": FORMAT, "device": device, "tiny": tiny, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, most) in PARTS.items():
            limit = min(most * seconds / SECONDS, ends - time.monotonic())
            found = _part(name, Path(folder), device, tiny, limit)
            content["parts"][name] = found
            out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            typer.echo(f"{name}: {found['status']}, {found['seconds']:.0f} s")
            for line in found.get("log", ()):
                typer.echo(f"  {line}", err=True)
        content["summary"] = summary(content["parts"])
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        typer.echo("\n".join(content["summary"]))
    return all(found["status"] == "done" for found in content["parts"].values())


def summary(parts: dict[str, Any]) -> list[str]:
    """Return what was found, in sentences; parts without results are left out."""
    found = {name: part["found"] or {} for name, part in parts.items()}
    best = found["peak"].get("flops_per_second", {}).get("bfloat16")
    lines = []
    for method, took in found["training"].get("methods", {}).items():
        seconds = statistics.median(took["seconds_a_round"])
        lines.append(f"equipoise train {method}: {seconds:.2f} s a round")
    for title, sides in found["steps"].get("cases", {}).items():
        for name, side in sides.items():
            rate = side["flops_per_second"]
            share = f", {rate / best:.1%} of the best bfloat16 product" if best else ""
            lines.append(
                f"a step of {title}, {name}: {side['seconds_an_epoch']:.2f} s an epoch, "
                f"{side['times_ours']['median']:.2f} times ours, {rate:.3g} FLOP/s{share}"
            )
    for name, side in found["judging"].get("sides", {}).items():
        differ = len(side["robust_here_only"]) + len(side["robust_for_first_only"])
        lines.append(
            f"{name}: {side['seconds']['median']:.1f} s, robust accuracy "
            f"{side['robust_accuracy']:.1%}, {differ} verdicts other than the first side's"
        )
    for name, remedy in found["judging"].get("absent", {}).items():
        lines.append(f"{name}: not measured; {remedy}")
    return lines


def _part(name: str, folder: Path, device: str, tiny: bool, limit: float) -> dict[str, Any]:
    """Run one part in a process of its own, for so many seconds at most."""
    if limit <= 0:
        return {"status": "not begun: no time was left", "seconds": 0.0, "found": None}
    file, began = folder / f"{name}.json", time.monotonic()
    words = [str(file), "--part", name, "--folder", str(folder), "--device", device]
    words += ["--tiny"] if tiny else []
    log = file.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", *words],
            cwd=HERE,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
            status = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            status = f"out of time after {limit:.0f} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
    ended = {"status": status, "seconds": time.monotonic() - began, "found": found}
    if status == "done":
        return ended
    last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST:]
    return ended | {"log": last}


def _measure(part: str, order: Order, out: Path) -> None:
    """Measure a part; the file holds what was found so far."""
    from equipoise.jobs.device import deterministic

    deterministic()
    new = out.with_suffix(".new")
    for found in PARTS[part][0](order):
        new.write_text(json.dumps(found), encoding="utf-8")
        new.replace(out)


def main() -> None:
    """Run the command line."""
    run_app(app, NAME)


if __name__ == "__main__":
    main()
