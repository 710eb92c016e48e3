"""Which parts of regulations, standards and checklists a card is evidence for, with sources."""

from equipoise.report.content import Cell, Column, Section, Table

READ = "30 November 2026"  # the day on which the sources were read last

NOTICE = (
    "This table says where a card may serve as evidence. It is no claim of conformity and no "
    f"legal advice. The sources were read on {READ}."
)
DATES = (
    "Article 15 of the EU AI Act applies to high-risk systems of Annex III from 2 December 2027, "
    "and of Annex I from 2 August 2028 (amendment adopted by the Council of the EU on 29 June "
    "2026; source: its press release of that day)."
)

_ROWS = (
    (
        "EU AI Act, Regulation (EU) 2024/1689",
        "Art. 15(3)",
        "declare the levels of accuracy and the metrics",
        "clean and robust accuracy with n, interval and threat",
        "accuracy on other data than these images",
    ),
    (
        "EU AI Act, Regulation (EU) 2024/1689",
        "Art. 15(5)",
        "measures against adversarial examples (model evasion)",
        "the training, the attacks, and each example that was found",
        "poisoning, confidentiality attacks, and threats that are not listed",
    ),
    (
        "ISO/IEC TR 24029-1:2021, ISO/IEC 24029-2:2023",
        "robustness of neural networks",
        "assess robustness by statistical, formal or empirical methods",
        "an empirical assessment: attacks within a stated threat",
        "formal guarantees",
    ),
    (
        "ISO/IEC DIS 24029-3 (draft of 8 December 2025)",
        "measuring adversarial robustness",
        "statistical methods, with reliability and choice of data",
        "counts, exact intervals, and how the images were drawn",
        "what the final text will ask",
    ),
    (
        "NIST AI 100-2 E2025 (24 March 2025)",
        "evasion attacks",
        "name goal, knowledge and capability of the attacker",
        "the terms of each threat",
        "poisoning and privacy attacks",
    ),
    (
        "OWASP AISVS 1.0 (locked 26 June 2026)",
        "v1.0-C11.1.3",
        "evaluate against known adversarial attacks of the modality",
        "the attacks, their settings and the verdict on each image",
        "attacks that are not listed",
    ),
    (
        "OWASP AISVS 1.0 (locked 26 June 2026)",
        "v1.0-C11.1.4",
        "harden models against adversarial inputs",
        "the training method and its recipe, where it was trained here",
        "hardening outside the model",
    ),
    (
        "OWASP AISVS 1.0 (locked 26 June 2026)",
        "v1.0-C3.1.2, v1.0-C6.1.3",
        "sign model artifacts; make their integrity verifiable",
        "checksums of weights, code and data in a signed statement",
        "whose key it is, and a signature of each artifact",
    ),
)


def mapping() -> Section:
    """Return the table of all parts, with dates and sources."""
    heads = ("source", "part", "what it asks", "what the card has", "what it does not show")
    return Section(
        "Regulations, standards and checklists",
        (
            NOTICE,
            Table(
                name="mapping",
                title="What the card is evidence for",
                columns=tuple(Column(head, number=False) for head in heads),
                rows=tuple(tuple(Cell(text) for text in row) for row in _ROWS),
            ),
            DATES,
        ),
        id="mapping",
    )
