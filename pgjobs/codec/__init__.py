"""Args to JSON and back: a handler gets args equal to the enqueued ones, or enqueuing raises InvalidArgs with the path.

The form is that of dataclasses-json, whose configuration is respected: `config(field_name, letter_case, encoder,
decoder, exclude)` on a field, `dataclass_json(letter_case, undefined)` on a class, and overridden `to_dict` or
`from_dict` methods. Each class is compiled once. The form differs where dataclasses-json would silently change a value:

    datetime             ISO text with its offset (a zone comes back as its offset); a naive one is refused
    date, time           ISO text
    timedelta            an integer: microseconds
    set, frozenset       an array in a fixed order
    OrderedDict          an array of pairs: Postgres keeps no order of keys
    Decimal, UUID        text
    Enum                 its value
    bytes                an array of numbers
    A | B                the member that writes a value must also be the member that reads it back
    dict[K, V]           keys become text, and come back as K in the order of Postgres

A value must have the type that its field declares, when it is written and when it is read. Reading converts only
without loss: 5 to a float, 5.0 to an int. Unknown fields are ignored, so that old and new code can run side by side,
unless the class says `undefined=Undefined.RAISE` or `INCLUDE`. A dict payload, and a field of type `Any`, can hold only
what JSON holds: int keys become text, and a tuple becomes a list. Postgres stores numbers as decimals, which have no
-0.0: it comes back as 0.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, cast

from pgjobs.codec.classes import compile_class
from pgjobs.codec.scalars import Codec
from pgjobs.codec.text import (
    JSONB_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    Refused,
    as_refused,
    check_instance,
    expected,
    hide_secret,
    read,
    write,
)
from pgjobs.codec.values import json_copy
from pgjobs.errors import InvalidArgs, InvalidOption, UndecodableArgs, shown
from pgjobs.secret_fields import HIDDEN

__all__ = [
    "JSONB_BYTES",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "METADATA_LIMIT",
    "OUTPUT_LIMIT",
    "check_class",
    "decode",
    "decode_args",
    "decode_dict",
    "encode",
    "encode_metadata",
    "encode_output",
    "json_names",
    "redacted",
]

METADATA_LIMIT = 64 * 1024  # bytes
OUTPUT_LIMIT = 32 * 1024 * 1024  # bytes

T = TypeVar("T")


def encode(args: object, *, max_bytes: int = 1_048_576) -> str:
    """The JSON text of a dataclass instance or a mapping. Raises InvalidArgs if it would not come back equal."""
    try:
        if is_dataclass(args) and not isinstance(args, type):
            tree = _compiled(type(args)).encode(args)
        elif isinstance(args, Mapping):
            tree = json_copy(args)
        else:
            raise expected("an instance of a dataclass, or a dict", args)
        return write(tree, min(max_bytes, JSONB_BYTES))
    except (Refused, RecursionError) as error:
        raise InvalidArgs(f"args cannot be stored: {_without_secrets(error, args)}") from error.__cause__


def _without_secrets(error: Exception, args: object) -> Refused:
    """The error of `encode`. If `write` raised it, which knows no fields, it may show the value of a secret one."""
    refused = as_refused(error)
    args_class: Any = type(args)
    try:
        codec = _compiled(args_class)
        return hide_secret(refused, codec.redact(codec.encode(args)))
    except (
        Refused,
        RecursionError,
    ):  # args are a dict, or their fields cannot be encoded, and that error hides secrets
        return refused


def encode_metadata(metadata: Mapping[str, Any]) -> str:
    """The JSON text of metadata. Raises InvalidOption if JSON cannot hold it, or it is too large."""
    return _encode_option("metadata", metadata, METADATA_LIMIT)


def encode_output(output: object) -> str:
    """The JSON text of any JSON value. Raises InvalidOption if JSON cannot hold it, or it is too large."""
    head = '{"output":'  # encoded as `$.output`, so that errors name that path
    return _encode_option("output", {"output": output}, OUTPUT_LIMIT + len(head) + 1)[len(head) : -1]


def _encode_option(name: str, value: object, max_bytes: int) -> str:
    try:
        return encode(value, max_bytes=max_bytes)
    except InvalidArgs as error:
        raise InvalidOption(str(error).replace("args", name, 1)) from error.__cause__


def decode(cls: type[T], raw: str | Mapping[str, Any]) -> T:
    """An instance of the dataclass `cls` from JSON text, or from a mapping. Raises UndecodableArgs, whose message names
    the field that does not fit, but not its value, which may be confidential."""
    args_class: Any = cls
    try:
        args: T = _compiled(args_class).decode(read(raw) if type(raw) is str else _tree(raw))
    except (Refused, RecursionError) as error:
        name = getattr(cls, "__qualname__", repr(cls))
        raise UndecodableArgs(f"args do not fit {name}: {as_refused(error).discreet}") from error.__cause__
    return args


def _tree(raw: object) -> Any:
    return json_copy(raw) if isinstance(raw, Mapping) else read(check_instance(str, raw, "JSON text, or a dict"))


def redacted(cls: type, raw: str) -> str:
    """The JSON text of args of the dataclass `cls`, with `[secret]` in place of the values of secret fields. Where
    there is a secret field inside, hidden as well is what a class does not declare, what has another form than the
    declared one, and the whole of what a `to_dict` or an encoder of the application has made. The text need not fit the
    class; one that Python cannot read is hidden whole."""
    try:
        tree = read(raw)
        redacted = _compiled(cls).redact(tree)
        return raw if redacted == tree else write(redacted, JSONB_BYTES)
    except (Refused, RecursionError):
        return json.dumps(HIDDEN)


def decode_dict(raw: str) -> dict[str, Any]:
    """A dict from the JSON text of an object. Raises UndecodableArgs."""
    try:
        tree = read(raw)
        return tree if type(tree) is dict else check_instance(dict, tree, "an object")
    except (Refused, RecursionError) as error:
        raise UndecodableArgs(f"args cannot be read: {as_refused(error).discreet}") from error.__cause__


def decode_args(cls: type[T], raw: str | Mapping[str, Any] | T) -> T:
    """An instance of the args class `cls`, made from `job.raw_args` (JSON text), or from `job.args` if that is a dict.
    An instance of the class is returned unchanged. Raises UndecodableArgs if the JSON does not fit the class."""
    if not isinstance(cls, type):
        raise InvalidArgs(f"the first argument of decode_args must be an args class, not {shown(cls)}")
    if isinstance(raw, cls):
        return raw
    if issubclass(cls, dict):
        return cast(T, decode_dict(cast(str, raw)))
    return decode(cls, cast(str | Mapping[str, Any], raw))


def check_class(cls: type) -> None:
    """Raise InvalidArgs if `cls` is not a dataclass, or a field has a type that cannot come back from JSON."""
    try:
        _compiled(cls)
    except (Refused, RecursionError) as error:
        raise InvalidArgs(f"{cls.__qualname__} cannot be a class of args: {as_refused(error)}") from error.__cause__


def json_names(cls: type) -> Mapping[str, str] | None:
    """The JSON name of each field of a dataclass; None for a class with its own `to_dict`."""
    return _compiled(cls).names


@lru_cache(maxsize=4096)
def _compiled(cls: Any) -> Codec:
    if isinstance(cls, type) and is_dataclass(cls):
        return compile_class(cls, {})
    raise Refused(f"{cls!r} is not a dataclass")
