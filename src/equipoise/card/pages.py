"""A card for people: ``card.html`` and ``card.md``. The same card gives the same bytes.

The texts of a card are somebody else's: in both formats they are shown literally.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from equipoise.card.exports import exports
from equipoise.card.mapping import mapping
from equipoise.card.schema import CardCount, CardEvaluation, ModelCard
from equipoise.report import wording
from equipoise.report.content import Block, Cell, Column, Section, Table
from equipoise.report.formats import environment, markdown_sections, markdown_text
from equipoise.store.records import WORST

HTML, MARKDOWN = "card.html", "card.md"
MANY = 24  # classes; of more, those with the lowest accuracy are shown
_ACCURACIES = {"clean accuracy": True, "robust accuracy, at most": True}
NOT_COMPLETE = "NOT COMPLETE: do not rely on the numbers below."


def pages(card: ModelCard) -> dict[str, bytes]:
    """Return the files that are written beside ``card.json``, by their names."""
    title = plain(f"Card of {card.model.source}, weights {card.model.weights}")
    problems, sections = [plain(text) for text in card.problems], [*_sections(card)]
    html = environment("equipoise.card").get_template("card.html.j2")
    blanks = {"title": title, "problems": problems, "warning": NOT_COMPLETE}
    page = html.render(**blanks, headline=_headline(card), bars=[*_bars(card)], sections=sections)
    return {
        HTML: page.encode(),
        MARKDOWN: _markdown(title, problems, _headline(card), sections).encode(),
        **exports(card),
    }


def brief(card: ModelCard) -> str:
    """Return the results of a card, how to read them and how the model was made, as Markdown."""
    parts = [*_sections(card)]
    kept = [part for part in parts if part.id in ("limits", "results", "training")]
    problems = [plain(text) for text in card.problems]
    return _markdown("", problems, _headline(card), kept)


def plain(text: object) -> str:
    """Return a text of a card as one line, without control characters and backticks."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "?" for c in line).replace("`", "'")


def _markdown(
    title: str, problems: Sequence[str], headline: Sequence[str], sections: Sequence[Section]
) -> str:
    parts = [f"# {markdown_text(title)}\n"] if title else []
    if problems:
        lines = "".join(f"> - {markdown_text(text)}\n" for text in problems)
        parts.append(f"> **{NOT_COMPLETE}**\n>\n{lines}")
    parts += [f"{markdown_text(sentence)}\n" for sentence in headline]
    return "\n".join([*parts, markdown_sections(sections)])


def _headline(card: ModelCard) -> list[str]:
    """Return a sentence for each evaluation."""
    return [
        plain(
            f"{_threat(each)}: at most {_count(each.worst)} are classified correctly under the "
            f"attacks listed; {_count(each.clean)} without an attack."
            + (f" Audit: {each.audit.get('sentence')}." if each.audit else "")
        )
        for each in card.evaluations
    ]


def _count(count: CardCount | None) -> str:
    if count is None:
        return "an unknown share of the images"
    low_high = wording.interval(count.interval)
    share = wording.percent(count.accuracy)
    return f"{share} of {count.n:,} images (95 % interval {low_high} %)"


def _threat(each: CardEvaluation) -> str:
    return f"{each.threat.kind}, {each.threat.size} ({each.threat.unit})"


def _bars(card: ModelCard) -> Iterator[Mapping[str, Any]]:
    """Yield what the bars of each evaluation show, in percent."""
    for each in card.evaluations:
        for name, count in (("clean", each.clean), ("attacked, at most", each.worst)):
            if count is not None:
                low, high = (100 * bound for bound in count.interval)
                text = f"{plain(each.threat.kind)} {plain(each.threat.size)}, {name}"
                shown = {"text": text, "value": 100 * count.accuracy, "clean": name == "clean"}
                yield {**shown, "low": low, "high": high}


def _sections(card: ModelCard) -> Iterator[Section]:
    yield Section("How to read it", tuple(map(plain, card.limits)), id="limits")
    yield Section("Results", (_overview(card),), id="results")
    for number, each in enumerate(card.evaluations, 1):
        yield _evaluation(each, number)
    yield Section("Model", (_facts(_model(card)),), id="model")
    yield Section("Inputs", tuple(_inputs(card)), id="inputs")
    yield Section("Training and choices", tuple(_training(card)), id="training")
    yield mapping()
    yield Section("Check it yourself", (_checking(card),), id="check")


def _table(
    name: str,
    title: str,
    heads: Mapping[str, bool],
    rows: Iterable[tuple[Cell, ...]],
    notes: Sequence[str] = (),
) -> Table:
    """Return a table; of each column its head, and whether it holds numbers."""
    columns = tuple(Column(head, number=number) for head, number in heads.items())
    return Table(name=name, title=title, columns=columns, rows=tuple(rows), notes=tuple(notes))


def _overview(card: ModelCard) -> Table:
    heads = {"threat": False, "images": True, **_ACCURACIES, "failed checks": False}
    note = "Below each accuracy: its exact 95 % interval."
    return _table(
        "overview", "All evaluations", heads, map(_overview_row, card.evaluations), [note]
    )


def _overview_row(each: CardEvaluation) -> tuple[Cell, ...]:
    failed = [plain(finding.check) for finding in each.checks if finding.status == "failed"]
    state = ", ".join(failed) or ("none" if each.checked else "the checks were not run")
    return (
        Cell(plain(_threat(each)), small="" if each.finished else "not finished"),
        Cell(f"{each.data.n:,}", each.data.n),
        _cell(each.clean),
        _cell(each.worst),
        Cell(state),
    )


def _cell(count: CardCount | None) -> Cell:
    if count is None:
        return Cell()
    return Cell(wording.percent(count.accuracy), count.accuracy, wording.interval(count.interval))


def _evaluation(each: CardEvaluation, number: int) -> Section:
    tag = "" if each.finished else "not finished"
    blocks: list[Block] = [_facts(_described(each)), _results(each), *_classes(each)]
    blocks += [_attacks(each), *_checks(each)]
    title = plain(f"{each.threat.kind} {each.threat.size}, {each.data.n:,} images")
    of = plain(f"of {each.data.name}")
    return Section(title, blocks, id=f"evaluation-{number}", small=of, tag=tag)


def _described(each: CardEvaluation) -> Iterator[tuple[str, object]]:
    yield "Images", each.data.sample.words(f"{each.data.split} images")
    yield "In the words of NIST AI 100-2", _numbers(each.threat.terms)
    yield "Threat", f"{_threat(each)}; values from {each.threat.low:g} to {each.threat.high:g}"
    yield "Audit", _audit(each)
    yield "Undefended model on the same images", _numbers(each.control) or "not stored"
    yield "Seed, passes, arithmetic", f"{each.seed}, {each.passes}, {each.precision}"
    yield "Software", _numbers(each.software)
    yield "Checksum of the images", each.data.inputs_sha256
    yield "Checksum of the labels", each.data.labels_sha256
    yield "Examples", f"{each.pack.examples:,} in {each.pack.file}, root {each.pack.root}"


def _audit(each: CardEvaluation) -> str:
    if each.audit is None:
        return "none: of the images that count as robust, none was drawn for an audit"
    nonce, sentence = each.audit.get("nonce"), each.audit.get("sentence", "see card.json")
    return f"{sentence} (nonce {nonce})"


def _results(each: CardEvaluation) -> Table:
    heads = {"under": False, "correct": True, "images": True, "accuracy": True}
    rows = (
        (
            Cell("no attack" if result.attack == "clean" else plain(result.attack)),
            Cell(f"{result.robust:,}", result.robust),
            Cell(f"{result.n:,}", result.n),
            _cell(result),
        )
        for result in each.results
    )
    note = "Under an attack these are upper bounds: at most so many images are robust."
    return _table("results", "Results by attack", heads, rows, [note])


def _classes(each: CardEvaluation) -> Iterator[Table]:
    """Yield the accuracy of each class, the lowest first."""
    worst = each.worst or each.clean
    if worst is None or not worst.per_class:
        return
    clean = each.clean.per_class if each.clean else {}
    ordered = sorted(worst.per_class.items(), key=lambda item: (item[1].accuracy, item[0]))
    left_out = len(ordered) - MANY
    heads = {"class": False, "images": True, **_ACCURACIES}
    rows = (
        (
            Cell(plain(name)),
            Cell(f"{count.n:,}", count.n),
            _cell(clean.get(name)),
            _cell(count if each.worst else None),
        )
        for name, count in ordered[:MANY]
    )
    notes = [f"{left_out:,} classes with higher accuracy are in card.json."] * (left_out > 0)
    yield _table("classes", "Results by class", heads, rows, notes)


def _attacks(each: CardEvaluation) -> Table:
    heads = {"attack": False, "images attacked": True, "broken first": True}
    rows = (
        (
            Cell(plain(attack.name)),
            Cell(f"{int(each.flags(attack.attacked).sum()):,}"),
            Cell(f"{attack.broken_first:,}", attack.broken_first),
            Cell("finished" if attack.finished else "not finished"),
            Cell(plain("; ".join([attack.settings, *attack.notes]))),
        )
        for attack in each.attacks
    )
    heads |= {"state": False, "settings": False}
    return _table(
        "attacks", "Attacks", heads, rows, [f"The worst case is under all of them ({WORST})."]
    )


def _checks(each: CardEvaluation) -> Iterator[Block]:
    if not each.checks:
        yield "No checks were run."
        return
    order = ("failed", "warning", "skipped", "ok")
    rows = (
        (
            Cell(plain(finding.check)),
            Cell(finding.status),
            Cell(plain(finding.message), small=plain(finding.remedy)),
        )
        for finding in sorted(each.checks, key=lambda f: order.index(f.status))
    )
    heads = dict.fromkeys(("check", "status", "what it says"), False)
    yield _table("checks", "Checks of the evaluation", heads, rows)


def _model(card: ModelCard) -> Iterator[tuple[str, object]]:
    model = card.model
    yield "Weights", model.weights
    yield "Checksum of the weights", model.sha256
    yield "File", f"{model.file}, {model.file_sha256}" if model.file else "none"
    yield "Source", f"{model.kind} {model.source}"
    yield "Settings", _numbers(model.settings) or "none"
    code = model.code
    yield (
        "Code",
        f"{code.file}, {code.sha256}, recorded at the {code.recorded}" if code else "unknown",
    )
    yield "Written by", model.package
    yield "Date", card.date or "none"


def _inputs(card: ModelCard) -> Iterator[Block]:
    inputs = card.inputs
    yield _facts(
        (
            ("Shape", " x ".join(map(str, inputs.shape))),
            ("Range", f"{inputs.low:g} to {inputs.high:g}"),
            ("Scale", inputs.scale),
            ("Normalisation", inputs.normalisation),
            ("Remarks", "; ".join(inputs.remarks) or "none"),
        )
    )
    yield "Not recorded: " + "; ".join(map(plain, inputs.not_recorded)) + "."


def _training(card: ModelCard) -> Iterator[Block]:
    yield from map(plain, card.choices)
    training = card.training
    if training is None:
        yield "The training is not recorded."
        return
    yield _facts(
        (
            ("Method", training.method),
            ("Finished", "yes" if training.finished else "no"),
            ("Data", f"{training.data}; {_numbers(training.data_sha256)}"),
            ("Kept", training.kept),
            ("Software", _numbers(training.software)),
        )
    )
    recipe = {plain(name): plain(value) for name, value in wording.flatten(training.recipe)}
    yield Section("Recipe", (recipe,), folded=True)


def _checking(card: ModelCard) -> Mapping[str, str]:
    model = " --model RUN"
    if card.model.kind == "function":
        model = " --model package.module:function" + " --weights FILE" * bool(card.model.file)
    model += " --data FILE.npz" * card.evaluations[0].data.name.endswith(".npz")
    return {
        "With equipoise": f"`equipoise verify CARD --key KEY.pub{model}`",
        "Checksum of the card": card.sha256,
        "Schema": f"format {card.format}; docs/formats.md of equipoise describes each field",
    }


def _numbers(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{key}: {value}" for key, value in (values or {}).items())


def _facts(pairs: Any) -> Mapping[str, str]:
    return {key: plain(value) for key, value in pairs}
