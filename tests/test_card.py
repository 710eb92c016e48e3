"""Cards: what they hold, that they are the same each time, and that every change is found."""

import ast
import base64
import contextlib
import errno
import json
import os
import re
import runpy
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from torch import nn

import equipoise as eq
from equipoise import data
from equipoise.card import claims, envelope, merkle, pack
from equipoise.card.describe import audit_in, audit_of, problems, results
from equipoise.card.pages import pages
from equipoise.card.schema import load
from equipoise.errors import RunError, UserError
from equipoise.evaluation.stored import Store
from equipoise.jobs.card import write_card, write_excerpt
from equipoise.jobs.evaluate import evaluate_run
from equipoise.jobs.target_model import of_model
from equipoise.jobs.verify_card import verify_card
from equipoise.store.files import whole
from equipoise.store.finding import Finding
from equipoise.store.sealed import seal
from equipoise.terminal.progress import Console

SCRIPT = Path(__file__).resolve().parent.parent / "examples" / "verify_card.py"

ATTACKS = "fgsm,pgd-8"
N = 60


@pytest.fixture(scope="module")
def judged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run judged at two radii; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(trained, folder)
    evaluate_run(folder, attacks=ATTACKS, eps=[0.06, 32 / 255], n=N)
    return folder


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("key") / "me.key"
    envelope.keygen(path)
    return path


