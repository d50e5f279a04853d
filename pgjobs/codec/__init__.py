"""Args to JSON and back: what a handler reads equals what was enqueued, or enqueuing it is refused by its path.

The form is that of dataclasses-json, whose configuration is honoured: `config(field_name, letter_case, encoder,
decoder, exclude)` on a field, `dataclass_json(letter_case, undefined)` on a class, a `to_dict` or `from_dict` of
one's own. Each class is compiled once. What dataclasses-json changes without a word is written otherwise:

    datetime             ISO text with its offset (a zone comes back as its offset); a naive one is refused
    date, time           ISO text
    timedelta            whole microseconds, an integer
    set, frozenset       an array in a fixed order
    OrderedDict          an array of pairs: Postgres keeps no order of keys
    Decimal, UUID, Enum  text, text, the value; bytes are an array of numbers
    A | B                the member that writes a value must be the one that reads it back
    dict[K, V]           keys become text, and come back as K in an order of Postgres's own

A value must have the type that its field declares, when it is written and when it is read. Reading converts only
what loses nothing: 5 for a float, 5.0 for an int. Fields that the class does not know are ignored, so that old
and new code can run side by side, unless it says `undefined=Undefined.RAISE` or `INCLUDE`. A dict payload, or a
field of type `Any`, has no type to come back to: it holds what JSON holds, int keys become text and a tuple
becomes a list. Postgres keeps numbers as decimals, which have no -0.0: it comes back as 0.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

from pgjobs.codec.classes import compile_class
from pgjobs.codec.text import JSONB_BYTES, MAX_DEPTH, MAX_DIGITS, Refused, at, expected, instance, read, write
from pgjobs.codec.values import Codec, plain
from pgjobs.errors import InvalidArgs, InvalidOption, UndecodableArgs

__all__ = [
    "JSONB_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "METADATA_LIMIT",
    "OUTPUT_LIMIT",
    "check_class",
    "decode",
    "decode_dict",
    "encode",
    "encode_metadata",
    "encode_output",
    "json_names",
]

METADATA_LIMIT = 64 * 1024  # bytes
OUTPUT_LIMIT = 32 * 1024 * 1024  # bytes

T = TypeVar("T")


def encode(args: object, *, max_bytes: int = 1_048_576) -> str:
    """The JSON text of a dataclass instance or a mapping; `InvalidArgs` if it would not come back as it is."""
    try:
        if is_dataclass(args) and not isinstance(args, type):
            tree = _compiled(type(args)).encode(args)
        elif isinstance(args, Mapping):
            tree = plain(args)
        else:
            raise expected("an instance of a dataclass, or a dict", args)
        return write(tree, min(max_bytes, JSONB_BYTES))
    except (Refused, RecursionError) as error:
        raise InvalidArgs(f"args cannot be stored: {at(error)}") from error.__cause__


def encode_metadata(metadata: Mapping[str, Any]) -> str:
    """The JSON text of metadata; `InvalidOption` if it cannot be stored, or is too much."""
    return _encode_option("metadata", metadata, METADATA_LIMIT)


def encode_output(output: object) -> str:
    """The JSON text of any value that JSON has; `InvalidOption` if it cannot be stored, or is too much."""
    head = '{"output":'  # it travels as `$.output`, which is also what errors call it
    return _encode_option("output", {"output": output}, OUTPUT_LIMIT + len(head) + 1)[len(head) : -1]


def _encode_option(name: str, value: object, max_bytes: int) -> str:
    try:
        return encode(value, max_bytes=max_bytes)
    except InvalidArgs as error:
        raise InvalidOption(str(error).replace("args", name, 1)) from error.__cause__


def decode(cls: type[T], raw: str | Mapping[str, Any]) -> T:
    """An instance of the dataclass `cls` from JSON text, or from what that holds; `UndecodableArgs` names the field
    that does not fit, but not its value, which may not belong into a log."""
    args_class: Any = cls
    try:
        args: T = _compiled(args_class).decode(read(raw) if type(raw) is str else _tree(raw))
    except (Refused, RecursionError) as error:
        name = getattr(cls, "__qualname__", repr(cls))
        raise UndecodableArgs(f"args do not fit {name}: {at(error).discreet}") from error.__cause__
    return args


def _tree(raw: object) -> Any:
    return plain(raw) if isinstance(raw, Mapping) else read(instance(str, raw, "JSON text, or a dict"))


def decode_dict(raw: str) -> dict[str, Any]:
    """The object that the text holds, as a dict."""
    try:
        return instance(dict, read(raw), "an object")
    except (Refused, RecursionError) as error:
        raise UndecodableArgs(f"args cannot be read: {at(error).discreet}") from error.__cause__


def check_class(cls: type) -> None:
    """Raise `InvalidArgs` if `cls` is no dataclass, or has a field whose type cannot come back from JSON."""
    try:
        _compiled(cls)
    except (Refused, RecursionError) as error:
        raise InvalidArgs(f"{cls.__qualname__} cannot be a class of args: {at(error)}") from error.__cause__


def json_names(cls: type) -> Mapping[str, str] | None:
    """What each field of a dataclass is called in JSON; None for a class that writes its JSON itself."""
    return _compiled(cls).names


@lru_cache(maxsize=4096)
def _compiled(cls: Any) -> Codec:
    if isinstance(cls, type) and is_dataclass(cls):
        return compile_class(cls, {})
    raise Refused(f"{cls!r} is no dataclass")
