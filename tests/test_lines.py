"""Files of JSON lines: one reader, with one rule, for reports, comparisons and fronts."""

import shutil
from pathlib import Path

import pytest

from equipoise.errors import UserError
from equipoise.fronts.front import Front
from equipoise.parsing import lines
from equipoise.plans.plan import parse
from equipoise.plans.prepare import Datasets, tasks

PLAN = {
    "base": {"data": "digits", "rounds": 2},
    "entries": {"pgd-at": {}},
    "evaluate": {"attacks": "fgsm", "n": 20},
}


def whole(value):
    return value["a"]


@pytest.mark.parametrize(
    ("text", "found", "noted"),
    [
        ('{"a": 1}\n{"a": 2}\n', [1, 2], 0),
        ('{"a": 1}\n\n  \n{"a": 2}', [1, 2], 0),
        ('{"a": 1}\n{"a": 2', [1], 1),
        ("", [], 0),
    ],
)
def test_a_last_line_that_was_cut_is_left_out_and_noted(tmp_path, text, found, noted):
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    notes: list[str] = []
    assert lines(path, whole, notes) == lines(path, whole) == found
    assert len(notes) == noted
    assert lines(tmp_path / "absent.jsonl", whole) == []


@pytest.mark.parametrize(
    "text",
    ['{"a": 1\n{"a": 2}\n', '[1]\n{"a": 2}\n', '{"b": 1}\n', "3\n", "[" * 3000 + '\n{"a": 1}'],
)
def test_any_other_damage_is_refused_with_file_and_line(tmp_path, text):
    path = tmp_path / "log.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"log\.jsonl, line 1"):
        lines(path, whole)


@pytest.mark.parametrize("damage", ['{"round": 1\n{"round": 2}\n', "[]\n", '{"rounds": 1}\n'])
def test_a_comparison_and_a_front_refuse_what_a_report_refuses(trained, tmp_path, damage):
    (task,) = tasks(parse(PLAN), tmp_path, Datasets())
    task.run.path.mkdir(parents=True)
    log = task.run.path / "log.jsonl"
    log.write_text('{"round": 1}\n{"round": 2}\n{"rou', encoding="utf-8")
    assert len(task.rounds()) == 2
    log.write_text(damage, encoding="utf-8")
    with pytest.raises(UserError, match=r"log\.jsonl, line 1"):
        task.rounds()
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    before = Front(run).marks
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"rou')
    assert Front(run).marks == before
    if "rounds" not in damage:  # a front needs no round
        (run / "log.jsonl").write_text(damage, encoding="utf-8")
        with pytest.raises(UserError, match=r"log\.jsonl, line 1"):
            _ = Front(run).marks
