"""The size of the package: what one person can hold in their head."""

import pytest

import house

LIMITS = {
    "lines of Python": 53_801,
    "lines of templates, scripts, styles and YAML": 2_153,
    "classes": 288,
    "dataclasses": 150,
    "class names in several modules": 0,
    "modules beside packages": 12,
    "deepest import chain": 19,
    "import circles": 0,
    "dict[str, Any] in signatures": 87,
}


@pytest.fixture(scope="module")
def counts() -> dict[str, int]:
    return house.table()


@pytest.mark.parametrize("name", LIMITS)
def test_the_package_stays_within_its_limits(counts, name):
    assert counts[name] <= LIMITS[name]


def test_no_file_is_longer_than_400_lines():
    lengths = {path.name: len(path.read_text().splitlines()) for path in house.SRC.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_circles_are_found_where_they_are_for_types_only(tmp_path):
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("from p.b import B\n")
    (package / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import A\nB = 1\n"
    )
    assert house.circles(house.imports(house.trees(package))) == [["p.a", "p.b"]]
