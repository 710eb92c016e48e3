"""Whether the constraints of `equipoise pick` hold on test images: independent trainings.

    python benchmarks/pick_trials.py runs/picks --data fashion-mnist mnist --seeds 10

Each trial trains a short run of a3gt on images, held-out images and weights of its own seed,
measures its front and asks twice for a model: for one nearly as accurate as the clean end (half a
point below its lower bound) and for one nearly as robust as the robust end (two points below).
The picked models are evaluated on test images: the first on all of them, the second on a part
spread over the set, under the attacks of the front. Finished trials are kept and not repeated.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from torch import nn

import equipoise as eq
from equipoise import data
from equipoise.data import Images
from equipoise.errors import RunError
from equipoise.evaluation import Judge
from equipoise.measures.statistics import interval
from equipoise.threat import Threat

EPS = {"fashion-mnist": "0.1", "mnist": "0.3", "digits": "0.15"}
SETTINGS = ("limit=4000", "validation=1000", "rounds=4", "batch_size=128", "keep=last")


def main() -> None:
    """Run the trials that are not done yet and print the results of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="where runs and results go")
    parser.add_argument("--data", nargs="+", default=["fashion-mnist", "mnist"], choices=EPS)
    parser.add_argument("--seeds", type=int, default=10, help="trials a dataset")
    parser.add_argument("-n", type=int, default=2000, help="test images under attack")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the training")
    options = parser.parse_intermixed_args()
    results = [
        trial(options.out, name, seed, options.n, options.settings)
        for seed in range(1, options.seeds + 1)
        for name in options.data
    ]
    for kind in ("min_clean", "min_robust"):
        print_result(kind, [result[kind] for result in results])


def trial(out: Path, name: str, seed: int, n: int, settings: list[str]) -> dict[str, Any]:
    """Return the results of a trial, from its file if it is done."""
    run, file = out / f"{name}-{seed}", out / f"{name}-{seed}.json"
    if file.exists():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return stored
    if not (run / "summary.json").exists():
        every = (f"eps={EPS[name]}", *SETTINGS, f"seed={seed}", *settings)
        own = {item.partition("=")[0]: item for item in every}.values()  # the last one counts
        words = ("train", "a3gt", "--data", name, "--model", "small-cnn", *own, "-q")
        resumed = ("train", "--resume", str(run), "-q")
        begun = (run / "recipe.yaml").exists()
        again = resumed if begun else (*words, "--out", str(run))
        subprocess.run((sys.executable, "-m", "equipoise", *again), check=True)
    front = eq.Front(run)
    points = front.measure(points=7)
    ends = min(points, key=lambda p: p.gamma), max(points, key=lambda p: p.gamma)
    wanted = {
        "min_clean": max(0.0, ends[0].clean_interval[0] - 0.005),
        "min_robust": max(0.0, ends[1].robust_interval[0] - 0.02),
    }
    result = {kind: judged(front, name, kind, value, n) for kind, value in wanted.items()}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(file, result, flush=True)  # noqa: T201
    return result


def judged(front: eq.Front, name: str, kind: str, value: float, n: int) -> dict[str, Any]:
    """Return a picked model's accuracy on test images, and the constraint."""
    try:
        clean = kind == "min_clean"
        picked = front.pick(min_clean=value) if clean else front.pick(min_robust=value)
    except RunError:
        return {"wanted": value, "gamma": None}
    test = data.load(name).test
    correct, seen = correct_clean(picked.model, test), len(test)
    if not clean:
        test = test.take(slice(None, None, max(1, len(test) // n)))
        correct, seen = robust(picked.model, test, front), len(test)
    return {"wanted": value, "gamma": picked.gamma, "correct": correct, "n": seen}


def correct_clean(model: nn.Module, images: Images) -> int:
    """Return how many images a model gets right."""
    return int((Judge(model).logits(images.pixels()).argmax(1) == images.y).sum())


def robust(model: nn.Module, images: Images, front: eq.Front) -> int:
    """Return how many images a model gets right under the attacks of a front."""
    result = eq.evaluate(
        model,
        images.pixels(),
        images.y,
        threat=Threat("linf", front.record.eps),
        attacks=list(front.record.attacks),
        individual=False,
        checks=False,
    )
    return round(result.robust_accuracy * len(images))


def print_result(kind: str, trials: list[dict[str, Any]]) -> None:
    """Print how often a constraint could be met, and how often it held."""
    met = [each for each in trials if each["gamma"] is not None]
    held = [each for each in met if each["correct"] >= each["wanted"] * each["n"]]
    missed = [
        f"{each['wanted']:.4f} wanted, {each['correct'] / each['n']:.4f} found "
        f"(95 %: {interval(each['correct'], each['n'])[0]:.4f}.."
        f"{interval(each['correct'], each['n'])[1]:.4f})"
        for each in met
        if each not in held
    ]
    print(f"{kind}: of {len(trials)} trials {len(met)} had a model; held in {len(held)}", *missed)  # noqa: T201


if __name__ == "__main__":
    main()
