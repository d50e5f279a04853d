"""Codecs of types without parts: text, numbers, times, literals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any, Literal, NamedTuple
from uuid import UUID

from pgjobs.codec.text import Refused, expected

Convert = Callable[[Any], Any]


def unchanged(value: Any) -> Any:
    return value


class Codec(NamedTuple):
    """How the values of one type are written as JSON and read back."""

    encode: Convert
    decode: Convert
    json_types: tuple[type, ...]  # the Python types of the JSON that `encode` returns
    same: type | None = None  # values of exactly this type need no conversion, which saves a call for most fields
    names: Mapping[str, str] | None = None  # of a dataclass: the JSON name of each field
    redact: Convert = unchanged  # a copy of the JSON with secret values hidden; never raises


def scalar(
    tp: type, json_types: tuple[type, ...], write: Convert = unchanged, read: Convert = unchanged, *also: type
) -> Codec:
    """The codec of a type without parts. `also` are other JSON types that it reads too, because they lose nothing."""

    def checked(accepted: Any, denied: Any, convert: Convert) -> Convert:
        def function(value: Any) -> Any:
            try:
                if isinstance(value, accepted) and not isinstance(value, denied):
                    return convert(value)
            except (ValueError, TypeError, ArithmeticError, LookupError):
                pass
            raise expected(tp.__name__, value)

        return function

    not_this = {int: bool, float: bool, date: datetime}.get(tp, ())  # a subclass in Python, but another type in JSON
    encode = checked((float, int) if tp is float else tp, not_this, write)
    decode = checked((*json_types, *also), () if bool in json_types else bool, read)
    return Codec(encode, decode, json_types, tp if tp in json_types else None)


def _integer(raw: int | float) -> int:
    # JSON does not distinguish 5.0 from 5. Above 2**53 the text may have been an integer that a float cannot hold.
    if raw == int(raw) and (isinstance(raw, int) or abs(raw) <= 2**53):
        return int(raw)
    raise ValueError


def _write_float(value: float) -> float:
    number = float(value)
    if number == value or math.isnan(number):
        return value if type(value) is int else number
    raise expected("a number that a float holds exactly", value)


def _aware(value: datetime) -> datetime:
    if value.utcoffset() is not None:
        return value
    advice = "give it a time zone, as datetime.now(timezone.utc) has"
    raise Refused(f"naive datetime {value}: {advice}", discreet=f"naive datetime: {advice}")


def _write_time(value: time) -> str:
    if value.tzinfo is None or value.utcoffset() is not None:
        return value.isoformat()
    problem = "has a zone without an offset, since that depends on the date: use a datetime"
    raise Refused(f"time {value} {problem}", discreet=f"time {problem}")


_TEXT, _MICROSECOND = (str,), timedelta.resolution
SCALARS: dict[Any, Codec] = {
    str: scalar(str, _TEXT, str.__str__),
    int: scalar(int, (int,), int.__int__, _integer, float),
    float: scalar(float, (float, int), _write_float, float),
    bool: scalar(bool, (bool,)),
    NoneType: scalar(NoneType, (NoneType,)),
    bytes: scalar(bytes, (list,), list, bytes),
    Decimal: scalar(Decimal, _TEXT, str, Decimal, int),
    UUID: scalar(UUID, _TEXT, str, UUID),
    datetime: scalar(
        datetime, _TEXT, lambda value: _aware(value).isoformat(), lambda raw: _aware(datetime.fromisoformat(raw))
    ),
    date: scalar(date, _TEXT, date.isoformat, date.fromisoformat),
    time: scalar(time, _TEXT, _write_time, time.fromisoformat),
    timedelta: scalar(timedelta, (int,), lambda value: value // _MICROSECOND, lambda raw: raw * _MICROSECOND),
}


def json_types_of(values: Iterable[object], owner: str) -> tuple[type, ...]:
    """The types of the values of an enum or Literal; refuses other types than those of JSON."""
    json_types = {type(value) for value in values}
    if json_types <= {str, int, float, bool, NoneType}:
        return tuple(json_types)
    raise Refused(f"the values of {owner} are not all str, int, float, bool or None")


def literal(values: tuple[Any, ...]) -> Codec:
    def check(value: Any) -> Any:
        if any(value == allowed and type(value) is type(allowed) for allowed in values):
            return value
        raise expected(" or ".join(map(repr, values)), value)

    return Codec(check, check, json_types_of(values, str(Literal[values])))
