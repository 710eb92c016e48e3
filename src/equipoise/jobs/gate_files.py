"""What a gate decided, as files for build servers: JUnit XML and SARIF. The same bits twice.

References:
    | Static Analysis Results Interchange Format (SARIF) 2.1.0 (OASIS, 2020)
    | https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

from equipoise.errors import RunError, UserError
from equipoise.jobs.gate import UNDECIDED, Decision
from equipoise.store import files
from equipoise.version import __version__

RULES = {
    "requirement": "The 95 % lower bound of an accuracy is below the requirement",
    "drop": "The 95 % upper bound of the drop of accuracy is above the margin",
    "checks": "A check of the evaluation failed: its numbers cannot be trusted",
    UNDECIDED: "The gate could not decide",
}
_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def write(
    decisions: Sequence[Decision], run: Path, junit: Path | None, sarif: Path | None
) -> None:
    """Write the files that are wanted, each whole or not at all.

    Arguments:
        decisions: What was decided.
        run: The run folder.
        junit: The path of the JUnit XML; None: it is not wanted.
        sarif: The path of the SARIF file; None: it is not wanted.

    Raises:
        UserError: If one cannot be written.
    """
    if junit is not None and sarif is not None and junit.absolute() == sarif.absolute():
        raise UserError(f"--junit and --sarif name the same file, {junit}")
    for path, content in ((junit, junit_xml), (sarif, sarif_json)):
        if path is not None:
            text = content(decisions, run)
            try:
                files.refuse_foreign(path, text[:20].encode())
                files.write(path, text)
            except (OSError, RunError) as error:  # their exit code would say that the model failed
                raise UserError(str(error)) from None


def junit_xml(decisions: Sequence[Decision], run: Path) -> str:
    """Return JUnit XML with a test case for each decision."""
    errors = sum(d.rule == UNDECIDED for d in decisions)
    failures = sum(not d.passed for d in decisions) - errors
    counts = {"tests": len(decisions), "failures": failures, "errors": errors}
    words = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", words)
    suite = ElementTree.SubElement(
        suites, "testsuite", {"name": "equipoise gate", **words, "skipped": "0"}
    )
    for each in decisions:
        named = {"classname": printable(str(run)), "name": printable(each.name)}
        case = ElementTree.SubElement(suite, "testcase", named)
        text = printable(each.text)
        if each.passed:
            ElementTree.SubElement(case, "system-out").text = text
        else:
            kind = "error" if each.rule == UNDECIDED else "failure"
            ElementTree.SubElement(case, kind, {"message": text, "type": each.rule}).text = text
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def sarif_json(decisions: Sequence[Decision], run: Path) -> str:
    """Return SARIF with a result for each decision that is not met, and none for the others."""
    rules = [{"id": name, "shortDescription": {"text": text}} for name, text in RULES.items()]
    driver = {"name": "equipoise gate", "version": __version__, "rules": rules}
    results = [
        {
            "ruleId": each.rule,
            "ruleIndex": [*RULES].index(each.rule),
            "level": "error",
            "message": {"text": printable(f"{each.name}: {each.text}")},
            "locations": [
                {"physicalLocation": {"artifactLocation": {"uri": _uri(each.file or run)}}}
            ],
            "partialFingerprints": {"requirement/v1": printable(each.name)},
        }
        for each in decisions
        if not each.passed
    ]
    content = {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results}],
    }
    return json.dumps(content, indent=2) + "\n"


def printable(text: str) -> str:
    """Return a text without characters that XML and terminals do not allow."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _uri(path: Path) -> str:
    """Return a relative path as a reference, an absolute one as an address."""
    return path.as_uri() if path.is_absolute() else quote(os.fsencode(path.as_posix()))
