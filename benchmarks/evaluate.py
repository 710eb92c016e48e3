"""Standard AutoAttack, ours against the authors' code: seconds, verdicts and memory in one call.

    python benchmarks/evaluate.py runs/X -n 500 --eps 0.3 --threads 2 --out autoattack.json

Each side runs in a process of its own, one after the other on the same machine, on the same
model, images, labels and number of threads; times are of the attack alone, without imports. The
peer is pyautoattack (`pip install -e '.[peers]'`) in float32, in batches of 250 as by default.
Ours runs as `equipoise evaluate` does, with and without its checks. Several `--repeats` alternate
the sides.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SIDES = ("peer", "ours", "ours-checked", "ours-float32")


def main() -> None:
    """Run the sides that are asked for, and print ratios."""
    options = _options()
    if options.side:
        print(json.dumps(_run(options)))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(options.repeats):
        for side in options.sides.split(","):
            words = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            out = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
            found.setdefault(side, []).append(json.loads(out.strip().splitlines()[-1]))
            _show(side, found[side][-1])
    summary = _compare(found)
    print(json.dumps(summary, indent=2))
    if options.out:
        options.out.write_text(json.dumps({"sides": found, "summary": summary}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a run folder")
    parser.add_argument("-n", type=int, default=500, help="the first N test images")
    parser.add_argument("--norm", default="linf")
    parser.add_argument("--eps", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=250)
    parser.add_argument("--precision", default="auto", help="of our search")
    parser.add_argument("--sides", default="peer,ours")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--out", type=Path, help="also write everything as JSON")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    import equipoise as eq
    from equipoise import data, recipe
    from equipoise.threat import Threat

    torch.set_num_threads(options.threads)
    settings = recipe.parse(recipe.read(Path(options.run) / "recipe.yaml"))
    test = data.load(settings.data, options.data_dir or settings.data_dir).test
    x, y = test.pixels()[: options.n], test.y[: options.n]
    model, threat = eq.load(options.run), Threat(options.norm, options.eps)
    before = _peak()
    run = _peer if options.side == "peer" else _ours
    began = time.perf_counter()
    robust, parts = run(model, x, y, threat, options)
    return {
        "seconds": time.perf_counter() - began,
        "robust": [int(i) for i in robust.nonzero()[:, 0]],
        "correct": int((_answers(model, x) == y).sum()),
        "n": len(y),
        "parts": parts,
        "peak_memory": _peak(),
        "memory_before": before,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _answers(model: Any, x: Any) -> Any:
    import torch

    with torch.no_grad():
        return torch.cat([model(part).argmax(1) for part in x.split(500)])


def _peer(model: Any, x: Any, y: Any, threat: Any, options: argparse.Namespace) -> Any:
    from pyautoattack import AutoAttack

    norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
    attack = AutoAttack(model, norm=norm, eps=threat.eps, seed=options.seed, device="cpu")
    attack.verbose = False
    found = attack.run_standard_evaluation(x, y, batch_size=options.batch_size)
    x_adv = found[0] if isinstance(found, tuple) else found
    return _answers(model, x_adv) == y, {}


def _ours(model: Any, x: Any, y: Any, threat: Any, options: argparse.Namespace) -> Any:
    import equipoise as eq

    result = eq.evaluate(
        model,
        x,
        y,
        threat=threat,
        attacks="autoattack",
        seed=options.seed,
        batch_size=options.batch_size,
        precision="float32" if options.side == "ours-float32" else options.precision,
        checks=options.side == "ours-checked",
    )
    parts = {
        name: {
            "attacked": int(o.attacked.sum()),
            "broken": int(o.broken.sum()),
            "seconds": round(o.seconds, 2),
            "forwards": o.forwards,
            "backwards": o.backwards,
        }
        for name, o in result.outcomes.items()
    }
    bad = [f.check for f in result.findings if f.status in ("warning", "failed")]
    return result.robust, parts | {"precision": result.precision, "alarms": bad}


def _peak() -> int:
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024


def _show(side: str, found: dict[str, Any]) -> None:
    share = len(found["robust"]) / found["n"]
    print(
        f"{side:12}  {found['seconds']:8.1f} s  robust {share:.2%} of {found['n']}, "
        f"peak memory {found['peak_memory'] / 2**20:.0f} MiB",
        flush=True,
    )


def _compare(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for side, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        summary[side] = {
            "seconds": [min(seconds), statistics.median(seconds), max(seconds)],
            "robust_accuracy": len(runs[0]["robust"]) / runs[0]["n"],
            "peak_mib": round(max(run["peak_memory"] for run in runs) / 2**20),
        }
    if "peer" not in found:
        return summary
    theirs = found["peer"][0]
    for side in [side for side in found if side != "peer"]:
        pairs = zip(found["peer"], found[side], strict=True)
        ratios = [a["seconds"] / b["seconds"] for a, b in pairs]
        mine = set(found[side][0]["robust"])
        summary[side] |= {
            "times_faster": [min(ratios), statistics.median(ratios), max(ratios)],
            "repeats": len(ratios),
            "robust_for_peer_only": sorted(set(theirs["robust"]) - mine),
            "robust_for_us_only": sorted(mine - set(theirs["robust"])),
        }
    return summary


if __name__ == "__main__":
    main()
