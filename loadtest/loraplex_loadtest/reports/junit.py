"""Conditions as test cases, for build servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from loraplex_loadtest.conditions import Verdict


def junit_xml(document: Mapping[str, Any], verdicts: Sequence[Verdict]) -> str:
    """One case for each condition, one for the generator, one for the counters."""
    name = str(document["scenario"]["name"])
    cases: list[tuple[str, str]] = [
        ("the generator kept the plan", "; ".join(document["generator"]["complaints"])),
    ]
    if (reconciled := document["reconciliation"]) is not None:
        told = "" if reconciled["is_explained"] else f"the difference is {reconciled['difference']:g}"
        cases.append(("client and server counted the same", told))
    cases += [(f"not {one.condition.text}", one.text() if one.fails else "") for one in verdicts]
    suite = ElementTree.Element(
        "testsuite",
        name=f"loadtest {name}",
        tests=str(len(cases)),
        failures=str(sum(bool(told) for _, told in cases)),
    )
    for case, told in cases:
        element = ElementTree.SubElement(suite, "testcase", classname=f"loadtest.{name}", name=case)
        if told:
            ElementTree.SubElement(element, "failure", message=told)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"
