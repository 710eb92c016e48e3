"""Synthetic ``findings.json`` of every experiment, as ``equipoise reproduce`` writes them."""

import copy
import json
from pathlib import Path

import numpy as np

from equipoise.paper.results import read

ROOT = Path(__file__).parents[1]
ATTACKS = ["pgd-20", "pgd-100", "mi-fgsm-20", "cw-inf-30", "apgd-ce", "apgd-dlr", "apgd-t"]
ATTACKS += ["fab-t", "square", "autoattack"]
HARDER = dict(zip(ATTACKS, (0.0, 0.3, -0.5, 1.2, 0.6, 1.6, 2.0, 1.7, -4.0, 2.2), strict=True))

# Clean accuracy and accuracy under PGD-20, in percent.
ENTRIES = {
    "standard": (88.7, 2.0),
    "fat": (85.7, 70.5),
    "iat": (85.1, 61.2),
    "generalist": (81.9, 66.1),
    "a3gt": (82.9, 67.4),
    "trades": (82.5, 70.4),
    "mart": (79.0, 71.0),
    "sat": (82.0, 70.3),
    "yopo": (84.3, 66.1),
    "pgd-at": (81.5, 70.0),
    "pgd-at-averaged": (81.4, 70.2),
    "mix-at-25": (86.7, 62.1),
    "mix-at-50": (84.9, 68.1),
}


def panel(name="fashion-mnist", **more):
    content = {"name": name, "title": "Fashion-MNIST, eps 0.1", "data": "fashion-mnist"}
    content |= {"model": "small-cnn, width 1", "classes": 10, "norm": "linf", "eps": [0.1]}
    content |= {"n": 500, "attacks": ATTACKS, "entries": list(ENTRIES), "seeds": [0, 1, 2]}
    content |= {"budget": 2083840, "images": 19000}
    content["facts"] = ["device: cpu", "versions: equipoise 0.1.0, torch 2.13.0"]
    content["facts"].append("git commit: 0123456789ab")
    return content | more


PAPERS = {"data": "cifar10", "eps": [8 / 255]}  # where the paper makes most of its claims


