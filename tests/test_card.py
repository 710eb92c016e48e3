"""Cards: what they hold, that they are the same each time, and that every change is found."""

import json
import shutil
import stat
from pathlib import Path

import pytest

from equipoise.card import envelope, merkle
from equipoise.card.schema import load
from equipoise.errors import UserError
from equipoise.jobs.card import write_card
from equipoise.jobs.evaluate import evaluate_run

ATTACKS = "fgsm,pgd-8"
N = 60


@pytest.fixture(scope="module")
def judged(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run judged at two radii; whoever changes it works on a copy."""
    folder = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(trained, folder)
    evaluate_run(folder, attacks=ATTACKS, eps=[0.03, 16 / 255], n=N)
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
    assert len(files(written)) == 4


def test_a_second_evaluation_has_the_same_card(trained, judged, written, tmp_path):
    other = Path(shutil.copytree(trained, tmp_path / "run"))
    evaluate_run(other, attacks=ATTACKS, eps=[0.03, 16 / 255], n=N)
    write_card(other, tmp_path / "card")
    assert load(tmp_path / "card").content == load(written).content
    text = (tmp_path / "card" / "card.json").read_text()
    assert str(tmp_path) not in text
    assert str(judged) not in text


def test_the_numbers_are_those_of_the_records(judged, written):
    card = load(written)
    assert [(e.threat.size, e.threat.eps) for e in card.evaluations] == [
        ("0.03", 0.03),
        ("16/255", 16 / 255),
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


# --- keys ---


def test_a_key_is_for_its_owner_alone_and_is_never_overwritten(key, tmp_path):
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    for place in (key, tmp_path / "new.key"):
        (tmp_path / "new.key.pub").write_text("something else")
        with pytest.raises(UserError, match="never overwritten"):
            envelope.keygen(place)
    assert not (tmp_path / "new.key").exists()


# --- the tree ---


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_every_row_has_a_path_to_the_root_and_no_other_row_has(count):
    rows = [b"row %d" % i for i in range(count)]
    root = merkle.root(rows)
    for i, row in enumerate(rows):
        path = merkle.path(rows, i)
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
