"""Dataclasses, and what they tell dataclasses-json about themselves and their fields."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from functools import partial
from types import NoneType
from typing import Any, get_args, get_origin

from dataclasses_json import CatchAll, DataClassJsonMixin, Exclude, Undefined

from pgjobs.codec.generics import field_hints
from pgjobs.codec.text import Refused, at, call, expected, instance, segment
from pgjobs.codec.values import ANY, Codec, Convert, codec_of, json_object, plain

_ABSENT = object()  # what an excluded field is written as, until it is dropped
_OBJECT = json_object(dict)


def compile_class(hint: Any, seen: dict[Any, Codec]) -> Codec:
    """The codec of a dataclass; `seen` holds those of this compilation, since a class may contain itself."""
    if hint in seen:
        return seen[hint]
    record = _Record(get_origin(hint) or hint)
    to_dict, from_dict = _own_method(record.cls, "to_dict"), _own_method(record.cls, "from_dict")
    encode = record.encode_own if to_dict else record.encode
    decode = record.decode_own if from_dict else record.decode
    seen[hint] = Codec(encode, decode, (dict,), names=None if to_dict else record.names)
    if not (to_dict and from_dict):
        record.add_fields(_hints(record.cls, hint), seen)
    return seen[hint]


def _own_method(cls: type, name: str) -> bool:
    """Whether a class of dataclasses-json has a method of its own in place of the library's."""
    if not issubclass(cls, DataClassJsonMixin):
        return False
    own, library = getattr(cls, name), getattr(DataClassJsonMixin, name)
    return getattr(own, "__func__", own) is not getattr(library, "__func__", library)


def _hints(cls: Any, hint: Any) -> dict[str, Any]:
    try:
        return field_hints(hint)
    except RecursionError:
        raise
    except Exception as error:  # evaluating them can raise anything
        raise Refused(f"the annotations of {cls.__qualname__} mean nothing in its module: {error}") from error


def _check_parameters(cls: Any) -> None:
    names = {field.name for field in fields(cls)}
    for parameter in inspect.signature(cls).parameters.values():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name not in names and parameter.default is parameter.empty and not variadic:
            raise Refused(f"{cls.__qualname__}() needs {parameter.name!r}, which is no field: give it a default")


def _encode_with(encoder: Convert) -> Convert:
    return lambda value: plain(call(encoder, value))


def _decode_with(decoder: Convert, nullable: bool) -> Convert:
    # As in dataclasses-json, null does not reach the decoder: one like date.fromisoformat counts on it.
    return lambda raw: None if raw is None and nullable else call(decoder, raw)


def _unless(exclude: Convert, encode: Convert) -> Convert:
    return lambda value: _ABSENT if call(exclude, value) else encode(value)


class _Record:
    """A dataclass as a JSON object. Its fields are added after it exists, since they may hold the class itself."""

    def __init__(self, cls: Any) -> None:
        self.cls = cls
        self.writers: list[tuple[str, str, type | None, Convert]] = []
        self.readers: list[tuple[str, str, type | None, Convert, bool]] = []
        self.keys: set[str] = set()
        self.names: dict[str, str] = {}
        self.extra = ""  # the field that keeps what the class does not know
        self.strict = self.excludes = False

    def add_fields(self, hints: dict[str, Any], seen: dict[Any, Codec]) -> None:
        config = getattr(self.cls, "dataclass_json_config", None) or {}
        self.strict = config.get("undefined") is Undefined.RAISE
        if config.get("undefined") is Undefined.INCLUDE:
            extra = [name for name in hints if hints[name] == CatchAll]
            if len(extra) != 1:
                raise Refused(f"Undefined.INCLUDE needs one field of the type CatchAll, found {extra}")
            self.extra = extra[0]
        for field in fields(self.cls):
            try:
                if field.name != self.extra:
                    self._add(field, hints[field.name], config | field.metadata.get("dataclasses_json", {}), seen)
            except Refused as error:
                raise at(error, segment(field.name)) from error.__cause__
        _check_parameters(self.cls)

    def _add(self, field: Field[Any], hint: Any, config: dict[str, Any], seen: dict[Any, Codec]) -> None:
        encoder, decoder, exclude = config.get("encoder"), config.get("decoder"), config.get("exclude")
        free = (encoder and decoder) or exclude is Exclude.ALWAYS
        encode, decode, _, same, _ = ANY if free else codec_of(hint, partial(compile_class, seen=seen))
        if encoder:
            encode = _encode_with(encoder)
        if decoder:
            decode = _decode_with(decoder, hint is Any or NoneType in get_args(hint))
        if exclude:
            self.excludes, encode = True, _unless(exclude, encode)
        key = config["letter_case"](field.name) if config.get("letter_case") else field.name
        if key in self.keys:
            raise Refused(f"another field is called {key!r} in JSON too")
        self.keys.add(key)
        self.names[field.name] = key
        self.writers.append((field.name, key, None if encoder or exclude else same, encode))
        if field.init:
            required = field.default is MISSING and field.default_factory is MISSING
            self.readers.append((field.name, key, None if decoder else same, decode, required))

    def encode(self, value: Any) -> Any:
        if type(value) is not self.cls:
            raise expected(self.cls.__qualname__, value)
        tree: dict[str, Any] = {}
        key = ""
        try:
            for name, key, same, convert in self.writers:
                part = getattr(value, name)
                tree[key] = part if type(part) is same else convert(part)
        except (Refused, RecursionError, AttributeError) as error:
            raise at(error, segment(key)) from error.__cause__
        return self._finish(tree, value) if self.excludes or self.extra else tree

    def _finish(self, tree: dict[str, Any], value: Any) -> dict[str, Any]:
        unknown: dict[str, Any] = _OBJECT.encode((self.extra and getattr(value, self.extra)) or {})
        for key in self.keys & unknown.keys():
            raise Refused(f"is a field, and in {self.extra} too: leave one of them out", segment(key))
        return {key: part for key, part in tree.items() if part is not _ABSENT} | unknown

    def decode(self, raw: Any) -> Any:
        if type(raw) is not dict:
            raise expected(f"an object with the fields of {self.cls.__qualname__}", raw)
        kwargs: dict[str, Any] = {}
        key = ""
        try:
            for name, key, same, convert, required in self.readers:
                if key in raw:
                    part = raw[key]
                    kwargs[name] = part if type(part) is same else convert(part)
                elif required:
                    raise Refused(f"missing, and {self.cls.__qualname__} has no default for it")
        except (Refused, RecursionError) as error:
            raise at(error, segment(key)) from error.__cause__
        if self.extra or self.strict:
            kwargs |= self._unknown(raw)
        return call(self.cls, **kwargs)

    def _unknown(self, raw: dict[str, Any]) -> dict[str, Any]:
        unknown = {key: part for key, part in raw.items() if key not in self.keys}
        if self.strict and unknown:
            raise Refused(f"{self.cls.__qualname__} has no such field", segment(min(unknown)))
        return {self.extra: unknown} if self.extra and unknown else {}

    def encode_own(self, value: Any) -> Any:
        if type(value) is self.cls:
            return _OBJECT.encode(call(value.to_dict))
        raise expected(self.cls.__qualname__, value)

    def decode_own(self, raw: Any) -> Any:
        return instance(self.cls, call(self.cls.from_dict, raw), f"{self.cls.__qualname__} from its from_dict")
