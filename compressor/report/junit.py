"""Verdicts as JUnit XML, which every CI shows: one test case per gate."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from compressor.core.results import GateRecord

_CONTROL = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _clean(text: str) -> str:
    """XML 1.0 has no place for control characters, escaped or not."""
    return _CONTROL.sub("�", text)


def document(gates: Sequence[GateRecord], name: str = "compressor") -> str:
    """FAIL is a failure; INCONCLUSIVE and SKIPPED are skipped, with the sentence as the reason."""
    failed = sum(g.verdict == "FAIL" for g in gates)
    skipped = sum(g.verdict in {"INCONCLUSIVE", "SKIPPED"} for g in gates)
    suite = ET.Element(
        "testsuite",
        name=_clean(name),
        tests=str(len(gates)),
        failures=str(failed),
        errors="0",
        skipped=str(skipped),
    )
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname="gates", name=_clean(gate.gate))
        message = _clean(f"{gate.verdict}: {gate.sentence}")
        if gate.verdict == "FAIL":
            ET.SubElement(case, "failure", message=message).text = message
        elif gate.verdict in {"INCONCLUSIVE", "SKIPPED"}:
            ET.SubElement(case, "skipped", message=message)
        else:
            ET.SubElement(case, "system-out").text = message
    ET.indent(suite)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"
    )
