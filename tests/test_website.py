"""The site: docstrings become Markdown, and what another server would be asked for is found."""

import pytest

from tests import house
from website import check, markup, pictures


def shown(text):
    return markup.to_markdown(text, lambda name: f"<{name}>")


def test_roles_become_links_and_formulas_code():
    text = "See :class:`~a.B` and :math:`x\n_k`; ``code`` stays."
    assert shown(text) == "See <a.B> and `#!math x _k`; ``code`` stays."


def test_a_displayed_formula_becomes_a_fence_and_the_text_after_it_stays_outside():
    text = "Before.\n\n.. math:: a \\\\\n          + b\n\nAfter."
    assert shown(text) == "Before.\n\n\n```math\na \\\\\n+ b\n```\n\n\nAfter."


def test_a_formula_below_its_directive_is_taken_whole():
    fence = shown("    .. math::\n\n        a\n\n    after")
    assert fence.split() == ["```math", "a", "```", "after"]


def test_a_simple_table_keeps_its_columns_and_joins_the_lines_of_a_row():
    text = "===  ======\na    one\n     two\nb    x | y\n===  ======\n\nAfter."
    assert [line for line in shown(text).splitlines() if line.startswith("|")] == [
        "|  |  |",
        "| --- | --- |",
        "| a | one two |",
        r"| b | x \| y |",
    ]
    assert shown(text).endswith("After.")


def test_the_first_rows_of_a_table_with_three_rules_are_its_head():
    table = shown("=  =\nA  B\n=  =\n1  2\n=  =\n").split("\n")
    assert [line for line in table if line] == ["| A | B |", "| --- | --- |", "| 1 | 2 |"]


def test_references_become_links():
    assert shown("    | A Title\n    | https://a.org/1") == "    - [A Title](https://a.org/1)"


@pytest.mark.parametrize(
    ("page", "count"),
    [
        ('<script src="https://a.org/x.js"></script>', 1),
        ('<img src="//a.org/x.png">', 1),
        ('<link rel="stylesheet" href="https://a.org/x.css">', 1),
        ('<div class="mermaid">graph</div>', 1),
        ('<a href="https://a.org">read</a><link rel="canonical" href="https://a.org">', 0),
        ('<script src="assets/x.js"></script><img src="x.png">', 0),
    ],
)
def test_resources_from_other_servers_are_found(tmp_path, page, count):
    (tmp_path / "page.html").write_text(page)
    assert len(check.outside(tmp_path)) == count


def test_a_style_that_loads_a_font_from_elsewhere_is_found(tmp_path):
    (tmp_path / "a.css").write_text("@import url('https://a.org/font.css');")
    (tmp_path / "b.css").write_text("a { background: url(x.png) } /* https://a.org */")
    (line,) = check.outside(tmp_path)
    assert "a.css" in line


def room(module):
    return module.split(".")[1] if "." in module else ""


FLOOR = {name: depth for depth, floor in enumerate(pictures.FLOORS) for name, _ in floor}
NO_ROOMS = {"", "__main__", "version"}


def test_the_picture_has_every_room():
    rooms = {room(module) for module in house.trees()} - NO_ROOMS
    assert rooms == {*FLOOR, *(name for name, _ in pictures.SIDE)}


def test_imports_go_down_in_the_picture():
    graph = house.imports(house.trees())
    up = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if FLOOR.get(room(module), -1) > FLOOR.get(room(other), len(FLOOR))
    ]
    assert up == []


def test_the_picture_in_the_documents_is_the_one_that_is_drawn():
    kept = pictures.PICTURES / "rooms.svg"
    assert kept.read_text(encoding="utf-8") == pictures.rooms()