@pytest.fixture(scope="module")
def written(judged: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a signed card; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("card") / "card"
    write_card(judged, folder, key=key)
    return folder


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- what a card holds ---


def test_the_same_run_has_the_same_card_to_the_bit(judged, written, key, tmp_path):
    write_card(judged, tmp_path / "again", key=key)
    assert files(tmp_path / "again") == files(written)
    assert len(files(written)) == 8  # the card, its signature, two packs, and four pages


def test_a_second_evaluation_has_the_same_card(trained, judged, written, tmp_path):
    other = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(other, attacks=ATTACKS, eps=[0.06, 32 / 255], n=N)
    write_card(other, tmp_path / "card")
    assert load(tmp_path / "card").content == load(written).content
    text = (tmp_path / "card" / "card.json").read_text()
    assert str(tmp_path) not in text
    assert str(judged) not in text


def test_the_numbers_are_those_of_the_records(judged, written):
    card = load(written)
    assert [(e.threat.size, e.threat.eps) for e in card.evaluations] == [
        ("0.06", 0.06),
        ("32/255", 32 / 255),
    ]
    lines = (judged / "records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    of_card = [
        (each.name, r.attack, r.robust, list(r.interval), {k: c.n for k, c in r.per_class.items()})
        for each in card.evaluations
        for r in each.results
    ]
    assert of_card == [
        (
            r["evaluation"],
            r["attack"],
            r["robust"],
            r["interval"],
            {k: v["n"] for k, v in r["per_class"].items()},
        )
        for r in records
    ]
    for each in card.evaluations:
        assert each.pack.examples == each.clean.robust - each.worst.robust > 0
    assert (card.complete, card.problems) == (True, ())
    assert list(card.content)[:4] == ["format", "complete", "problems", "limits"]


def sizes(per_class: dict) -> dict:
    return {name: count["n"] for name, count in per_class.items()}


def test_what_is_not_known_is_said(written):
    card = load(written)
    assert any("cropped" in line for line in card.inputs.not_recorded)
    assert card.evaluations[0].control is None
    assert (card.inputs.grid, card.model.source) == ("1/255", "small-cnn")
    assert card.training is not None
    assert "held-out" in card.choices[0]


def test_unfinished_and_unchecked_evaluations_stand_on_top(trained, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(run, attacks="fgsm", eps=[0.03], n=N, checks=False)
    card = write_card(run, tmp_path / "card")
    assert not card.complete
    assert "checks were not run" in card.problems[0]
    screens = Finding(check="screens", code="C31", status="ok", message="no screen is red")
    part = card.evaluations[0].model_copy(update={"checks": (screens,)})
    assert problems([part], card.training) == [*card.problems]  # screens are not all checks


def test_an_unfinished_evaluation_and_failed_checks_stand_on_top(written):
    card = load(written)
    failed = Finding(check="gradients", code="C6", status="failed", message="no gradients")
    for change, words in (
        ({"finished": False}, "the evaluation is not finished"),
        ({"checks": (failed,)}, "the check gradients failed: no gradients"),
        ({"attacks": ()}, "no attack was run"),
    ):
        (found,) = problems([card.evaluations[0].model_copy(update=change)], card.training)
        assert found == f"{card.evaluations[0].name}: {words}"
    training = card.training.model_copy(update={"finished": False})
    assert problems(card.evaluations, training) == ["the training is not finished"]


def test_the_card_of_an_interrupted_evaluation_says_so_and_holds(trained, stranger, tmp_path):
    run, kept = Path(shutil.copytree(trained, tmp_path / "run")), Store.write

    def interrupted(self, *given) -> None:
        kept(self, *given)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, attacks="fgsm,pgd-2", eps=[0.05], n=40, checks=False)
    card = write_card(run, tmp_path / "card")
    assert not card.complete
    assert card.problems[0].endswith("the evaluation is not finished")
    assert stranger.unsigned(tmp_path / "card") == stranger.script(tmp_path / "card") == ""
    edit(tmp_path / "card", lambda content: content.update(complete=True, problems=[]))
    assert "counts: what stands on top" in stranger.unsigned(tmp_path / "card")


def test_a_card_needs_no_pass_of_the_model(judged, tmp_path, monkeypatch):
    # So it costs what reading, checksums and writing cost: a counted bound, whatever the attacks.
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(nn.Module, "__call__", refuse)
    write_card(judged, tmp_path / "card")


def test_paths_of_this_computer_are_left_out(trained, judged, tmp_path):
    other = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(other, attacks="fgsm", eps=[0.06], n=N, transfer=[judged])
    write_card(other, tmp_path / "card")
    text = (tmp_path / "card" / "card.json").read_text()
    assert "points from run (" in text
    assert str(judged.parent) not in text


def test_a_text_that_no_reader_takes_is_refused_when_it_is_written(judged, tmp_path):
    with pytest.raises(UserError, match="control characters"):
        write_card(judged, tmp_path / "card", date="2026\x1b[2J")
    assert [*tmp_path.iterdir()] == []


# --- keys ---


def test_a_key_is_for_its_owner_alone_and_is_never_overwritten(key, tmp_path):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for place in (key, tmp_path / "new.key"):
        (tmp_path / "new.key.pub").write_text("something else")
        with pytest.raises(UserError, match="never overwritten"):
            envelope.keygen(place)
    assert not (tmp_path / "new.key").exists()


def test_a_full_disk_leaves_no_half_pair_of_keys(tmp_path, monkeypatch):
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for calls in (1, 2):  # of the private key, of the public key
        opened = [envelope.os.fdopen] * (calls - 1) + [full]
        monkeypatch.setattr(envelope.os, "fdopen", lambda *given, o=opened: o.pop(0)(*given))
        with pytest.raises(UserError, match="No space left"):
            envelope.keygen(tmp_path / "new.key")
        monkeypatch.undo()
        assert [*tmp_path.iterdir()] == []


def test_two_cards_at_once_are_not_mixed(judged, tmp_path):
    with whole(tmp_path / "card") as folder:
        folder.mkdir()
        (folder / "mine").touch()
        with pytest.raises(UserError, match="another process writes"):
            write_card(judged, tmp_path / "card")
    assert [path.name for path in tmp_path.rglob("*")] == ["card", "mine"]


# --- the tree ---


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_every_row_has_a_path_to_the_root_and_no_other_row_has(count):
    rows = [b"row %d" % i for i in range(count)]
    root = merkle.root(rows)
    for i, row in enumerate(rows):
        path = merkle.path(merkle.levels(rows), i)
        assert merkle.climb(row, i, count, path) == root
        assert merkle.climb(row + b"x", i, count, path) != root
        if count > 1:
            assert merkle.climb(row, (i + 1) % count, count, [*path, *[bytes(32)] * 4]) != root
            with pytest.raises(ValueError, match="too short"):
                merkle.climb(row, i, count, path[:-1])
    assert count == 1 or merkle.root(rows[::-1]) != root


def test_the_root_is_that_of_certificate_transparency():
    # RFC 6962 splits at the largest power of two below the count.
    def split(rows: list[bytes]) -> bytes:
        if len(rows) == 1:
            return merkle.leaf(rows[0])
        k = 1 << (len(rows) - 1).bit_length() - 1
        return merkle.node(split(rows[:k]), split(rows[k:]))

    for count in range(1, 40):
        rows = [bytes([i]) for i in range(count)]
        assert merkle.root(rows) == split(rows)


# --- strangers ---


class Stranger(NamedTuple):
    """What a stranger has: a run folder with the weights, the key, and files of their own."""

    run: Path
    key: Path
    place: Path

    def package(self, card: Path, **more) -> str:
        """Return what ``equipoise verify`` says; empty: the card holds."""
        given = {"model": str(self.run), "key": self.key, "batch_size": 64, **more}
        try:
            verify_card(card, **given)
        except RunError as error:
            return str(error)
        return ""

    def unsigned(self, card: Path) -> str:
        return self.package(card, key=None)

    def script(
        self, card: Path, *words: str, model: str = "card_net:net", images: str = "images.npz"
    ) -> str | int:
        """Return what the script says that shares no code with the package; empty: it holds."""
        before = sys.argv, [*sys.path], sys.excepthook
        sys.argv = [str(SCRIPT), str(card), model, str(self.place / images), *words]
        sys.path.insert(0, str(self.place))
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stop:
            return stop.code or ""
        finally:
            sys.argv, sys.path[:] = before[0], before[1]
            assert sys.excepthook is before[2]
        raise AssertionError("it has not ended by an exit code")


@pytest.fixture(scope="module")
def stranger(judged: Path, key: Path, tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    place = tmp_path_factory.mktemp("stranger")
    test = data.load("digits").test
    np.savez(place / "images.npz", x=test.x.numpy(), y=test.y.numpy())
    text = f"import equipoise\n\n\ndef net():\n    return equipoise.load({str(judged)!r})\n"
    (place / "card_net.py").write_text(text)
    return Stranger(judged, key.with_name("me.key.pub"), place)


def test_a_sound_card_holds(written, stranger):
    verified = verify_card(written, key=stranger.key, model=str(stranger.run))
    assert verified.unchecked == {"audit": "the card has none"}
    assert [*verified.problems] == [
        *("checksum", "signature", "pack", "root", "counts", "attacks", "limits", "pages"),
        *("weights", "source", "images", "examples"),
    ]
    packs = [each.pack.examples for each in load(written).evaluations]
    fewest = min(packs)
    assert 0 < fewest < max(packs)
    assert verified.examples == sum(packs)
    drawn = verify_card(written, model=str(stranger.run), examples=fewest, nonce="mine")
    assert drawn.examples == fewest * len(packs)
    assert "signature" in drawn.unchecked
    assert stranger.script(written) == stranger.script(written, str(fewest)) == ""


def test_without_the_model_it_is_said_what_was_not_checked(written, stranger):
    verified = verify_card(written, key=stranger.key)
    assert set(verified.unchecked) == {"audit", "weights", "source", "images", "examples"}


def test_the_script_is_short_and_shares_no_code_with_the_package():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 80
    tree = ast.parse(text)
    names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert names <= {*sys.stdlib_module_names, "numpy", "torch"}


# --- forgeries ---


def edit(folder: Path, change: Callable[[dict], object], *, resealed: bool = True) -> None:
    """Change ``card.json``, and make its checksum anew, as somebody who knows the format would."""
    path = folder / "card.json"
    content = json.loads(path.read_text())
    change(content)
    if resealed:
        del content["sha256"]
        content = seal(content)
    path.write_text(json.dumps(content, indent=1))
    if resealed:
        remake_pages(folder)


def remake_pages(folder: Path) -> None:
    with contextlib.suppress(UserError):  # a card that no reader takes
        for name, text in pages(load(folder)).items():
            (folder / name).write_bytes(text)


def forge(folder: Path, change: Callable[[dict, pack.Pack], pack.Pack | None]) -> None:
    """Change the first evaluation, and make all anew that follows; a signature cannot be."""
    card = load(folder)
    each = card.evaluations[0]
    every, _ = pack.read(folder, each)
    every = replace(every, rows=every.rows.copy(), examples=every.examples.copy())
    content = json.loads((folder / "card.json").read_text())
    first = content["evaluations"][0]
    every = change(first, every) or every
    (folder / first["pack"]["file"]).write_bytes(every.content())
    first["pack"]["sha256"] = claims.sha256(
        (folder / first["pack"]["file"]).read_bytes()
    ).hexdigest()
    del content["sha256"]
    (folder / "card.json").write_text(json.dumps(seal(content)))
    each = load(folder).evaluations[0]
    verdicts = claims._verdicts(each, every.rows["label"].astype(np.int64))
    first["results"] = results(verdicts.records())
    names = [attack.name for attack in each.attacks]
    given = each.name, each.threat, card.model.sha256, each.data.inputs_sha256, names
    (root,) = every.roots(each.data.n, pack.head(*given))
    first["pack"]["root"] = root.hex()
    (folder / "card.json").write_text(json.dumps(seal(content), indent=1))
    remake_pages(folder)


def soften(content: dict) -> None:
    content["limits"] = ["The model is robust."]


def forget(content: dict) -> None:
    content["inputs"]["not_recorded"] = []


def other_terms(content: dict) -> None:
    content["evaluations"][0]["threat"]["terms"] = {"knowledge": "any attacker"}


@pytest.mark.parametrize("change", [soften, forget, other_terms])
def test_what_the_numbers_do_not_mean_cannot_be_edited(copy, stranger, change):
    edit(copy, change)
    assert stranger.unsigned(copy).startswith("NOT VERIFIED: limits: ")


def drop_attack(content: dict) -> None:
    del content["evaluations"][0]["attacks"][-1]


def larger_radius(content: dict) -> None:
    content["evaluations"][0]["threat"]["size"] = "0.09"


def other_weights(content: dict) -> None:
    content["model"]["sha256"] = "0" * 64


def a_robust_image_more(content: dict) -> None:
    for result in content["evaluations"][0]["results"]:
        result["robust"] += 1


@pytest.mark.parametrize(
    ("change", "unsigned", "script"),
    [
        (drop_attack, ("root", "counts"), "root"),
        (larger_radius, ("root",), "root"),
        (other_weights, ("root",), "weights, root"),
        (a_robust_image_more, ("counts",), "counts"),
    ],
)
def test_a_changed_card_fails_by_name(copy, stranger, change, unsigned, script):
    shutil.copytree(copy, other := copy.with_name("other"))
    edit(other, change, resealed=False)
    assert "checksum: card.json is not as it was written" in stranger.unsigned(other)
    assert "checksum" in stranger.script(other)
    edit(copy, change)
    found = stranger.unsigned(copy)
    assert all(f"{name}: " in found for name in unsigned)
    assert "checksum" not in found
    assert "signature: card.json is not what was signed" in stranger.package(copy)
    assert stranger.script(copy).startswith(f"FAILED: {script}")


def swap_image(first: dict, every: pack.Pack) -> None:
    every.rows["image"][5] = bytes(range(32))


def call_a_broken_image_robust(first: dict, every: pack.Pack) -> pack.Pack:
    n, row = len(every.rows), int(every.broken.nonzero()[0][0])
    for attack in first["attacks"]:
        flags = np.unpackbits(np.frombuffer(bytes.fromhex(attack["robust"]), np.uint8))[:n]
        flags[row] = 1
        attack["robust"] = np.packbits(flags).tobytes().hex()
    place = int(every.rows["broken_by"][row])
    first["attacks"][place]["broken_first"] -= 1
    first["pack"]["examples"] -= 1
    every.rows["broken_by"][row], every.rows["example"][row] = -1, pack.NONE
    return replace(every, examples=every.examples[1:])


def smaller_radius(first: dict, every: pack.Pack) -> None:
    first["threat"]["size"] = "0.01"


def wider_range(first: dict, every: pack.Pack) -> pack.Pack:
    """Take examples that are no images, and a range in which they are."""
    first["threat"].update(low=-1.0, high=2.0)
    examples = every.examples.copy()
    examples[examples == 0] = -0.01
    rows = every.broken.nonzero()[0]
    every.rows["example"][rows] = np.frombuffer(b"".join(claims.digests(examples)), "V32")
    return replace(every, examples=examples)


def swap_examples(first: dict, every: pack.Pack) -> pack.Pack:
    rows = every.broken.nonzero()[0]
    every.rows["example"][rows] = every.rows["example"][rows[::-1]]
    return replace(every, examples=every.examples[::-1].copy())


def other_label(first: dict, every: pack.Pack) -> None:
    right = every.rows["label"] == every.rows["prediction"]
    row = int((right & ~every.broken).nonzero()[0][0])
    every.rows["label"][row] = every.rows["prediction"][row] = (every.rows["label"][row] + 1) % 10


def shrink_examples(first: dict, every: pack.Pack) -> pack.Pack:
    """Replace each example by one that fools nobody: noise of a pixel."""
    examples = every.examples * 0 + every.examples.mean()
    rows = every.broken.nonzero()[0]
    points = pack.digests(examples) if hasattr(pack, "digests") else claims.digests(examples)
    every.rows["example"][rows] = np.frombuffer(b"".join(points), "V32")
    return replace(every, examples=examples)


@pytest.mark.parametrize(
    ("change", "point"),
    [
        (swap_image, "images"),
        (other_label, "images"),
        (smaller_radius, "examples"),
        (swap_examples, "examples"),
        (shrink_examples, "examples"),
    ],
)
def test_a_forged_pack_with_every_checksum_made_anew_fails_by_name(copy, stranger, change, point):
    forge(copy, change)
    found = stranger.unsigned(copy)
    assert found.startswith(f"NOT VERIFIED: {point}: "), found
    assert "signature" in stranger.package(copy)
    assert stranger.script(copy) == f"FAILED: {point}"


def test_examples_outside_the_range_of_images_are_no_proof(copy, stranger):
    forge(copy, wider_range)
    assert "limits: " in stranger.unsigned(copy)
    edit(copy, lambda content: content["model"].update(package="equipoise 0.0"))
    found = stranger.unsigned(copy)  # of another version the texts are unknown, the range is not
    assert found.startswith("NOT VERIFIED: examples: "), found
    assert stranger.script(copy) == "FAILED: examples"


def test_only_the_signature_shows_that_an_example_is_withheld(copy, stranger):
    # Nothing else can: the card is then that of a search that has missed this image.
    forge(copy, call_a_broken_image_robust)
    assert stranger.unsigned(copy) == stranger.script(copy) == ""
    assert "signature: card.json is not what was signed" in stranger.package(copy)


def test_an_attack_that_was_asked_for_cannot_be_dropped(copy, stranger):
    def change(first: dict, every: pack.Pack) -> None:
        (gone,) = first["attacks"][1:]
        assert gone["name"] == "pgd-8"
        del first["attacks"][1:]
        kept = np.frombuffer(bytes.fromhex(first["attacks"][0]["robust"]), np.uint8)
        fooled = ~np.unpackbits(kept)[: len(every.rows)].astype(bool) & every.broken
        rows = every.broken & ~fooled
        examples = every.examples[fooled[every.broken]]
        every.rows["broken_by"][rows], every.rows["example"][rows] = -1, pack.NONE
        first["pack"]["examples"] = len(examples)
        return replace(every, examples=examples)

    forge(copy, change)
    found = stranger.unsigned(copy)
    assert found.startswith("NOT VERIFIED: attacks: linf-0.06-n60-")
    assert "pgd-8 was asked for, and is not there" in found


def hide_what_is_on_top(content: dict) -> None:
    content["evaluations"][0]["finished"] = False


def test_what_stands_on_top_must_follow_from_the_evaluations(copy, stranger):
    edit(copy, hide_what_is_on_top)
    assert "counts: what stands on top does not follow" in stranger.unsigned(copy)


def test_threats_of_other_domains_do_not_break_a_card(copy, stranger):
    def turned(first: dict, every: pack.Pack) -> None:
        first["threat"].update(kind="rotation", size="30", unit="degrees")

    forge(copy, turned)
    verified = verify_card(copy, model=str(stranger.run))
    assert "rotation are unknown here" in verified.unchecked["examples"]


def reorder(rows: np.ndarray, examples: np.ndarray) -> None:
    rows[[2, 3]] = rows[[3, 2]]


def flip_row(rows: np.ndarray, examples: np.ndarray) -> None:
    rows[4, 60] ^= 1


def flip_example(rows: np.ndarray, examples: np.ndarray) -> None:
    examples.view(np.uint8).reshape(-1)[17] ^= 1


@pytest.mark.parametrize(
    ("change", "points"),
    [(reorder, "pack root"), (flip_row, "pack root"), (flip_example, "pack")],
)
def test_a_changed_pack_fails_by_name(copy, stranger, change, points):
    from safetensors.numpy import load_file, save_file

    (path, *_) = sorted((copy / "pack").iterdir())
    tensors = {name: value.copy() for name, value in load_file(path).items()}
    change(tensors["rows"], tensors["examples"])
    save_file(tensors, path)
    found, script = stranger.package(copy), stranger.script(copy)
    for point in points.split():
        assert f"{point}: " in found
        assert point in script


def test_every_flipped_byte_is_found(copy, written, stranger):
    random = np.random.default_rng(0)
    for path in [path for path in sorted(written.rglob("*")) if path.is_file()]:
        whole, place = path.read_bytes(), copy / path.relative_to(written)
        for position in [0, 9, len(whole) - 3, *random.integers(0, len(whole), 12).tolist()]:
            changed = bytearray(whole)
            changed[position] ^= 1 << int(random.integers(0, 7))
            place.write_bytes(changed)
            try:
                found = stranger.package(copy, model=None)
            except UserError as error:
                found = str(error)
            assert found, (path.name, position)
        place.write_bytes(whole)
    assert stranger.package(copy) == ""


def test_a_replaced_signature_fails_by_name(copy, stranger, tmp_path):
    envelope.keygen(tmp_path / "thief.key")
    card = load(copy)
    files_of = {"card.json": (copy / "card.json").read_bytes()}
    stolen = envelope.sign(claims.subjects_of(card, files_of), {}, tmp_path / "thief.key")
    (copy / "card.intoto.json").write_bytes(stolen)
    assert "signature: the signature is not of this key" in stranger.package(copy)
    assert stranger.package(copy, key=tmp_path / "thief.key.pub") == ""
    (copy / "card.intoto.json").unlink()
    assert "signature: the card is not signed" in stranger.package(copy)


def test_a_signature_of_something_else_is_none_of_the_card(copy, stranger, key):
    kind = envelope.PREDICATE
    for change in ("predicateType", "subject", "nothing signed"):
        text = envelope.sign({"card.json": {"sha256": "0" * 64}}, {}, key)
        if change == "predicateType":
            envelope.PREDICATE = "urn:other"
            text = envelope.sign({}, {}, key)
            envelope.PREDICATE = kind
        if change == "nothing signed":
            content = json.loads(text)
            text = json.dumps({**content, "signatures": []}).encode()
        (copy / "card.intoto.json").write_bytes(text)
        assert "signature: " in stranger.package(copy)


def test_other_weights_and_other_settings_fail_by_name(written, stranger, judged, tmp_path):
    other = Path(shutil.copytree(judged, tmp_path / "run"))
    (other / "summary.json").unlink()
    shutil.copy(other / "learner-clean.safetensors", other / "model.safetensors")
    found = stranger.package(written, model=str(other))
    assert found == "NOT VERIFIED: weights: the weights of the model are not those of the card"
    config = json.loads((judged / "config.json").read_text())
    config["settings"]["mean"] = [0.5]
    (other / "config.json").write_text(json.dumps(config))
    shutil.copy(judged / "model.safetensors", other / "model.safetensors")
    assert "source: the network is small-cnn with other settings" in stranger.package(
        written, model=str(other)
    )


# --- a model of the user's own ---


def test_a_function_with_another_source_fails_by_name(stranger, tmp_path, monkeypatch):
    place = tmp_path / "code"
    place.mkdir()
    monkeypatch.syspath_prepend(place)
    monkeypatch.chdir(tmp_path)
    text = (
        "import torch\n\n\ndef net():\n    return torch.nn.Sequential(torch.nn.Flatten(), "
        "torch.nn.Linear(64, 10))\n"
    )
    (place / "own_net.py").write_text(text)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    given = {"data_name": "digits", "data_dir": None, "out": tmp_path / "run"}
    subject = of_model("own_net:net", weights=tmp_path / "weights.pt", **given)
    evaluate_run(subject, attacks="fgsm", eps=[0.1], n=40, checks=False)
    card = write_card(tmp_path / "run", tmp_path / "card")
    assert card.model.code.recorded == "evaluation"
    assert str(tmp_path) not in (tmp_path / "card" / "card.json").read_text()
    mine = {"model": "own_net:net", "weights": str(tmp_path / "weights.pt")}
    assert stranger.package(tmp_path / "card", key=None, **mine) == ""
    with pytest.raises(
        UserError, match=r"run because a folder names it: .*--model 'own_net:net' --w"
    ):
        verify_card(tmp_path / "card", model=str(tmp_path / "run"))
    (place / "own_net.py").write_text(text + "# another line\n")
    found = stranger.package(tmp_path / "card", key=None, **mine)
    assert "source: " in found
    assert "is not the own_net.py of the card" in found
    eq.fast  # noqa: B018 - the package stays as it is
    loads = "import torch\nfrom own_net import net as bare\n\n\ndef net():\n    m = bare()\n"
    loads += f"    m.load_state_dict(torch.load({str(tmp_path / 'weights.pt')!r}))\n    return m\n"
    (stranger.place / "own_loads.py").write_text(loads)
    assert stranger.script(tmp_path / "card", model="own_loads:net") == "FAILED: source"


def test_a_page_that_shows_something_else_fails_by_name(copy, stranger):
    page = copy / "card.html"
    text = page.read_text()
    page.write_text(text.replace("at most", "at least"))
    assert (
        stranger.unsigned(copy) == "NOT VERIFIED: pages: card.html does not follow from card.json"
    )
    assert "signature: card.html is not what was signed" in stranger.package(copy)
    page.unlink()
    assert stranger.unsigned(copy) == ""
    assert "signature: card.html was signed and is missing" in stranger.package(copy)


# --- audits ---


@pytest.fixture(scope="module")
def audited(trained: Path, stranger, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the card of an audited evaluation; whoever changes it works on a copy."""
    place = tmp_path_factory.mktemp("audited")
    run = Path(shutil.copytree(trained, place / "run"))
    evaluate_run(run, attacks="audited(within=50%)", eps=[0.02], n=150, nonce="then")
    card = write_card(run, place / "card")
    audit = card.evaluations[0].audit
    assert (audit["nonce"], audit["audited"]) == ("then", 20)
    assert audit["least"] < audit["robust"] > 20
    return place / "card"


def test_an_audit_is_replayed_and_can_be_repeated(audited, stranger):
    said: list[str] = []
    console = Console(quiet=True)
    console.say = said.append
    verify_card(audited, model=str(stranger.run), audit="now", console=console)
    assert "audit: holds" in said
    assert any("audited again (nonce now)" in line for line in said)
    assert stranger.script(audited) == ""


def other_nonce(content: dict) -> None:
    content["evaluations"][0]["audit"]["nonce"] = "chosen"


def better_bound(content: dict) -> None:
    audit = content["evaluations"][0]["audit"]
    audit["least"] = audit["robust"]


def more_were_audited(content: dict) -> None:
    audit = content["evaluations"][0]["audit"]
    audit["rounds"][-1]["checked"] += 1
    content["evaluations"][0]["audit"] = audit_of(audit_in(audit))


def no_audit(content: dict) -> None:
    content["evaluations"][0]["audit"] = None


def no_rounds(content: dict) -> None:
    content["evaluations"][0]["audit"] = {"rounds": 7}


def text_as_limit(content: dict) -> None:
    content["evaluations"][0]["audit"]["within"] = "1"


def no_limit(content: dict) -> None:
    content["evaluations"][0]["audit"]["budget"] = 2.0


def unknown_search(content: dict) -> None:
    content["evaluations"][0]["audit"]["searched"] = ["none"]


@pytest.mark.parametrize(
    "change",
    [
        *(other_nonce, better_bound, more_were_audited, no_audit, no_rounds),
        *(text_as_limit, no_limit, unknown_search),
    ],
)
def test_a_changed_audit_fails_by_name(audited, stranger, tmp_path, change):
    copy = Path(shutil.copytree(audited, tmp_path / "copy"))
    edit(copy, change)
    assert stranger.unsigned(copy).startswith("NOT VERIFIED: audit: linf-0.02-n150-")


def test_a_card_without_an_audit_cannot_be_audited_again(written, audited, stranger):
    for card, given, words in (
        (written, {"audit": "now", "model": str(stranger.run)}, "has no audit"),
        (audited, {"audit": "now"}, "give the model"),
        (audited, {"audit": " ", "model": str(stranger.run)}, "nonce is empty"),
    ):
        with pytest.raises(UserError, match=words):
            verify_card(card, **given)


# --- excerpts ---


def test_an_excerpt_is_checked_without_the_rest(written, stranger, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(written, whole := tmp_path / "whole")
    (whole / "me.key").write_text("a secret that lies there")
    write_excerpt(whole, part, examples=4, nonce="a")
    assert {path.name for path in part.iterdir()} == {path.name for path in written.iterdir()}
    verified = verify_card(part, key=stranger.key, model=str(stranger.run))
    assert verified.examples == 4 + min(4, load(written).evaluations[0].pack.examples)
    assert "excerpt" in verified.unchecked["other images"]
    sizes = [
        sum(len(text) for name, text in files(f).items() if "pack" in name)
        for f in (part, written)
    ]
    assert sizes[0] < sizes[1] / 2
    assert files(part)["card.json"] == files(written)["card.json"]
    for where in ("rows", "examples", "paths"):
        from safetensors.numpy import load_file, save_file

        other = Path(shutil.copytree(part, tmp_path / where))
        (path, *_) = sorted((other / "pack").iterdir())
        tensors = {name: value.copy() for name, value in load_file(path).items()}
        tensors[where].reshape(-1).view(np.uint8)[12] ^= 1
        save_file(tensors, path)
        found = stranger.package(other)
        assert ("pack: " if where == "examples" else "root: ") in found
    with pytest.raises(UserError, match="excerpt itself"):
        write_excerpt(part, tmp_path / "b", examples=1, nonce="a")


# --- bad input ---


def broken_text(change: Callable[[str], str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "card.json"
        path.write_text(change(path.read_text()))

    return write


def first_pack(folder: Path) -> Path:
    return sorted((folder / "pack").iterdir())[0]


def hostile_path(folder: Path) -> None:
    edit(
        folder, lambda c: c["evaluations"][0]["pack"].update(file="pack/../../secret.safetensors")
    )


def many_images(folder: Path) -> None:
    edit(folder, lambda c: c["evaluations"][0]["data"].update(n=10**12))


def long_bits(folder: Path) -> None:
    edit(folder, lambda c: c["evaluations"][0].update(correct="00" * 100_000))


def huge_header(folder: Path) -> None:
    path = first_pack(folder)
    path.write_bytes(b"\xff" * 7 + b"\x0f" + path.read_bytes()[8:])


def nothing(folder: Path) -> pack.Pack:
    """Return an excerpt without rows."""
    name = first_pack(folder).name
    each = next(e for e in load(folder).evaluations if e.pack.file.endswith(name))
    part = pack.read(folder, each)[0].excerpt(1, "a")
    return replace(part, rows=part.rows[:0], examples=part.examples[:0], paths=part.paths[:0])


BAD = {
    "truncated": broken_text(lambda text: text[: len(text) // 2]),
    "empty": broken_text(lambda text: ""),
    "a list": broken_text(lambda text: "[]"),
    "deep": broken_text(lambda text: "[" * 100_000),
    "deep inside": broken_text(
        lambda text: text.replace(
            '"recipe": {', '"recipe": {"a": ' + "[" * 5000 + "]" * 5000 + ","
        )
    ),
    "no number": broken_text(lambda text: text.replace('"low": 0.0', '"low": NaN')),
    "a huge number": broken_text(lambda text: text.replace('"low": 0.0', '"low": 1e999')),
    "many digits": broken_text(lambda text: text.replace('"seed": 0', '"seed": ' + "9" * 5000)),
    "another format": broken_text(lambda text: text.replace('"format": 1', '"format": 2')),
    "an unknown field": broken_text(
        lambda text: text.replace('"format": 1', '"format": 1, "x": 1')
    ),
    "control characters": broken_text(
        lambda text: text.replace('"name": "linf', '"name": "\\u001b[2Jlinf')
    ),
    "a path": hostile_path,
    "many images": many_images,
    "long bits": long_bits,
    "the same evaluation twice": lambda folder: edit(
        folder, lambda c: c["evaluations"].append(c["evaluations"][0])
    ),
    "a pack of many zeros": lambda folder: os.truncate(first_pack(folder), 1 << 40),
    "an excerpt of nothing": lambda folder: first_pack(folder).write_bytes(
        nothing(folder).content()
    ),
    "no pack": lambda folder: first_pack(folder).unlink(),
    "half a pack": lambda folder: first_pack(folder).write_bytes(
        first_pack(folder).read_bytes()[:999]
    ),
    "a huge header": huge_header,
    "no envelope": lambda folder: (folder / "card.intoto.json").write_text("{"),
    "a deep envelope": lambda folder: (folder / "card.intoto.json").write_text("[" * 100_000),
    "an odd envelope": lambda folder: (folder / "card.intoto.json").write_text(
        json.dumps(
            {"payload": base64.b64encode(b"x").decode(), "payloadType": 1, "signatures": [1]}
        )
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_cards_are_refused_in_one_line(copy, stranger, name):
    BAD[name](copy)
    with pytest.raises(UserError) as caught:
        verify_card(copy, key=stranger.key)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def without(*path: str | int) -> Callable[[Path], None]:
    """Return what removes a field of the card, with its checksum made anew."""

    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return lambda folder: edit(folder, change)


def odd(**fields: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda c: c["evaluations"][0].update(fields))


UNREADABLE = {
    **{name: BAD[name] for name in ("truncated", "empty", "a list", "deep", "no pack")},
    **{name: BAD[name] for name in ("half a pack", "a huge header")},
    "no card": lambda folder: (folder / "card.json").unlink(),
    "no folder": shutil.rmtree,
    "no bytes of a pack": lambda folder: first_pack(folder).write_bytes(b""),
    "no text": lambda folder: (folder / "card.json").write_bytes(b"\xff\xfe{"),
    "no model": without("model"),
    "no evaluations": without("evaluations"),
    "an empty list of them": lambda folder: edit(folder, lambda c: c.update(evaluations=[])),
    "no threat": without("evaluations", 0, "threat"),
    "no size": without("evaluations", 0, "threat", "size"),
    "no bits": without("evaluations", 1, "attacks", 0, "robust"),
    "no root": without("evaluations", 1, "pack", "root"),
    "bits of another type": odd(correct=7),
    "bits that are none": odd(correct="xy"),
    "bits of fewer images": odd(correct="00"),
    "a number of images that is text": odd(data={"n": "60", "inputs_sha256": ""}),
    "attacks that are a number": odd(attacks=3),
    "a threat that is a list": odd(threat=[]),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_script_ends_in_one_line_if_a_card_cannot_be_read(copy, stranger, capsys, name):
    UNREADABLE[name](copy)
    assert stranger.script(copy, "3") == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert re.fullmatch(rf"cannot check {copy} .*: .*\(line \d+; see its top\)\n", told.err)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of numpy.load
def test_the_script_ends_in_one_line_if_model_images_or_words_are_no_such(
    written, stranger, capsys, monkeypatch
):
    (stranger.place / "half.npz").write_bytes((stranger.place / "images.npz").read_bytes()[:999])
    np.savez(stranger.place / "labels.npz", y=np.zeros(3))
    monkeypatch.chdir(stranger.place)
    Path("half.pt").write_bytes((written / "card.json").read_bytes()[:99])
    text = (
        f"import torch\n\n\ndef net():\n    return torch.load({str(stranger.place / 'half.pt')!r})"
    )
    (stranger.place / "half_net.py").write_text(text)
    (stranger.place / "no_net.py").write_text("def net(:\n")
    for words, named in (
        (("0",), {}),
        (("-3",), {}),
        (("all",), {}),
        ((), {"model": "card_net"}),
        ((), {"model": "card_net:other"}),
        ((), {"model": "nowhere_net:net"}),
        ((), {"model": "half_net:net"}),
        ((), {"model": "no_net:net"}),
        ((), {"images": "none.npz"}),
        ((), {"images": "half.npz"}),
        ((), {"images": "labels.npz"}),
        ((), {"images": "card_net.py"}),
    ):
        assert stranger.script(written, *words, **named) == 2, (words, named)
        told = capsys.readouterr()
        assert (told.out, told.err.count("\n")) == ("", 1)
        assert told.err.startswith(f"cannot check {written} ")


def test_keys_of_another_kind_are_refused_in_one_line(judged, written, key, tmp_path):
    secret = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    forms = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (tmp_path / "other.key").write_bytes(secret.private_bytes(pem, *forms))
    shown = secret.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "other.pub").write_bytes(shown)
    (tmp_path / "text").write_text("no key")
    for file in (
        tmp_path / "other.key",
        tmp_path / "text",
        tmp_path / "none",
        key.with_name("me.key.pub"),
    ):
        with pytest.raises(UserError, match=r"key|no file"):
            write_card(judged, tmp_path / "card", key=file)
        assert not (tmp_path / "card").exists()
    for file in (tmp_path / "other.pub", tmp_path / "text", tmp_path / "none", key):
        with pytest.raises(UserError, match=r"key|no file"):
            verify_card(written, key=file)


def test_what_is_wrong_with_a_key_is_said_in_plain_words(key, tmp_path):
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    none, password = serialization.NoEncryption(), serialization.BestAvailableEncryption(b"x")
    large = rsa.generate_private_key(65537, 2048)
    small = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "rsa").write_bytes(large.private_bytes(pem, pkcs8, none))
    (tmp_path / "password").write_bytes(small.private_bytes(pem, pkcs8, password))
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    for name, said in {
        "rsa": "another kind; expected Ed25519, as equipoise card keygen makes",
        "password": "(it has a password); a new pair without a password: equipoise card keygen",
        "empty": "(it is not in PEM format); a new pair",
        "folder": "folder is no file",
    }.items():
        with pytest.raises(UserError, match=re.escape(said)):
            envelope.sign({}, {}, tmp_path / name)
    with pytest.raises(UserError, match=r"it is a public key: sign with the private one\); a new"):
        envelope.sign({}, {}, key.with_name("me.key.pub"))
    with pytest.raises(UserError, match=r"never give it away\); give the \.pub file of the pair"):
        envelope.public_key(tmp_path / "password")
    with pytest.raises(UserError, match=r"can be read; give the \.pub file of the pair"):
        envelope.public_key(tmp_path / "empty")
    with pytest.raises(UserError, match=r"empty/new: File exists; choose another --out"):
        envelope.keygen(tmp_path / "empty" / "new")


def test_a_missing_extra_says_what_to_install(judged, written, key, tmp_path, monkeypatch):
    monkeypatch.setattr(envelope, "find_spec", lambda name: None)
    for act in (
        lambda: write_card(judged, tmp_path / "card", key=key),
        lambda: envelope.keygen(tmp_path / "new.key"),
        lambda: verify_card(written, key=key.with_name("me.key.pub")),
    ):
        with pytest.raises(UserError, match=r"pip install 'equipoise\[sign\]'"):
            act()
    write_card(judged, tmp_path / "card")  # without a signature it needs neither


def test_the_command_line(command, judged, key, tmp_path):
    tmp_path = tmp_path / "a place für ☃"
    ended = command(
        "card", judged, "--sign", key, "--out", tmp_path / "card", "--date", "2026-12-01"
    )
    assert ended.code == 0, ended.err
    assert load(tmp_path / "card").date == "2026-12-01"
    public = key.with_name("me.key.pub")
    ended = command("verify", tmp_path / "card", "--key", public, "--model", judged)
    assert ended.code == 0, ended.err
    assert "robust accuracy at most" in ended.err + ended.out
    ended = command("card", tmp_path / "card", "--examples", 2, "--out", tmp_path / "part")
    assert ended.code == 0, ended.err
    for said, *words in (
        ("choose another --out", "card", judged, "--out", tmp_path / ("x" * 300)),
        ("evaluate .* --weights last", "card", judged, "--weights", "last"),
        ("needs --examples K", "card", tmp_path / "card", "--out", tmp_path / "new"),
        ("needs --examples K", "card", judged, "--nonce", "x", "--out", tmp_path / "new"),
        ("leave --weights out", "card", tmp_path / "card", "--examples", 1, "--weights", "last"),
        ("nonce is empty", "card", tmp_path / "card", "--examples", 1, "--nonce", ""),
        ("at least 1", "card", tmp_path / "card", "--examples", 0, "--out", tmp_path / "new"),
        ("that equipoise card RUN writes", "card", judged, "--examples", 1),
        ("no other option than --out", "card", "keygen", "--nonce", "x"),
        ("give the model with --model", "verify", tmp_path / "card", "--examples", 1),
        ("give the model with --model", "verify", tmp_path / "card", "--data", "digits"),
        ("is for --again N", "verify", tmp_path / "card", "--nonce", "x", "--model", judged),
        ("is for --again N", "verify", judged, "--nonce", "x"),
    ):
        ended = command(*words)
        assert ended.code == 2, words
        assert re.search(said, ended.line), words
    for words in (
        ("card", judged, "--out", tmp_path / "card"),
        ("card", tmp_path, "--out", tmp_path / "new"),
        ("card", "keygen", "--out", key),
        ("card", "keygen", "--date", "today", "--out", tmp_path / "new.key"),
        ("card", judged, "--weights", "last", "--out", tmp_path / "new"),
        ("verify", tmp_path / "card", "--examples", 0),
        ("verify", tmp_path / "card", "--examples", 1, "--nonce", "", "--model", judged),
        ("verify", tmp_path / "card", "--again", 1),
        ("verify", tmp_path / "card", "--model", "nonsense"),
        ("verify", judged, "--key", public),
    ):
        ended = command(*words)
        assert ended.code == 2, words
        assert ended.line
    edit(tmp_path / "card", larger_radius)
    ended = command("verify", tmp_path / "card", "--key", public, "--quiet")
    assert ended.code == 1
    assert "signature: card.json is not what was signed" in ended.line
