"""JSON text from a tree of dicts and lists and back, and Refused, the error with the path of the value.

Values are not checked one by one: `json`, and searches in its text, show whether there is a problem. Only then the tree
is walked, to find the path of the value.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, TypeVar

from pgjobs.secret_fields import HIDDEN, without_secrets

T = TypeVar("T")

MAX_DEPTH = 128  # levels of nesting: to read one level may take five of the thousand frames that Python allows
MAX_DIGITS = 4300  # of an int: the default limit of Python
JSONB_BYTES = 268_435_455  # the largest object or string that jsonb can hold


class Refused(Exception):
    """A value cannot be written or read. The path grows while the error rises through the levels of nesting.

    A `problem` that shows a value may be a function, which is called when the text is needed: the members of a union
    are tried one after the other, and most of their errors are never shown.
    """

    def __init__(self, problem: str | Callable[[], str], path: str = "", *, discreet: str = "") -> None:
        super().__init__()
        self._problem = problem
        self.path = path
        self._discreet = discreet

    @property
    def problem(self) -> str:
        return self._problem if isinstance(self._problem, str) else self._problem()

    @property
    def discreet_problem(self) -> str:
        """The problem without the value, for logs and `errors`."""
        return self._discreet or self.problem

    def __str__(self) -> str:
        path = self.path if len(self.path) <= 120 else self.path[:120] + "…"
        return f"${path}: {self.problem}"

    @property
    def discreet(self) -> str:
        """The message without the value."""
        return str(Refused(self.discreet_problem, self.path))


def as_refused(error: Exception, segment: str = "") -> Refused:
    """The error as a Refused, with the segment put before its path."""
    if not isinstance(error, Refused):
        recursion = isinstance(error, RecursionError)
        error = Refused("contains itself, or is nested too deeply" if recursion else str(error))
    error.path = segment + error.path
    return error


def segment(key: object) -> str:
    simple = isinstance(key, str) and len(key) <= 60 and key.isidentifier()
    return f".{key}" if simple else f"[{short(key)}]"


_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 60


def short(value: object) -> str:
    try:
        return _BRIEF.repr(without_secrets(value))[:60]
    except Exception:  # a __repr__ that fails, or an int with too many digits, must not hide the problem
        return "…"


def described(value: object) -> str:
    return f"{type(value).__qualname__} {short(value)}"


def about(value: object, problem: str, path: str = "") -> Refused:
    """The error about a value; without the value it names its type."""
    return Refused(lambda: f"{described(value)} {problem}", path, discreet=f"{type(value).__qualname__} {problem}")


def expected(wanted: str, value: object) -> Refused:
    return Refused(
        lambda: f"expected {wanted}, found {described(value)}",
        discreet=f"expected {wanted}, found {type(value).__qualname__}",
    )


def call_application(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a function of the application; its exceptions become a Refused."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        name = getattr(function, "__qualname__", "the function")
        raised = f"{name} raised {type(error).__qualname__}"
        raise Refused(f"{raised}: {error}", discreet=raised) from error


def check_instance(tp: type[T], value: Any, wanted: str = "") -> T:
    if isinstance(value, tp):
        return value
    raise expected(wanted or tp.__name__, value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":"))
# `encode` makes this encoder anew for each call, which takes as long as the encoding. Not every Python has it.
_make_encoder: Any = vars(json.encoder).get("c_make_encoder")
_in_chunks: Callable[[Any, int], Iterable[str]] | None = _make_encoder and _make_encoder(
    None, _ENCODER.default, json.encoder.encode_basestring, None, ":", ",", False, False, False
)
_STRING_OR_LARGE_FLOAT = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")|\d(?:\.\d+)?e\+\d+')


def write(tree: Any, max_bytes: int) -> str:
    try:
        text = _ENCODER.encode(tree) if _in_chunks is None else "".join(_in_chunks(tree, 0))
        if "e+" in text:  # Postgres would turn 1e+22 into an int
            text = _STRING_OR_LARGE_FLOAT.sub(lambda match: match[1] or f"{Decimal(match[0]):f}.0", text)
        size = len(text) if text.isascii() else len(text.encode())
    except (ValueError, RecursionError) as error:  # a lone surrogate raises a ValueError too
        raise _problem(tree) or as_refused(error) from None
    digits_were_counted = 0 < sys.get_int_max_str_digits() <= MAX_DIGITS
    many = text.count("{") + text.count("[") > MAX_DEPTH
    suspect = "\\u0000" in text or not digits_were_counted or (many and _too_deep(tree))
    if suspect and (problem := _problem(tree)):
        raise problem
    if size > max_bytes:
        path, _, longest = max(_walk(tree), key=lambda node: len(node[2]) if isinstance(node[2], str) else 0)
        too_large = f"{size} bytes of JSON, more than the {max_bytes} allowed"
        advice = "store it elsewhere and enqueue a reference to it"
        raise Refused(f"{too_large}; here is {described(longest)}: {advice}", path, discreet=f"{too_large}: {advice}")
    return text


def _too_deep(tree: Any) -> bool:
    level = [tree]
    for _ in range(MAX_DEPTH):
        inner = [node.values() if type(node) is dict else node for node in level]
        level = [node for nodes in inner for node in nodes if type(node) in (dict, list)]
    return bool(level)


def _walk(tree: Any) -> Iterator[tuple[str, int, Any]]:
    """The path, depth and value of each key and value in the tree."""
    stack: list[tuple[str, int, Any]] = [("", 1, tree)]
    while stack:
        path, depth, value = stack.pop()
        yield path, depth, value
        if type(value) is dict:
            yield from ((path + segment(key), depth, key) for key in value)
            stack.extend((path + segment(key), depth + 1, value[key]) for key in reversed(value))
        elif type(value) is list:
            stack.extend((f"{path}[{index}]", depth + 1, value[index]) for index in reversed(range(len(value))))


def hide_secret(refused: Refused, redacted: Any) -> Refused:
    """The error of `write` for a tree; if it is about a secret value, without that value and the place within it.
    `redacted` is the tree with secrets hidden."""
    for path, _, value in _walk(redacted):
        if value == HIDDEN and re.match(rf"{re.escape(path)}(?![^.\[])", refused.path):
            return Refused(refused.discreet_problem, path)
    return refused


def _problem(tree: Any) -> Refused | None:
    for path, depth, value in _walk(tree):
        if depth > MAX_DEPTH and type(value) in (dict, list):
            return Refused(f"nested more than {MAX_DEPTH} levels deep: flatten it", path)
        if problem := _leaf_problem(value):
            return about(value, problem, path)
    return None


def _leaf_problem(value: Any) -> str | None:
    if isinstance(value, str) and "\0" in value:
        return "holds the character NUL, which Postgres cannot store: remove it, or use bytes"
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return "holds a lone surrogate, which UTF-8 cannot encode: remove it, or use bytes"
    if isinstance(value, float) and not math.isfinite(value):
        return "is not a number in JSON: use None, or a Decimal"
    if isinstance(value, int) and abs(value) >= 10**MAX_DIGITS:
        return f"has more than {MAX_DIGITS} digits: pass it as text"
    return None


def _finite(text: str) -> float:
    number = float(text)
    if math.isfinite(number):
        return number
    raise ValueError(f"{short(text)} is too large for a float")


_DECODER = json.JSONDecoder(parse_float=_finite, parse_constant=_finite)
# the core of `decode`, without its two searches for surrounding white space
_scan: Callable[[str, int], tuple[Any, int]] = vars(_DECODER)["scan_once"]


def read(raw: str) -> Any:
    try:
        tree, end = _scan(raw, 0)
        if end == len(raw):
            return tree
    except Exception:  # `decode` below has the better error message, or accepts the white space
        pass
    try:
        return _DECODER.decode(check_instance(str, raw, "the text of a JSON object"))
    except ValueError as error:
        problem = "not JSON that Python can read"
        raise Refused(f"{problem}: {error}: {short(raw)}", discreet=problem) from error
