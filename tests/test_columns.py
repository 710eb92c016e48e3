"""The columns of results: one declaration, which files and tables follow."""

import json
from collections.abc import Iterator

import pytest

import equipoise as eq
from equipoise.attacks import PGD
from equipoise.evaluation import Result
from equipoise.jobs.tables import write_table
from equipoise.store.records import RESULT_COLUMNS, STAGE_COLUMNS, ResultColumn, shown
from problems import held_out, small_net


@pytest.fixture(scope="module")
def result() -> Result:
    x, y = held_out(20)
    attacks = {"pgd": PGD(steps=2)}
    return eq.evaluate(small_net(), x, y, threat=eq.Linf(0.1), attacks=attacks, checks=False)


@pytest.fixture
def lost() -> Iterator[ResultColumn]:
    """A column of one's own: one declaration, in one place."""
    column = ResultColumn(
        "lost", "lost", lambda r: f"lost {r['lost']}", value=lambda r: r.n - r.robust
    )
    RESULT_COLUMNS.append(column)
    yield column
    RESULT_COLUMNS.remove(column)


def test_a_new_column_is_declared_once(result, lost, capsys):
    written = result.records()
    assert [r["lost"] for r in written] == [r["n"] - r["robust"] for r in written]
    write_table(written)
    table = capsys.readouterr().out
    assert all(f"lost {r['lost']}" in table for r in written)


def test_records_are_plain_values_with_a_key_for_each_column(result):
    for record in result.records():
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        assert {c.name for c in RESULT_COLUMNS if not c.optional} <= record.keys()
        assert list(shown(RESULT_COLUMNS, record)) == [c.title for c in RESULT_COLUMNS if c.title]


@pytest.mark.parametrize("columns", [RESULT_COLUMNS, STAGE_COLUMNS])
def test_no_column_is_declared_twice(columns):
    names, heads = [c.name for c in columns], [c.title for c in columns if c.title]
    assert len({*names}) == len(names)
    assert len({*heads}) == len(heads)
