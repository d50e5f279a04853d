"""What the doctor finds, as its tests ask for it."""

from __future__ import annotations

import re
from functools import cache

from pgjobs import Client, Finding, Severity
from tests.documents import ROOT

COULD_NOT_LOOK = "could not look"


@cache
def documented() -> dict[str, list[str]]:
    """The severities of each check, as the guide has them."""
    text = (ROOT / "pgjobs" / "guide" / "doctor.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| ([a-z, ]+) \|", text, re.MULTILINE)
    return {check: severities.split(", ") for check, severities in rows}


def found(client: Client, check: str) -> list[Finding]:
    """What this check finds now."""
    findings = [finding for finding in client.doctor() if finding.check == check]
    for finding in findings:
        if not finding.what.startswith(COULD_NOT_LOOK):
            assert finding.severity in documented()[check], "the guide has all severities of a check"
        assert finding.what
        assert finding.why
        assert finding.advice
    return findings


def one(client: Client, check: str, severity: Severity) -> str:
    """What the only finding of this check says, which has this severity."""
    (finding,) = found(client, check)
    assert finding.severity is severity, finding
    return finding.what
