"""Cards for people, and exports: literal, whole, and never a number without what it means."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml

from equipoise.card.exports import MODEL_INDEX, RESULTS, SPDX
from equipoise.card.mapping import mapping
from equipoise.card.pages import HTML, MARKDOWN, NOT_COMPLETE, pages
from equipoise.card.schema import load
from equipoise.jobs.card import write_card
from equipoise.jobs.evaluate import evaluate_run

EVIL = "</td><script>alert(1)</script> | `x` [a](javascript:b)\x1b[2J\n# c"


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """A card of a small run at two radii, without a signature."""
    run = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(trained, run)
    evaluate_run(run, attacks="fgsm,pgd-8", eps=[0.03, 16 / 255], n=60)
    write_card(run, run.parent / "card", date="2026-11-30")
    return run.parent / "card"


@pytest.fixture(scope="module")
def card(folder):
    return load(folder)


def changed(card, **evaluation):
    """Return a card whose first evaluation is another one."""
    first, *others = card.evaluations
    return card.model_copy(update={"evaluations": (first.model_copy(update=evaluation), *others)})


class Text(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.parts, self.skipped = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.skipped = tag if tag in ("script", "style", "title") else ""

    def handle_endtag(self, tag):
        self.skipped = ""

    def handle_data(self, data):
        if not self.skipped:
            self.parts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.parts).split())


def shown(card):
    """Return the texts of both pages, without signs of formatting."""
    files = pages(card)
    markdown = re.sub(r"\\(.)", r"\1", files[MARKDOWN].decode())
    return Text(files[HTML].decode()).text, " ".join(markdown.split())


def test_pages_are_written_with_the_card_and_are_the_same_each_time(folder, card):
    files = pages(card)
    assert set(files) == {HTML, MARKDOWN, MODEL_INDEX, RESULTS, SPDX}
    for name, content in files.items():
        assert (folder / name).read_bytes() == content
    assert pages(load(folder)) == files


def test_a_card_that_is_not_complete_says_so_before_any_number_and_in_every_export(card):
    problems = ("linf-0.03: the evaluation is not finished", "the check masking failed: masked")
    broken = card.model_copy(update={"complete": False, "problems": problems})
    for text in shown(broken):
        place = text.index(NOT_COMPLETE)
        assert all(place < text.index(problem) < text.index(" %") for problem in problems)
    page = pages(broken)[HTML].decode()
    assert 'class="problems"' in page
    assert 'class="problems"' not in pages(card)[HTML].decode()
    for name in (MODEL_INDEX, RESULTS):
        assert pages(broken)[name].count(b"NOT COMPLETE") == 4
        assert b"NOT COMPLETE" not in pages(card)[name]
    assert "masking failed" in json.dumps(json.loads(pages(broken)[SPDX])["@graph"])


def test_limits_and_what_is_not_recorded_are_there_whole(card):
    for text in shown(card):
        for sentence in (*card.limits, *card.inputs.not_recorded, *card.choices):
            assert " ".join(sentence.split()) in text


def test_every_number_of_robustness_says_what_it_is(card):
    worst = card.evaluations[0].worst
    said = f"at most {100 * worst.accuracy:.1f} % of 60 images (95 % interval "
    for text in shown(card):
        assert said in text.replace("\u00a0", " ")
        assert "under the attacks listed" in text
    index = yaml.safe_load(pages(card)[MODEL_INDEX])["model-index"]
    metrics = [m for result in index[0]["results"] for m in result["metrics"]]
    names = [m["name"] for m in metrics] + [
        e["notes"] for e in yaml.safe_load(pages(card)[RESULTS])
    ]
    assert len(names) == 8
    for name in names:
        assert "60 images, 95 % interval" in name
        assert "clean accuracy" in name or "at most (upper bound under fgsm, pgd-8; linf" in name


def test_checks_attacks_classes_and_checksums_are_there(card):
    first = card.evaluations[0]
    for text in shown(card):
        for finding in first.checks:
            assert " ".join(finding.message.split()).replace("`", "'") in text
        for attack in first.attacks:
            assert attack.settings in text
        for digest in (card.model.sha256, card.sha256, first.pack.root, first.data.inputs_sha256):
            assert digest in text
        assert "not stored" in text  # no undefended model


def test_texts_of_strangers_are_shown_literally(card):
    first = card.evaluations[0]
    evil = first.checks[0].__class__(check=EVIL, code="C1", status="failed", message=EVIL)
    attack = first.attacks[0].model_copy(update={"settings": EVIL, "name": EVIL})
    worst = first.worst.model_copy(update={"per_class": {EVIL: first.clean}})
    hostile = changed(
        card, checks=(evil,), attacks=(attack,), results=(first.clean, worst),
        audit={"nonce": EVIL, "rounds": EVIL, "sentence": EVIL}, software={EVIL: EVIL},
    )  # fmt: skip
    hostile = hostile.model_copy(
        update={
            "problems": (EVIL,),
            "limits": (EVIL,),
            "choices": (EVIL,),
            "model": card.model.model_copy(update={"source": EVIL}),
            "inputs": card.inputs.model_copy(update={"remarks": (EVIL,), "not_recorded": (EVIL,)}),
        }
    )
    files = pages(hostile)
    page = Text(files[HTML].decode())
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 1  # our own
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert "alert(1)" in page.text
    markdown = files[MARKDOWN].decode()
    assert "<script" not in markdown
    assert not re.search(r"(?<!\\)\]\(javascript", markdown)
    assert "\x1b" not in markdown
    assert not re.search(r"^# c", markdown, flags=re.MULTILINE)
    for block in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        rows = [re.sub(r"\\.", "", row).count("|") for row in block.splitlines()]
        assert len(set(rows)) == 1
    assert yaml.safe_load(files[MODEL_INDEX])["model-index"][0]["name"] == EVIL
    assert json.loads(files[SPDX])


def test_labels_of_bars_are_text_that_does_not_shrink_with_the_page(card):
    page = pages(card)[HTML].decode()
    bars = page.split('<div class="measures">')[1].split("</div>")[0]
    spans = re.findall(r"<span>(.*)</span>", bars)
    assert spans[:2] == ["linf 0.03, clean", "linf 0.03, attacked, at most"]
    assert len(spans) == bars.count("<svg") == bars.count(" %</b>") == 4
    first = card.evaluations[0].clean
    assert f'<rect width="{100 * first.accuracy:.2f}"' in bars
    assert f"M{100 * first.interval[0]:.2f} 9H{100 * first.interval[1]:.2f}" in bars
    assert "<text" not in page


def test_a_page_loads_nothing(card):
    page = Text(pages(card)[HTML].decode())
    loads = [attrs.get(key, "") for _, attrs in page.tags for key in ("src", "href")]
    assert [value for value in loads if value and not value.startswith(("#", "data:"))] == []


@pytest.mark.parametrize(
    "change",
    [
        {"control": {"control": 0.5, "robust": 0.9, "n": 60.0}},
        {"audit": {}},
        {"audit": {"rounds": [{"items": -1}, 3], "nonce": None}},
        {"checks": ()},
        {"attacks": ()},
        {"results": ()},
    ],
)
def test_cards_with_less_or_with_more_have_pages(card, change):
    assert all(pages(changed(card, **change)).values())


def test_threats_classes_and_dates_that_are_unusual(card):
    first = card.evaluations[0]
    odd = first.threat.model_copy(update={"kind": "rotation", "size": "30", "unit": "degrees"})
    many = {f"class {i}": first.clean for i in range(1000)}
    worst = first.worst.model_copy(update={"per_class": many})
    files = pages(changed(card, threat=odd, results=(first.clean, worst)))
    assert "rotation, 30 (degrees)" in files[MARKDOWN].decode()
    assert "976 classes with higher accuracy are in card.json" in files[MARKDOWN].decode()
    for date in (None, "yesterday", "2026-1-1"):
        assert SPDX not in pages(card.model_copy(update={"date": date}))
    assert "date" not in yaml.safe_load(pages(card.model_copy(update={"date": None}))[RESULTS])[0]


def test_hugging_face_exports_have_the_required_fields(card):
    (model,) = yaml.safe_load(pages(card)[MODEL_INDEX])["model-index"]
    assert model["name"] == card.model.source
    for result, each in zip(model["results"], card.evaluations, strict=True):
        assert result["task"]["type"] == "image-classification"
        assert {"type", "name"} <= result["dataset"].keys()
        values = [metric["value"] for metric in result["metrics"]]
        assert values == [each.clean.accuracy, each.worst.accuracy]
        assert all(metric["type"] == "accuracy" for metric in result["metrics"])
    for entry in yaml.safe_load(pages(card)[RESULTS]):
        assert {"id", "task_id"} == entry["dataset"].keys()
        assert 0 <= entry["value"] <= 1
        assert entry["date"] == "2026-11-30"


REQUIRED = {  # of SPDX 3.0.1, the schema of its JSON
    "CreationInfo": {"@id", "specVersion", "created", "createdBy"},
    "SpdxDocument": {"spdxId", "creationInfo", "rootElement", "profileConformance"},
    "SoftwareAgent": {"spdxId", "creationInfo"},
    "Agent": {"spdxId", "creationInfo"},
    "ai_AIPackage": {"spdxId", "creationInfo", "releaseTime", "suppliedBy"}
    | {"software_downloadLocation", "software_packageVersion", "software_primaryPurpose"},
}


def test_the_export_for_spdx_has_the_required_fields_and_leads_nowhere_else(card):
    document = json.loads(pages(card)[SPDX])
    graph = document["@graph"]
    assert document["@context"] == "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
    assert sorted(each["type"] for each in graph) == sorted(REQUIRED)
    for each in graph:
        assert REQUIRED[each["type"]] <= each.keys()
    known = {each.get("spdxId") or each["@id"] for each in graph}
    (package,) = (each for each in graph if each["type"] == "ai_AIPackage")
    assert {package["creationInfo"], package["suppliedBy"]} <= known
    assert package["verifiedUsing"][0]["hashValue"] == card.model.file_sha256
    assert len(package["ai_metric"]) == 4
    assert all(limit in package["ai_limitation"] for limit in card.limits)


def test_the_mapping_names_source_and_day_of_everything():
    notice, table, dates = mapping().blocks
    assert "no claim of conformity" in notice
    assert re.search(r"read on \d+ \w+ 20\d\d", notice)
    for date in ("2 December 2027", "2 August 2028", "29 June 2026"):
        assert date in dates
    for row in table.rows:
        assert re.search(r"20\d\d", row[0].text)
        assert all(cell.text.strip() for cell in row)
