"""Training on pictures in a file that is mapped into memory: anonymous memory, and speed.

``python -m benchmarks.pictures FOLDER [--images 20000] [--size 128] [--pairs 30]`` writes so many
JPEG pictures to a folder, decodes them, trains one round on them, and prints as JSON: the seconds
of the decoding, the largest anonymous memory (``RssAnon`` of Linux) of a process that does both,
and the median ratio of the speeds of alternating rounds from the file and from a tensor in memory,
with an interval of 95 %. ``--part evaluate`` evaluates a tiny network on so many pictures instead,
verifies that, and prints seconds and the largest anonymous memory of both.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write(folder: Path, images: int, size: int) -> None:
    """Write JPEG pictures of two classes: noise that was made smooth."""
    draws = np.random.default_rng(0)
    for k in range(images):
        path = folder / ("even" if k % 2 == 0 else "odd") / f"{k:07}.jpg"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        small = draws.integers(0, 200, (8, 8, 3)) + 55 * (k % 2)
        picture = Image.fromarray(small.astype(np.uint8)).resize((size + 32, size + 16))
        picture.save(path, quality=90)


def anonymous() -> int:
    """Return the bytes of anonymous memory of this process that are in use."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise SystemExit("RssAnon is not in /proc/self/status: this benchmark needs Linux")


@contextmanager
def highest() -> Iterator[list[int]]:
    """Measure the largest anonymous memory while the block runs."""
    peak, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def train(folder: Path, size: int) -> dict[str, Any]:
    """Decode the pictures and train on them, in this process."""
    import torch

    from equipoise import data
    from equipoise.data import decoded
    from equipoise.data.rows import Rows
    from equipoise.jobs.train import train as job
    from equipoise.settings.recipe import parse

    decoded.IN_MEMORY = 0  # as a larger set would be
    base = anonymous()
    with highest() as peak:
        began = time.perf_counter()
        dataset = data.load(folder, reading=data.Reading(size=size))
        seconds = time.perf_counter() - began
        decoding = peak[0]
        given = {"method": "pgd-at", "data": str(folder), "size": size, "rounds": 1}
        given |= {"width": 0.25, "validation": 500, "robust": {"attack": {"steps": 1}}}
        job(parse(given | {"validation_attack": "pgd-1"}), folder.parent / "run")
    assert isinstance(dataset.train.x, Rows)
    return {
        "images": len(dataset.train) + len(dataset.test),
        "bytes": dataset.train.x.nbytes + dataset.test.x.nbytes,
        "threads": torch.get_num_threads(),
        "decoding_seconds": seconds,
        "anonymous_before": base,
        "anonymous_decoding": decoding,
        "anonymous_training": peak[0],
    }


def net() -> Any:
    """Return a tiny network of two classes for images of any size."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
    return nn.Sequential(*parts, nn.Linear(128, 2))


def evaluate(folder: Path, images: int, size: int) -> dict[str, Any]:
    """Evaluate the tiny network on decoded pictures, and verify that, each in a process."""
    photos, run = folder / f"photos-{images}-{size}", folder / f"evaluated-{images}-{size}"
    for split, count in (("train", 200), ("test", images)):
        write(photos / split, count, size)
    model = ["--model", "benchmarks.pictures:net"]
    words = ["evaluate", *model, "--data", str(photos), "--size", str(size), "--out", str(run)]
    words += ["--eps", "4/255", "--attacks", "pgd-2"]
    found: dict[str, Any] = {"images": images, "size": size}
    for name, command in (("evaluate", words), ("verify", ["verify", str(run), *model])):
        began = time.perf_counter()
        start = [sys.executable, "-m", "benchmarks.pictures", "command"]
        answer = subprocess.run([*start, *command], stdout=subprocess.PIPE, check=True)
        found[name] = {"seconds": time.perf_counter() - began}
        found[name]["anonymous"] = int(answer.stdout.split()[-1])
    return found


def run_command(words: list[str]) -> None:
    """Run a command in this process, and print its largest anonymous memory."""
    from equipoise.cli import main
    from equipoise.data import decoded

    decoded.IN_MEMORY = 0
    sys.argv = ["equipoise", *words]
    with highest() as peak:
        try:
            main()
        except SystemExit as end:
            if end.code:
                raise
    sys.stdout.write(f"\n{peak[0]}\n")


def speeds(folder: Path, size: int, pairs: int, steps: int = 4) -> dict[str, Any]:
    """Return the ratio of the speed from the file to that from memory, in alternating pairs."""
    import torch

    from equipoise import data, models
    from equipoise.data import Images, decoded
    from equipoise.settings.recipe import parse
    from equipoise.training.loop import Training

    decoded.IN_MEMORY = 0
    dataset = data.load(folder, reading=data.Reading(size=size))
    mapped = dataset.train.take(slice(pairs * steps * 128))
    recipe = parse({"method": "standard", "data": str(folder), "width": 0.25})

    def steps_of(images: Images) -> Iterator[None]:
        return Training(
            method=recipe.settings.build(recipe.threat(dataset.eps)),
            model=models.build(recipe.model, dataset.settings | {"width": recipe.width}),
            images=images,
            rounds=1,
            batch_size=128,
            seed=0,
            validate=lambda model, threat: {},
            value=lambda metrics: 0.0,
        ).steps_of_round(1)

    sides = [steps_of(mapped), steps_of(Images(mapped.x[:].clone(), mapped.y))]
    ratios = []
    for pair in range(pairs):
        seconds = [0.0, 0.0]
        for side in (0, 1) if pair % 2 else (1, 0):
            began = time.perf_counter()
            for _ in range(steps if pair else steps - 1):
                next(sides[side])
            seconds[side] = time.perf_counter() - began
        ratios.append(seconds[1] / seconds[0])
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return {
        "images": len(mapped),
        "pairs": len(ratios),
        "threads": torch.get_num_threads(),
        "speed_of_file_to_memory": float(np.median(ratios)),
        "interval": [float(low), float(high)],
    }


if __name__ == "__main__" and sys.argv[1:2] == ["command"]:
    run_command(sys.argv[2:])
elif __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--part", choices=["train", "speed", "evaluate"])
    asked = parser.parse_args()
    photos = asked.folder / "photos"
    if asked.part == "evaluate":
        os.environ["EQUIPOISE_CACHE"] = str(asked.folder / "cache")
        result = evaluate(asked.folder, asked.images, asked.size)
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    elif asked.part == "train":
        sys.stdout.write(json.dumps(train(photos, asked.size)) + "\n")
    elif asked.part == "speed":
        sys.stdout.write(json.dumps(speeds(photos, asked.size, asked.pairs)) + "\n")
    else:
        write(photos, asked.images, asked.size)
        environment = os.environ | {"EQUIPOISE_CACHE": str(asked.folder / "cache")}
        found: dict[str, Any] = {}
        for part in ("train", "speed"):
            words = [sys.executable, "-m", "benchmarks.pictures", str(asked.folder)]
            words += ["--part", part, "--size", str(asked.size), "--pairs", str(asked.pairs)]
            answer = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
            found[part] = json.loads(answer.stdout)
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
