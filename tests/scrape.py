"""The text format of Prometheus, read strictly: what it would refuse is an error here."""

from __future__ import annotations

import re

from pgjobs.observe.metrics import METRICS

#: The name of a series and its labels, sorted.
Series = tuple[str, tuple[tuple[str, str], ...]]

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (\S+)')
_LABEL = re.compile(r'([a-z]+)="((?:[^"\\\n]|\\["\\n])*)",?')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def scraped(text: str) -> dict[Series, float]:
    """The value of each series."""
    assert text.endswith("\n")
    found: dict[Series, float] = {}
    described: list[str] = []
    for line in text.removesuffix("\n").split("\n"):
        if line.startswith("# "):
            word, name, rest = line[2:].split(" ", 2)
            metric = next(each for each in METRICS if each.name == name)
            assert rest == {"HELP": metric.help, "TYPE": metric.type}[word]
            described.append(name)
            continue
        match = _SAMPLE.fullmatch(line)
        assert match is not None, line
        assert re.sub(r"_(bucket|sum|count)$", "", match[1]) == described[-1], "its description comes before it"
        labels = [(name, re.sub(r"\\.", lambda each: _ESCAPES[each[0]], value)) for name, value in
                  _LABEL.findall(match[2] or "")]  # fmt: skip
        series = match[1], tuple(sorted(labels))
        assert series not in found, "a series comes once"
        found[series] = float(match[3])
    assert len(described) == 2 * len(set(described)), "each metric is described once"
    return found
