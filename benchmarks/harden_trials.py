"""Whether the floor of `equipoise harden` holds on test images: independent trials.

    python benchmarks/harden_trials.py runs/hardenings --data fashion-mnist --trials 20

Each trial draws training and validation images of its own from the training set, trains a
non-robust model on the former, and hardens it: the floor is promised from the validation images.
Then original and hardened model classify all test images. A promise holds if the drop there is at
most the allowed one; as test images are a sample, too, it is also said whether the drop is above
it with 95 % confidence. With `--peer` fine-tuning with pgd-at from the same weights, at equally
many gradient evaluations, is attacked on the same test images as the hardened model. Finished
trials are kept, an interrupted one goes on.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import equipoise as eq
from equipoise import data
from equipoise.data import Images
from equipoise.evaluation import Judge
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.harden import harden_recipe
from equipoise.jobs.hardened import Hardened
from equipoise.jobs.train import resume, train
from equipoise.measures.paired import drop_bound
from equipoise.measures.statistics import interval
from equipoise.settings.recipe import combine, overrides, parse
from equipoise.store.files import write
from equipoise.store.runs import Run
from equipoise.terminal.progress import Console

EPS = {"fashion-mnist": 8 / 255, "mnist": 0.1, "cifar10": 2 / 255}


def main() -> None:
    """Run the trials that are not done yet, and print the results of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="where runs and results go")
    parser.add_argument("--data", default="fashion-mnist", choices=EPS)
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--train", type=int, default=8000, help="training images")
    parser.add_argument("--validation", type=int, default=5000, help="validation images")
    parser.add_argument("--before", type=int, default=12, help="rounds of the non-robust model")
    parser.add_argument("--drop", type=float, default=0.01, help="the allowed loss")
    parser.add_argument("-n", type=int, default=500, help="test images under attack")
    parser.add_argument("--peer", action="store_true", help="also fine-tune with pgd-at")
    parser.add_argument("--minutes", type=float, help="begin no trial after this time")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the hardening")
    options = parser.parse_intermixed_args()
    began, results = time.monotonic(), []
    for seed in range(1, options.trials + 1):
        late = options.minutes and time.monotonic() - began > 60 * options.minutes
        done = (options.out / f"{options.data}-{seed}.json").is_file()
        if done or not late:
            results.append(trial(options, seed))
            sys.stdout.write(f"{json.dumps(results[-1])}\n")
    print_results(results, options.drop)


def trial(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Return the results of a trial, from its file if it is done."""
    file = options.out / f"{options.data}-{seed}.json"
    if file.is_file():
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return stored
    folder = options.out / f"{options.data}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    images = folder / "images.npz"
    if not images.is_file():
        draw(options, seed, images)
    common = {"data": str(images), "model": options.model, "seed": seed}
    before = {"method": "standard", "rounds": options.before, "validation": 500, "keep": "last"}
    trained(parse(common | before), folder / "standard")
    weights = {"weights": str(folder / "standard" / "model.safetensors")}
    began = time.monotonic()
    result = harden_recipe(
        combine(common | weights | {"eps": EPS[options.data]}, overrides(options.settings)),
        folder / "hard",
        max_clean_drop=options.drop,
        n=options.n,
        console=Console(),
    )
    test = data.load(str(images)).test
    right = [correct(model, test) for model in (eq.load(folder / "standard"), result.model)]
    lost, gained = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    found = {
        "seed": seed,
        "promised": result.promised,
        "in_words": result.result["in_words"],
        "test": len(test),
        "original": float(right[0].mean()),
        "hardened": float(right[1].mean()),
        "lost": lost,
        "gained": gained,
        "robust": [result.result[name]["robust"] / options.n for name in ("original", "hardened")],
        "robust_at_least": result.result["hardened"]["robust_at_least"],
        "seconds": {"scan": result.record["scan"]["seconds"], "all": time.monotonic() - began},
    }
    if options.peer:
        found["pgd-at"] = peer(options, folder, common | weights, result, test)
    write(file, json.dumps(found, indent=2) + "\n")
    return found


def draw(options: argparse.Namespace, seed: int, file: Path) -> None:
    """Write training and validation images that are drawn by a seed, and all test images."""
    whole = data.load(options.data, os.environ.get("EQUIPOISE_DATA"))
    order = torch.randperm(len(whole.train), generator=torch.Generator().manual_seed(seed))
    rows = order[: options.train], order[options.train : options.train + options.validation]
    parts = {"train": whole.train.take(rows[0]), "val": whole.train.take(rows[1])}
    arrays = {"eps": np.asarray(EPS[options.data]), "classes": np.asarray(whole.classes)}
    arrays |= {"pad": np.asarray(whole.pad), "flip": np.asarray(whole.flip)}
    for name, part in (parts | {"test": whole.test}).items():
        arrays |= {f"x_{name}": np.asarray(part.x[:]), f"y_{name}": part.y.numpy()}
    write(file, lambda stream: np.savez(stream, allow_pickle=False, **arrays))


def trained(recipe: Any, out: Path) -> Run:
    """Train, or continue, or return what is trained."""
    begun = (out / "recipe.yaml").is_file()
    return resume(out, console=Console()) if begun else train(recipe, out, console=Console())


def peer(
    options: argparse.Namespace,
    folder: Path,
    given: dict[str, Any],
    result: Hardened,
    test: Images,
) -> dict[str, Any]:
    """Return the accuracies of fine-tuning with pgd-at at as many gradient evaluations."""
    training = Run(result.path / "training")
    spent = float(training.read_json("summary.json")["gradient_evaluations"])
    images = int(training.read_json("provenance.json")["data"]["train"])
    recipe = parse(given | {"method": "pgd-at", "eps": EPS[options.data], "rounds": 1})
    cost = recipe.settings.build(recipe.threat(0.0)).cost(1)
    rounds = max(1, round(spent / (cost * images)))
    settings = {"method": "pgd-at", "rounds": rounds, "validation": 500, "eps": EPS[options.data]}
    run = trained(parse(given | settings), folder / "pgd-at")
    lines = evaluate_run(run.path, attacks="audited", n=options.n, console=Console())
    worst = next(line for line in lines if line["attack"] == "worst-case")
    clean = float(correct(run.model(), test).mean())
    return {"rounds": rounds, "clean": clean, "robust": worst["accuracy"]}


def correct(model: nn.Module, images: Images) -> Any:
    """Return which images a model classifies correctly, as an array."""
    logits = Judge(model.eval(), 500).logits(images.pixels())
    return (logits.argmax(1) == images.y).numpy()


def print_results(results: list[dict[str, Any]], drop: float) -> None:
    """Print how often promises held."""
    promised = [each for each in results if each["promised"]]
    kept = [(e["lost"] - e["gained"]) / e["test"] <= drop for e in promised]
    clear = [-drop_bound(e["gained"], e["lost"], e["test"]) > drop for e in promised]
    low, high = interval(sum(kept), len(kept))
    sys.stdout.write(
        f"{len(results)} trials, {len(promised)} with a promise: it held on test images in "
        f"{sum(kept)} ({low:.0%} .. {high:.0%}), and was clearly broken in {sum(clear)}\n"
    )


if __name__ == "__main__":
    main()
