"""Check a card of equipoise without equipoise; docs/formats.md describes its files.

python verify_card.py CARD MODULE:FUNCTION IMAGES.npz [K]: the function returns the model with its
weights, the file has test images x (N, C, H, W) and labels y, K examples are drawn (default: all).
Exit code 1: a point does not hold; 2: something cannot be read. Whose card: equipoise verify.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROW = np.dtype("<i8,V32,<i8,<i8,<i8,V32")  # number, image, label, prediction, broken by, example
ORDER, failed = {"linf": np.inf, "l2": 2, "l1": 1}, {}
sha = lambda *parts: hashlib.sha256(b"".join(parts)).digest()
plain = lambda value: json.dumps(value, sort_keys=True).encode()
image = lambda x: sha(f"{x.shape}\n".encode(), x.tobytes())
flags = lambda text, n: np.unpackbits(np.frombuffer(bytes.fromhex(text), "u1"))[:n] > 0
hold = lambda name, fact: fact or failed.setdefault(name)


def array(data, name, kind):
    start = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:start])[name]
    return np.frombuffer(data[start:][slice(*head["data_offsets"])], kind).reshape(head["shape"])


try:
    sys.path.insert(0, ".")
    folder, (module, name) = Path(sys.argv[1]), sys.argv[2].split(":")
    card, most = json.loads((folder / "card.json").read_bytes()), int([*sys.argv, 1 << 60][4])
    about, seal, digest = card["model"], card.pop("sha256"), card["model"]["sha256"]
    assert min(len(card["evaluations"]), most) > 0, "no evaluations, or K is below 1"
    hold("checksum", sha(plain(card)).hex() == seal)
    model = getattr(__import__(module), name)().eval().requires_grad_(False)
    state = [(name, value.contiguous()) for name, value in sorted(model.state_dict().items())]
    parts = [(f"{n} {v.dtype} {tuple(v.shape)}\n".encode(), v.numpy().tobytes()) for n, v in state]
    hold("weights", sha(*sum(parts, ())).hex() == digest)
    source = Path(sys.modules[module].__file__).read_bytes()
    hold("source", about["kind"] == "registered" or sha(source).hex() == about["code"]["sha256"])
    x, labels = (np.load(sys.argv[3])[key] for key in "xy")
    x = x if x.dtype == "f4" else np.divide(x, 255, dtype="f4")
    have = {(image(one), int(label)): one for one, label in zip(x, labels, strict=True)}
    for e in card["evaluations"]:
        data = (folder / "pack" / Path(e["pack"]["file"]).name).read_bytes()  # never elsewhere
        t, of = e["threat"], {"name": e["name"], "model_sha256": digest}
        n, of["inputs_sha256"] = e["data"]["n"], e["data"]["inputs_sha256"]
        rows, examples = array(data, "rows", "u1").view(ROW)[:, 0], array(data, "examples", "<f4")
        _, pictures, labels, predicted, broken_by, points = (rows[field] for field in ROW.names)
        of["threat"] = [t[key] for key in ("kind", "size", "unit", "low", "high")]
        of["attacks"], first = [a["name"] for a in e["attacks"]], np.full(n, -1)
        level = [sha(b"\0", row.tobytes()) for row in rows]  # of the Merkle tree
        while len(level) > 1:
            pairs = [sha(b"\1", a, b) for a, b in zip(level[::2], level[1::2], strict=False)]
            level = pairs + level[len(level) - len(level) % 2 :]
        hold("root", sha(b"\2", sha(plain(of)), *level).hex() == e["pack"]["root"])
        for place, a in reversed([*enumerate(e["attacks"])]):
            first[flags(a["attacked"], n) & ~flags(a["robust"], n)] = place
        correct, told = flags(e["correct"], n), {r["attack"]: r["robust"] for r in e["results"]}
        hold("counts", (first == broken_by).all() and (correct == (labels == predicted)).all())
        robust = correct & (first < 0)
        hold("counts", [told["clean"], told["worst-case"]] == [correct.sum(), robust.sum()])
        mine = [have.get((bytes(p), int(y))) for p, y in zip(pictures, labels, strict=True)]
        hold("images", all(x is not None for x in mine))
        broken, size = np.flatnonzero(first >= 0), [*map(float, t["size"].split("/")), 1]
        whole = [image(x) for x in examples] == [bytes(points[i]) for i in broken]
        hold("pack", whole and sha(data).hex() == e["pack"]["sha256"])
        for place in np.random.default_rng().permutation(len(broken))[: 0 if failed else most]:
            x, x_adv, y = mine[broken[place]], examples[place], labels[broken[place]]
            length = np.linalg.norm((x_adv.astype(float) - x).ravel(), ORDER[t["kind"]])
            inside = x_adv.min() >= 0 and x_adv.max() <= 1 and length <= size[0] / size[1] + 1e-6
            clean, fooled = model(torch.from_numpy(np.stack([x, x_adv]))).argmax(1).tolist()
            hold("examples", inside and clean == y != fooled)  # NaN is not inside
except Exception as error:  # what is given may be damaged in any way
    why = f"{type(error).__name__}: {error} (line {error.__traceback__.tb_lineno}; see its top)"
    sys.exit(print("cannot check", *sys.argv[1:4], *why.split(), file=sys.stderr) or 2)
sys.exit(f"FAILED: {', '.join(failed)}" if failed else print("all points hold"))
