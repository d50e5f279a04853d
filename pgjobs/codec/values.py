"""Values of every type but the dataclasses: a pair of functions per type, to what JSON holds and back."""

from __future__ import annotations

import math
from collections import OrderedDict, abc, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, is_typeddict
from uuid import UUID

from pgjobs.codec.generics import substituted
from pgjobs.codec.text import Refused, at, call, expected, found, instance, segment, short

Convert = Callable[[Any], Any]
_ENCODE, _DECODE = 0, 1  # where a Codec has its functions


class Codec(NamedTuple):
    encode: Convert
    decode: Convert
    kinds: tuple[type, ...]  # what JSON it is written as
    same: type | None = None  # values of exactly this type are their own JSON: saves a call for most fields
    names: Mapping[str, str] | None = None  # of a dataclass: what each field is called in JSON


def codec_of(hint: Any, compile_class: Callable[[Any], Codec]) -> Codec:
    """The codec of a type; `compile_class` makes that of a dataclass inside it."""
    while hint is not (inner := _unwrapped(hint)):
        hint = inner
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return ANY
    if origin is Literal:
        return _literal(parts)
    if origin in (Union, UnionType, *_OBJECTS) or origin in _ARRAYS:
        return _compound(origin, parts, [codec_of(part, compile_class) for part in parts if part is not Ellipsis])
    return compile_class(hint) if is_dataclass(origin) else _SCALARS.get(origin) or _subclass(hint, origin)


def _unwrapped(hint: Any) -> Any:
    if get_origin(hint) in (Annotated, Final):
        return get_args(hint)[0]
    origin = get_origin(hint) or hint
    if type(origin).__name__ == "TypeAliasType":  # `type X = ...` or `type X[T] = ...`, new in Python 3.12
        return substituted(origin.__value__, dict(zip(origin.__type_params__, get_args(hint), strict=False)))
    return getattr(hint, "__supertype__", hint)  # of a NewType


def _compound(origin: Any, hints: tuple[Any, ...], parts: list[Codec]) -> Codec:
    if origin is tuple and hints and hints[-1] is not Ellipsis:
        return _fixed_tuple(parts)
    if origin is OrderedDict:
        return _array(origin, _fixed_tuple(parts or [ANY, ANY]))
    if origin in _ARRAYS:
        return _array(origin, *parts)
    if origin in _OBJECTS:
        return json_object(origin, *parts)
    members = [part for hint, part in zip(hints, parts, strict=True) if hint is not NoneType]
    if len(members) > 1:
        return _either(hints, parts)
    encode, decode, kinds, same, _ = members[0]
    return Codec(
        lambda value: None if value is None else encode(value),
        lambda raw: None if raw is None else decode(raw),
        (*kinds, NoneType),
        same,
    )


def _subclass(hint: Any, tp: Any) -> Codec:
    if is_typeddict(tp):
        return json_object(dict)
    bases = tp.__mro__ if isinstance(tp, type) else ()
    if Enum in bases:
        kinds = _kinds([member.value for member in tp.__members__.values()], f"the enum {tp.__qualname__}")
        return _scalar(tp, kinds, lambda member: member.value, tp)
    for base, write in ((str, str.__str__), (int, int.__int__), (float, float.__float__)):
        if base in bases:
            return _scalar(tp, _SCALARS[base].kinds, write, tp)
    advice = "use a dataclass, or dataclasses_json.config(encoder=..., decoder=...) on the field"
    raise Refused(f"{hint!r} cannot be written as JSON and read back: {advice}")


def _kinds(values: Iterable[object], owner: str) -> tuple[type, ...]:
    kinds = {type(value) for value in values}
    if kinds <= {str, int, float, bool, NoneType}:
        return tuple(kinds)
    raise Refused(f"the values of {owner} are not all str, int, float, bool or None")


def _literal(values: tuple[Any, ...]) -> Codec:
    def check(value: Any) -> Any:
        if any(value == allowed and type(value) is type(allowed) for allowed in values):
            return value
        raise expected(" or ".join(map(repr, values)), value)

    return Codec(check, check, _kinds(values, str(Literal[values])))