class Maker:
    """Rows with verdicts that agree with their counts; models agree on easy images."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.easy = {}

    def verdicts(self, share, n, like=0.85):
        easy = self.easy.setdefault(n, self.rng.standard_normal(n))
        score = like * easy + (1 - like**2) ** 0.5 * self.rng.standard_normal(n)
        flags = np.zeros(n, np.uint8)
        flags[np.argsort(-score)[: round(share * n)]] = 1
        return flags

    def row(self, entry, shares, *, panel="fashion-mnist", seed=0, eps=0.1, n=500, **more):
        flags = {name: self.verdicts(share, n) for name, share in shares.items()}
        content = {"panel": panel, "entry": entry, "method": entry, "seed": seed}
        content |= {"weights": "model", "eps": eps, "n": n}
        content["correct"] = {name: int(f.sum()) for name, f in flags.items()}
        content["verdicts"] = {name: np.packbits(f).tobytes().hex() for name, f in flags.items()}
        content |= {"rounds": 9, "round": None, "gamma": None, "t_start": None}
        content |= {"gradient_evaluations": 2062080, "training_seconds": 141.0}
        content |= {"evaluation_seconds": 160.25, "settings": {"keep": "last"}, "cmmr": None}
        return content | more


def change(row, attack, count):
    """Let a model get a number of images right, the first ones."""
    row["correct"][attack] = count
    flags = np.arange(row["n"]) < count
    row["verdicts"][attack] = np.packbits(flags).tobytes().hex()


def whole(experiment, panels, rows, missing=(), **more):
    content = {"format": 1, "experiment": experiment, "scale": "cpu", "planned": len(rows)}
    content["command"] = f"equipoise reproduce {experiment} --scale cpu"
    return content | {"missing": list(missing), "panels": panels, "rows": rows} | more


def accuracies(clean, robust, attacks, shift=0.0):
    shares = {"clean": (clean + shift) / 100}
    for name in attacks:
        shares[name] = max(0.0, robust - HARDER[name] + shift) / 100 if robust > 5 else 0.0
    return shares


def table2(maker):
    rows = []
    for seed, shift in ((0, 0.0), (1, 0.8), (2, -0.6)):
        for entry, (clean, robust) in ENTRIES.items():
            own = accuracies(clean, robust, ATTACKS, shift)
            rows.append(maker.row(entry, own, seed=seed))
    return whole("table2", [panel()], rows)


def table3(maker):
    attacks = ["pgd-20", "mi-fgsm-20", "autoattack"]
    chosen = ["standard", "fat", "iat", "trades", "generalist", "a3gt-paper"]
    chosen += ["pgd-at", "mix-at-50"]
    panels, rows = [], []
    for name, eps, loss in (("mnist-8-255", 8 / 255, 3.0), ("mnist-0.3", 0.3, 9.0)):
        title = f"MNIST, eps {'8/255' if eps < 0.1 else '0.3'}"
        own = {"title": title, "data": "mnist", "eps": [eps], "seeds": [0], "entries": chosen}
        panels.append(panel(name, attacks=attacks, **own))
        for entry in chosen:
            clean = 99.0 if entry != "standard" else 99.2
            shares = accuracies(clean, clean - loss, attacks)
            rows.append(maker.row(entry, shares, panel=name, eps=eps))
    return whole("table3", panels, rows)


def fig2(maker, *, seeds=(0, 1), **clean_of):
    rows = []
    for entry in ("generalist", "a3gt-paper", "fat", "pgd-at"):
        clean, robust = ENTRIES[entry.removesuffix("-paper")]
        clean = clean_of.get(entry, clean)
        for seed in seeds:
            for t in (2, 4, 6, 8):
                now = (clean - 6 / t) / 100, (robust - 60 / t) / 100
                shares = {"clean": now[0], "autoattack": now[1]}
                more = {"weights": f"round-{t:03d}", "round": t, "seed": seed}
                rows.append(maker.row(entry, shares, **more))
            shares = {"clean": clean / 100, "autoattack": robust / 100}
            rows.append(maker.row(entry, shares, seed=seed))
            if entry in ("generalist", "a3gt-paper"):
                for gamma in (0, 0.4, 0.7, 1):
                    shares = {"clean": 0.88 - 0.06 * gamma, "autoattack": 0.4 + 0.3 * gamma**0.5}
                    more = {"weights": f"gamma-{gamma}", "gamma": gamma, "seed": seed}
                    rows.append(maker.row(entry, shares, **more))
    here = panel(attacks=["autoattack"], seeds=list(seeds))
    return whole("fig2", [here | {"entries": ["generalist", "a3gt-paper", "fat", "pgd-at"]}], rows)


def score(accuracy, clean, eps):
    success = clean - accuracy
    length = 0.8 * eps
    raw = {"ass": 1 - 4 * eps, "mse": length**2, "ald2": 2 * length, "psnr": 60.0}
    if eps:
        raw["psnr"] = float(-20 * np.log10(length))
    if success <= 0:
        raw = dict.fromkeys(raw)
    parts = dict.fromkeys(raw, min(1.0, 3 * eps) if success > 0 else None)
    distortion = min(1.0, 3 * eps) if success > 0 else None
    value = accuracy + 0.5 * success * (distortion or 0.0)
    own = {"version": "cmmr-1", "score": value, "accuracy": accuracy, "success": success}
    return own | {"distortion": distortion, "n": 500, "fooled": 1, **raw, "parts": parts}


SCORED = ["a3gt", "trades", "fat-trades", "fat-mart", "yopo", "sat", "pgd-at-averaged"]


def fig3(maker, experiment="fig3"):
    radii = [round(0.01 * i, 2) for i in range(17)]
    rows = []
    for place, entry in enumerate(SCORED):
        clean, robust = ENTRIES.get(entry, (84.0, 71.0))
        for eps in radii:
            accuracy = clean / 100 - (clean - robust) / 10 * eps - 12 * eps**2 - 0.002 * place
            accuracy = max(0.0, accuracy) if eps else clean / 100
            row = maker.row(entry, {"clean": clean / 100, "pgd-20": accuracy}, eps=eps)
            rows.append(row | {"cmmr": score(row["correct"]["pgd-20"] / 500, clean / 100, eps)})
    here = panel(attacks=["pgd-20"], seeds=[0], eps=radii, entries=SCORED)
    return whole(experiment, [here], rows)


ABLATED = ["pgd-20", "cw-inf-30", "autoattack"]


def fig5(maker):
    rows, names = [], []
    for place, gamma in enumerate(([1, 1, 1, 0.4], [1, 0.8, 0.6, 0.4], [1, 1, 1, 0.7], [0.5])):
        for c in (1, 3, 5, 10, 20):
            name = f"gamma-{'-'.join(map(str, gamma))}-c{c}"
            names.append(name)
            shares = {"clean": 0.8 + 0.01 * place}
            shares |= {
                a: 0.66 - 0.02 * place - 0.002 * c - 0.01 * i for i, a in enumerate(ABLATED)
            }
            settings = {"gamma": gamma, "every": c, "count": "rounds", "inclusive": True}
            more = {"rounds": 30, "t_start": 17 if c < 20 else 25, "settings": settings}
            rows.append(maker.row(name, shares, **more))
    here = panel(attacks=ABLATED, seeds=[0], entries=names)
    return whole("fig5", [here], rows)


def controls(maker):
    given = {"a3gt": ({"rule": "stable", "window": 3, "ratio": 0.1}, 14)}
    given["start-at-1"] = ({"rule": "fixed", "round": 1, "fraction": 0.625}, 1)
    for part, start in ((0.25, 8), (0.5, 15), (0.75, 23)):
        given[f"start-at-{part}"] = ({"rule": "fixed", "round": None, "fraction": part}, start)
    given["never"] = ({"rule": "never"}, None)
    for limit, first in ((0.5, None), (1.0, 9), (1.5, 4)):
        for patience in (1, 3):
            rule = {"rule": "threshold", "threshold": limit, "patience": patience}
            start = None if first is None else first + patience
            given[f"paper-lh{limit}-tnum{patience}"] = (rule, start)
    rows = []
    for entry, (rule, start) in given.items():
        robust = 0.3 if start is None else 0.63 - 0.0005 * start
        shares = {"clean": 0.81 + 0.0003 * (start or 0)}
        shares |= {a: robust - 0.01 * i for i, a in enumerate(ABLATED)}
        settings = {"start": rule, "every": 1}
        rows.append(maker.row(entry, shares, t_start=start, rounds=30, settings=settings))
    return whole("controls", [panel(attacks=ABLATED, seeds=[0], entries=list(given))], rows)


MIXES = {0: (86.0, 40.0), 0.25: (85.5, 55.0), 0.5: (84.5, 64.0), 0.75: (83.0, 68.0)}
MIXES |= {1: (81.5, 69.0)}
WEIGHTS = {
    10: (86.2, 41.0),
    30: (85.4, 58.0),
    50: (84.2, 65.0),
    70: (83.0, 67.0),
    90: (81.0, 68.5),
}


def front(maker):
    rows, names = [], ["a3gt-front"]

    def add(entry, shares, **more):
        given = {"clean": shares[0] / 100, "autoattack": shares[1] / 100}
        rows.append(maker.row(entry, given, **more))

    for seed in (0, 1, 2):
        for gamma, shares in MIXES.items():
            own = {} if gamma == 0.5 else {"weights": f"gamma-{gamma:g}", "gamma": gamma}
            own |= {"settings": {"gamma": 0.5}, "gradient_evaluations": 3_000_000}
            add("a3gt-front", shares, seed=seed, t_start=4, **own)
        for w, shares in WEIGHTS.items():
            add(f"mix-at-{w}", shares, seed=seed, settings={"robust": {"weight": w / 100}})
        for beta in (1, 6):
            add(
                f"trades-{beta}",
                (85 - beta, 60 + beta),
                seed=seed,
                settings={"robust": {"beta": beta}},
            )
        for entry in ("pgd-at-averaged", "a3gt", "generalist"):
            add(entry, ENTRIES[entry], seed=seed, settings={"gamma": [1, 0.4]})
    names += [f"mix-at-{w}" for w in WEIGHTS] + ["trades-1", "trades-6"]
    names += ["pgd-at-averaged", "a3gt", "generalist"]
    return whole("front", [panel(attacks=["autoattack"], entries=names)], rows)


# By setting the (clean, robust) accuracies of its models from gamma 0 to 1, in percent.
SETTINGS = {
    "a3gt-front": [(85.0, 40.0), (84.0, 55.0), (81.0, 64.0)],
    "part-at-.25": [(86.0, 30.0), (84.0, 52.0), (80.0, 66.0)],
    "robust-1": [(83.0, 58.0), (82.0, 62.0), (82.0, 59.0)],
}


def settings(maker):
    rows = []
    names = ("settings-fashion-mnist", "settings-mnist")
    for name in names:
        for seed in (0, 1):
            for entry, points in SETTINGS.items():
                for gamma, (clean, robust) in zip((0.0, 0.5, 1.0), points, strict=True):
                    more = 2 * (seed == 1 and entry == "part-at-.25")
                    shares = {"clean": clean / 100, "worst-case": (robust + more) / 100}
                    own = {"gamma": gamma, "weights": f"gamma-{gamma:g}", "seed": seed}
                    rows.append(maker.row(entry, shares, panel=name, t_start=4, **own))
    own = {"attacks": ["worst-case"], "entries": [*SETTINGS], "split": "held-out"}
    panels = [panel(name, title=name, seeds=[0, 1], **own) for name in names]
    return whole("settings", panels, rows)


def everything(seed=0):
    """Return the findings of all experiments by name."""
    maker = Maker(seed)
    makers = {"table2": table2, "table3": table3, "fig2": fig2, "fig3": fig3}
    made = {name: make(maker) for name, make in makers.items()}
    made["fig4"] = {**made["fig3"], "experiment": "fig4"}
    made |= {"fig5": fig5(maker), "controls": controls(maker)}
    return made | {"front": front(maker), "settings": settings(maker)}


def put(folder, content):
    """Write findings where they belong, and return the folder of all."""
    place = folder / content["experiment"]
    place.mkdir(parents=True, exist_ok=True)
    (place / "results.json").write_text(json.dumps(converted(content)), encoding="utf-8")
    return folder


TRAINING = ("panel", "entry", "method", "seed", "rounds", "t_start", "gradient_evaluations")
JUDGED = ("panel", "entry", "seed", "weights", "eps", "n", "round", "gamma")


def converted(content):
    """Return findings as results: trainings, and a row an attack."""
    trainings, results = {}, []
    for row in content["rows"]:
        training = {key: row[key] for key in TRAINING} | {"settings": row["settings"]}
        training["seconds"] = row["training_seconds"]
        trainings[row["panel"], row["entry"], row["seed"]] = training
        flags = {
            name: np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[: row["n"]]
            for name, text in row["verdicts"].items()
        }
        flags = {"worst-case": np.min([*flags.values()], axis=0), **flags}
        for name, bits in flags.items():
            result = {key: row[key] for key in JUDGED} | {"attack": name}
            result |= {"correct": int(bits.sum()), "bits": np.packbits(bits).tobytes().hex()}
            result |= {"sample": row.get("sample", ""), "seconds": None}
            if name == "worst-case":
                result |= {"seconds": row["evaluation_seconds"], "cmmr": row["cmmr"]}
            results.append(result)
    rest = {key: value for key, value in content.items() if key != "rows"}
    rest = copy.deepcopy(rest)
    return rest | {"format": 2, "trainings": [*trainings.values()], "results": results}


def constructed(folder, experiment, shares, *, seeds=(0, 1, 2), n=2000, where=None, like=0.98):
    """Return results whose entries have given accuracies on images that they agree on."""
    maker = Maker(3)
    maker.easy[n] = maker.rng.standard_normal(n)
    maker.verdicts = lambda share, n: Maker.verdicts(maker, share, n, like)
    rows = [
        maker.row(entry, own, seed=seed, n=n) for seed in seeds for entry, own in shares.items()
    ]
    here = PAPERS | {"seeds": list(seeds), "entries": list(shares)} | (where or {})
    content = whole(experiment, [panel(**here)], rows)
    return read(put(folder, content) / experiment / "results.json")
