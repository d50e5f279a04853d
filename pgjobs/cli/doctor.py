"""`pgjobs doctor`: what is wrong with the database, the tables and the work."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from pgjobs.cli.arguments import VIEWER, Commands, add_database, add_json
from pgjobs.cli.database import client_of
from pgjobs.cli.output import count_of, harmless, print_json, say
from pgjobs.observe.doctor.finding import Finding, Severity

# A notice is not worth an alarm.
_CODES = {Severity.OK: 0, Severity.NOTICE: 0, Severity.WARNING: 5, Severity.CRITICAL: 6}
_INDENT = " " * 10


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("doctor", help="look for what is wrong with the database, the tables and the work")
    parser.description = (
        "Look for what is wrong with the database, the tables and the work, and say why it matters and what to do. "
        "Changes nothing. The exit code is 0 without findings or with notices alone, 5 with a warning, 6 with a "
        "critical finding. `pgjobs guide doctor` lists the checks."
    )
    parser.add_argument("--all", action="store_true", help="show the checks that found nothing, too")
    add_json(parser, "one JSON object for each finding, each on a line")
    add_database(parser, rights=VIEWER)
    parser.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    with client_of(options) as app:
        findings = app.client.doctor(threads=app.threads, include_ok=options.all)
    if options.json:
        for finding in findings:
            print_json(asdict(finding))
    else:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        for line in _lines(findings, width):
            print(line)
        say(_summary(findings))
    return _CODES[max((finding.severity for finding in findings), key=lambda each: each.rank, default=Severity.OK)]


def _lines(findings: Iterable[Finding], width: int | None) -> Iterator[str]:
    for finding in findings:
        head = f"{finding.severity.upper():<8}  {finding.check}: {harmless(finding.what)}"
        yield from _wrapped(head, width)
        if finding.severity is not Severity.OK:
            yield from _wrapped(f"{_INDENT}Why: {finding.why}", width)
            yield from _wrapped(f"{_INDENT}Do:  {harmless(finding.advice)}", width)


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None:
        return [text]
    return textwrap.wrap(text, max(width, 40), subsequent_indent=_INDENT, drop_whitespace=True) or [text]


def _summary(findings: Sequence[Finding]) -> str:
    found = Counter(finding.severity for finding in findings)
    words = {Severity.CRITICAL: "critical finding", Severity.WARNING: "warning", Severity.NOTICE: "notice"}
    counted = [count_of(found[severity], word) for severity, word in words.items() if found[severity]]
    return ", ".join(counted) or "nothing found"
