"""Codecs of containers, unions and all other types except dataclasses."""

from __future__ import annotations

from collections import OrderedDict, abc, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial, reduce
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin, is_typeddict

from pgjobs.codec.generics import field_hints, substituted
from pgjobs.codec.scalars import SCALARS, Codec, Convert, json_types_of, literal, scalar, unchanged
from pgjobs.codec.text import (
    Refused,
    about,
    as_refused,
    call_application,
    check_instance,
    described,
    expected,
    segment,
    short,
)
from pgjobs.secret_fields import HIDDEN, is_secret

_ENCODE, _DECODE = 0, 1  # the indexes of the functions in a Codec


def codec_of(hint: Any, compile_class: Callable[[Any], Codec]) -> Codec:
    """The codec of a type. `compile_class` makes the codec of a dataclass inside it."""
    while hint is not (inner := _unwrapped(hint)):
        hint = inner
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return ANY
    if origin is Literal:
        return literal(parts)
    if origin in (Union, UnionType, *_OBJECTS) or origin in _ARRAYS:
        codecs = [codec_of(part, compile_class) for part in parts if part is not Ellipsis]
        return _hiding_misfits(_compound(origin, parts, codecs), parts)
    return compile_class(hint) if is_dataclass(origin) else SCALARS.get(origin) or _subclass(hint, origin)


def _unwrapped(hint: Any) -> Any:
    if get_origin(hint) in (Annotated, Final):
        return get_args(hint)[0]
    origin = get_origin(hint) or hint
    if type(origin).__name__ == "TypeAliasType":  # `type X = ...` or `type X[T] = ...`, new in Python 3.12
        return substituted(origin.__value__, dict(zip(origin.__type_params__, get_args(hint), strict=False)))
    return getattr(hint, "__supertype__", hint)  # of a NewType


def holds_secrets(hint: Any) -> bool:
    """Whether a secret field is somewhere inside of this type, or may be: the annotations of a class in it, which its
    own encoder writes, cannot be evaluated."""
    seen, waiting = list[Any](), [hint]
    while waiting:
        hint = waiting.pop()
        while hint is not (inner := _unwrapped(hint)):
            hint = inner
        if hint in seen:  # a class may contain itself
            continue
        seen.append(hint)
        waiting += get_args(hint)
        if is_dataclass(get_origin(hint) or hint):
            if any(map(is_secret, fields(get_origin(hint) or hint))):
                return True
            try:
                waiting += field_hints(hint).values()
            except Exception:  # an annotation may be any expression
                return True
    return False


def hide(raw: Any) -> Any:
    return None if raw is None else HIDDEN


def _redact_misfit(raw: Any, hints: tuple[Any, ...]) -> Any:
    """JSON that does not have the form of its type: what stands where is unknown, so a secret of these types may be
    anywhere in it."""
    return hide(raw) if any(map(holds_secrets, hints)) else raw


def _hiding_misfits(codec: Codec, hints: tuple[Any, ...]) -> Codec:
    """The codec of a type with these parts; its `redact` takes JSON of another form, too."""
    known = codec.json_types
    return codec._replace(
        redact=lambda raw: codec.redact(raw) if type(raw) in known else _redact_misfit(raw, hints),
    )


def _compound(origin: Any, hints: tuple[Any, ...], parts: list[Codec]) -> Codec:
    if origin is tuple and hints and hints[-1] is not Ellipsis:
        return _fixed_tuple(parts, hints)
    if origin is OrderedDict:
        return _array(origin, _hiding_misfits(_fixed_tuple(parts or [ANY, ANY], hints), hints))
    if origin in _ARRAYS:
        return _array(origin, *parts)
    if origin in _OBJECTS:
        return json_object(origin, *parts)
    members = [part for hint, part in zip(hints, parts, strict=True) if hint is not NoneType]
    if len(members) > 1:
        return _either(hints, parts)
    encode, decode, json_types, same, _, redact = members[0]
    return Codec(
        lambda value: None if value is None else encode(value),
        lambda raw: None if raw is None else decode(raw),
        (*json_types, NoneType),
        same,
        redact=lambda raw: None if raw is None else redact(raw),
    )


def _subclass(hint: Any, tp: Any) -> Codec:
    if is_typeddict(tp):
        return json_object(dict)
    bases = tp.__mro__ if isinstance(tp, type) else ()
    if Enum in bases:
        if not tp.__members__:
            raise Refused(f"{hint!r} has no members: declare the enum that the value belongs to")
        json_types = json_types_of([member.value for member in tp.__members__.values()], f"the enum {tp.__qualname__}")
        return scalar(tp, json_types, lambda member: member.value, tp)
    for base, write in ((str, str.__str__), (int, int.__int__), (float, float.__float__)):
        if base in bases:
            return scalar(tp, SCALARS[base].json_types, write, tp)
    advice = "use a dataclass, or dataclasses_json.config(encoder=..., decoder=...) on the field"
    raise Refused(f"{hint!r} cannot be written as JSON and read back: {advice}")


def json_copy(value: Any) -> Any:
    """A copy of a value that has no declared type; refuses what JSON cannot hold."""
    if value is None or isinstance(value, str | int | float):
        return value
    if is_dataclass(value):
        raise about(value, "would come back as a dict: declare a field of this type")
    if isinstance(value, list | tuple):
        return _items(value, json_copy)
    if isinstance(value, Mapping):
        return _entries(value, _plain_key, json_copy)
    raise about(value, "is not a JSON value: convert it, or use a dataclass with a field of this type")


def _plain_key(key: Any) -> str:
    if isinstance(key, str):
        return key
    if isinstance(key, int) and not isinstance(key, bool):
        return str(call_application(int.__repr__, key))
    raise expected("a key that is a str or an int", key)


