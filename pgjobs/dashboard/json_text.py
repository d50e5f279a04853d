"""JSON for people: indented without reading its numbers, so that each stays as it is stored, and with secrets kept."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pgjobs.secret_fields import HIDDEN

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+|"', re.DOTALL)
# Characters that are not seen, or that change the direction of a text: JSON can say them in another way.
_UNSEEN = re.compile(r"[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]")
_DEEPEST = 40  # levels that are indented further than those above
_MOST = 100_000  # characters of a page


def pretty(raw: str, most: int = _MOST) -> tuple[str, int]:
    """The JSON text indented, and how many characters of it were cut off."""
    lines, size = list[str](), 0
    for line in _lines(raw):
        lines.append(line)
        size += len(line) + 1
        if size > most:
            whole = "\n".join(lines)
            return whole[:most], max(0, len(raw) - most)
    return "\n".join(lines), 0


def _lines(raw: str) -> Iterator[str]:
    line, depth, before = "", 0, ""
    for match in _TOKEN.finditer(raw):
        token = match[0]
        if token in "}]":
            depth -= 1
        opens_empty = before in ("{", "[") and token in "}]"
        breaks = before in ("{", "[", ",") or (token in "}]" and before != "")
        if breaks and not opens_empty:
            yield line
            line = "  " * min(depth, _DEEPEST)
        line += _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", token)
        if token == ":":
            line += " "
        if token in "{[":
            depth += 1
        before = token
    yield line


def with_secrets(given: Any, shown: Any, original: Any) -> Any:
    """What a person has made of the JSON that was shown to them, with the original values in the places where it still
    says `[secret]` as it was shown."""
    if given == HIDDEN == shown:
        return original
    if isinstance(given, dict) and isinstance(shown, dict) and isinstance(original, dict):
        return {
            key: with_secrets(part, shown.get(key), original[key]) if key in original else part
            for key, part in given.items()
        }
    if isinstance(given, list) and isinstance(shown, list) and isinstance(original, list):
        known = list(zip(given, shown, original, strict=False))
        return [with_secrets(*parts) for parts in known] + given[len(known) :]
    return given