def plain(value: Any) -> Any:
    """A copy of what JSON can hold."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value):
        raise Refused(f"{found(value)} would come back as a dict: declare a field of this type")
    if isinstance(value, list | tuple):
        return _items(value, plain)
    if isinstance(value, Mapping):
        return _entries(value, _plain_key, plain)
    raise Refused(f"{found(value)} is nothing JSON has: convert it, or use a dataclass with a field of this type")


def _plain_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(call(int.__repr__, key))
    raise expected("a key that is a str or an int", key)


def _itself(value: Any) -> Any:
    return value


ANY = Codec(plain, _itself, (str, int, float, bool, NoneType, list, dict))


def _scalar(tp: type, kinds: tuple[type, ...], write: Convert = _itself, read: Convert = _itself, *also: type) -> Codec:
    """A type without parts. It reads the JSON of `also` too, where nothing else could be meant."""

    def checked(accepted: Any, denied: Any, convert: Convert) -> Convert:
        def function(value: Any) -> Any:
            try:
                if isinstance(value, accepted) and not isinstance(value, denied):
                    return convert(value)
            except (ValueError, TypeError, ArithmeticError, LookupError):
                pass
            raise expected(tp.__name__, value)

        return function

    not_this = {int: bool, float: bool, date: datetime}.get(tp, ())  # subclasses to Python
    encode = checked((float, int) if tp is float else tp, not_this, write)
    decode = checked((*kinds, *also), () if bool in kinds else bool, read)
    return Codec(encode, decode, kinds, tp if tp in kinds else None)


def _integer(raw: int | float) -> int:
    # JSON has one kind of number: 5.0 is 5. Above 2**53 the text may have named an integer that no float is.
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
    raise Refused(f"time {value} has a zone without an offset, which only a date would tell: use a datetime")


_TEXT, _MICROSECOND = (str,), timedelta.resolution
_SCALARS: dict[Any, Codec] = {
    str: _scalar(str, _TEXT, str.__str__),
    int: _scalar(int, (int,), int.__int__, _integer, float),
    float: _scalar(float, (float, int), _write_float, float),
    bool: _scalar(bool, (bool,)),
    NoneType: _scalar(NoneType, (NoneType,)),
    bytes: _scalar(bytes, (list,), list, bytes),
    Decimal: _scalar(Decimal, _TEXT, str, Decimal, int),
    UUID: _scalar(UUID, _TEXT, str, UUID),
    datetime: _scalar(
        datetime, _TEXT, lambda value: _aware(value).isoformat(), lambda raw: _aware(datetime.fromisoformat(raw))
    ),
    date: _scalar(date, _TEXT, date.isoformat, date.fromisoformat),
    time: _scalar(time, _TEXT, _write_time, time.fromisoformat),
    timedelta: _scalar(timedelta, (int,), lambda value: value // _MICROSECOND, lambda raw: raw * _MICROSECOND),
}
_OBJECTS = (dict, abc.Mapping, abc.MutableMapping)
_ARRAYS: dict[Any, Callable[[list[Any]], Any]] = {  # what they come back as
    **{tp: tp for tp in (list, tuple, set, frozenset, deque, OrderedDict)},
    **{abc.Sequence: tuple, abc.Collection: tuple, abc.MutableSequence: list, abc.Set: frozenset, abc.MutableSet: set},
}


def _items(values: Iterable[Any], convert: Convert, same: type | None = None) -> list[Any]:
    out: list[Any] = []
    try:
        for value in values:
            out.append(value if type(value) is same else convert(value))
    except (Refused, RecursionError) as error:
        raise at(error, f"[{len(out)}]") from error.__cause__
    return out


def _entries(values: Mapping[Any, Any], convert_key: Convert, convert: Convert) -> dict[Any, Any]:
    out: dict[Any, Any] = {}
    key: object = None
    try:
        for key, value in values.items():
            name = convert_key(key)
            if name in out:
                advice = "leave one of them out"
                raise Refused(f"two keys become {short(name)}: {advice}", discreet=f"two keys become one: {advice}")
            out[name] = convert(value)
    except (Refused, RecursionError) as error:
        raise at(error, segment(key)) from error.__cause__
    return out


def _array(origin: Any, item: Codec = ANY) -> Codec:
    not_these = () if origin is OrderedDict else (str, bytes, bytearray, Mapping)

    def encode(value: Any) -> Any:
        if not isinstance(value, origin) or isinstance(value, not_these):
            raise expected(origin.__name__, value)
        out = _items(value.items() if origin is OrderedDict else value, item.encode, item.same)
        return sorted(out, key=repr) if isinstance(value, abc.Set) else out  # equal sets are equal JSON

    read = _ARRAYS[origin]
    return Codec(
        encode, lambda raw: call(read, _items(instance(list, raw, "an array"), item.decode, item.same)), (list,)
    )


def _fixed_tuple(parts: list[Codec]) -> Codec:
    def convert(values: Any, tp: Any, way: int) -> list[Any]:
        if not isinstance(values, tp) or len(values) != len(parts):
            raise expected(f"a {tp.__name__} of {len(parts)}", values)
        return _items(zip(parts, values, strict=True), lambda pair: pair[0][way](pair[1]))

    return Codec(lambda value: convert(value, tuple, _ENCODE), lambda raw: tuple(convert(raw, list, _DECODE)), (list,))


def json_object(origin: Any, key: Codec = ANY, item: Codec = ANY) -> Codec:
    encode_key, decode_key = _key_functions(key)
    return Codec(
        lambda value: _entries(instance(origin, value), encode_key, item.encode),
        lambda raw: _entries(instance(dict, raw, "an object"), decode_key, item.decode),
        (dict,),
    )


def _key_functions(key: Codec) -> tuple[Convert, Convert]:
    def read_int(text: str) -> Any:
        number = call(int, text)
        return key.decode(number if str(number) == text else text)  # "007" is no key that was written here

    if key is ANY:
        return _plain_key, _itself
    if key.kinds == (int,):
        return lambda value: _plain_key(key.encode(value)), read_int
    if key.kinds == (str,):
        return key.encode, key.decode
    raise Refused("keys are text in JSON: declare them as str, int, UUID, Decimal, date, datetime or an Enum")


def _either(hints: tuple[Any, ...], members: list[Codec]) -> Codec:
    wanted = " | ".join(hint.__qualname__ if isinstance(hint, type) else str(hint) for hint in hints)
    # Any text is a str and any int could be a float: these are asked last, whatever the order in the union.
    members = sorted(members, key=lambda member: member.same in (str, float))

    def first(way: int, value: Any, able: list[Any]) -> tuple[Codec, Any]:
        refusals = []
        for member in able:
            try:
                return member, member[way](value)
            except Refused as refused:
                refusals.append(refused)
        deepest = max(refusals, key=lambda refused: len(refused.path), default=expected(wanted, value))
        if deepest.path or not refusals:  # it was this member, and something inside it is wrong
            raise deepest
        raise Refused(
            "; ".join(refused.args[0] for refused in refusals),
            discreet="; ".join(refused.discreet_problem for refused in refusals),
        )

    def read(raw: Any) -> tuple[Codec, Any]:
        return first(_DECODE, raw, [member for member in members if type(raw) in member.kinds])

    def encode(value: Any) -> Any:
        writer, tree = first(_ENCODE, value, members)
        reader, back = read(tree)
        if reader is writer or (type(back) is type(value) and back == value):
            return tree
        advice = f"reorder {wanted}, or tell its members apart by a Literal field"
        raise Refused(f"{found(value)} would come back as {found(back)}: {advice}")

    kinds = {kind for member in members for kind in member.kinds}
    return Codec(encode, lambda raw: read(raw)[1], tuple(kinds))