ANY = Codec(json_copy, unchanged, (str, int, float, bool, NoneType, list, dict))


_OBJECTS = (dict, abc.Mapping, abc.MutableMapping)
_ARRAYS: dict[Any, Callable[[list[Any]], Any]] = {  # by declared type: the type that is made when it is read
    **{tp: tp for tp in (list, tuple, set, frozenset, deque, OrderedDict)},
    **{abc.Sequence: tuple, abc.Collection: tuple, abc.MutableSequence: list, abc.Set: frozenset, abc.MutableSet: set},
}


def _items(values: Iterable[Any], convert: Convert, same: type | None = None) -> list[Any]:
    out: list[Any] = []
    try:
        for value in values:
            out.append(value if type(value) is same else convert(value))
    except (Refused, RecursionError) as error:
        raise as_refused(error, f"[{len(out)}]") from error.__cause__
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
        raise as_refused(error, segment(key)) from error.__cause__
    return out


def _array(origin: Any, item: Codec = ANY) -> Codec:
    not_these = () if origin is OrderedDict else (str, bytes, bytearray, Mapping)

    def encode(value: Any) -> Any:
        if not isinstance(value, origin) or isinstance(value, not_these):
            raise expected(origin.__name__, value)
        out = _items(value.items() if origin is OrderedDict else value, item.encode, item.same)
        return sorted(out, key=repr) if isinstance(value, abc.Set) else out  # so that equal sets have equal JSON

    read = _ARRAYS[origin]
    return Codec(
        encode,
        lambda raw: call_application(read, _items(check_instance(list, raw, "an array"), item.decode, item.same)),
        (list,),
        redact=lambda raw: list(map(item.redact, raw)),
    )


def _fixed_tuple(parts: list[Codec], hints: tuple[Any, ...]) -> Codec:
    def convert(values: Any, tp: Any, direction: int) -> list[Any]:
        if not isinstance(values, tp) or len(values) != len(parts):
            raise expected(f"a {tp.__name__} of {len(parts)}", values)
        return _items(zip(parts, values, strict=True), lambda pair: pair[0][direction](pair[1]))

    def redact(raw: list[Any]) -> list[Any]:
        shown = []
        for place, value in enumerate(raw):
            fits = place < len(parts) and type(value) in parts[place].json_types
            shown.append(parts[place].redact(value) if fits else _redact_misfit(value, hints))
        return shown

    return Codec(
        lambda value: convert(value, tuple, _ENCODE),
        lambda raw: tuple(convert(raw, list, _DECODE)),
        (list,),
        redact=redact,
    )


def json_object(origin: Any, key: Codec = ANY, item: Codec = ANY) -> Codec:
    encode_key, decode_key = _key_functions(key)
    return Codec(
        lambda value: _entries(check_instance(origin, value), encode_key, item.encode),
        lambda raw: _entries(check_instance(dict, raw, "an object"), decode_key, item.decode),
        (dict,),
        redact=lambda raw: {name: item.redact(part) for name, part in raw.items()},
    )


def _key_functions(key: Codec) -> tuple[Convert, Convert]:
    def read_int(text: str) -> Any:
        number = call_application(int, text)
        return key.decode(number if str(number) == text else text)  # "007" cannot be the text of an int

    if key is ANY:
        return _plain_key, unchanged
    if key.json_types == (int,):
        return lambda value: _plain_key(key.encode(value)), read_int
    if key.json_types == (str,):
        return key.encode, key.decode
    raise Refused("keys are text in JSON: declare them as str, int, UUID, Decimal, date, datetime or an Enum")


def _redact_either(read: Callable[[Any], tuple[Codec, Any]], members: list[Codec], raw: Any) -> Any:
    try:
        return read(raw)[0].redact(raw)
    except (Refused, RecursionError):  # no member reads it: hide what is secret for any of them
        return reduce(lambda shown, member: member.redact(shown), members, raw)


def _either(hints: tuple[Any, ...], members: list[Codec]) -> Codec:
    wanted = " | ".join(hint.__qualname__ if isinstance(hint, type) else str(hint) for hint in hints)
    # Any text fits str and any int fits float, so these are tried last, in whatever order the union has them.
    members = sorted(members, key=lambda member: member.same in (str, float))

    def first(direction: int, value: Any, able: list[Any]) -> tuple[Codec, Any]:
        refusals = []
        for member in able:
            try:
                return member, member[direction](value)
            except Refused as refused:
                refusals.append(refused)
        deepest = max(refusals, key=lambda refused: len(refused.path), default=expected(wanted, value))
        if deepest.path or not refusals:  # this member was meant, and something inside it is wrong
            raise deepest
        raise Refused(
            lambda: "; ".join(refused.problem for refused in refusals),
            discreet="; ".join(refused.discreet_problem for refused in refusals),
        )

    def read(raw: Any) -> tuple[Codec, Any]:
        return first(_DECODE, raw, [member for member in members if type(raw) in member.json_types])

    def encode(value: Any) -> Any:
        writer, tree = first(_ENCODE, value, members)
        reader, back = read(tree)
        if reader is writer or (type(back) is type(value) and back == value):
            return tree
        advice = f"reorder {wanted}, or give its members different Literal fields"
        raise Refused(
            f"{described(value)} would come back as {described(back)}: {advice}",
            discreet=f"{type(value).__qualname__} would come back as {type(back).__qualname__}: {advice}",
        )

    json_types = {kind for member in members for kind in member.json_types}
    return Codec(encode, lambda raw: read(raw)[1], tuple(json_types), redact=partial(_redact_either, read, members))
