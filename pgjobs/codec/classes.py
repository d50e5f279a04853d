"""The codec of a dataclass, with its configuration for dataclasses-json."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, fields
from functools import partial
from types import NoneType
from typing import Any, get_args, get_origin

from dataclasses_json import CatchAll, DataClassJsonMixin, Exclude, Undefined

from pgjobs.codec.generics import field_hints
from pgjobs.codec.scalars import Codec, Convert, unchanged
from pgjobs.codec.text import Refused, as_refused, call_application, check_instance, expected, segment
from pgjobs.codec.values import ANY, codec_of, hide, holds_secrets, json_copy, json_object
from pgjobs.secret_fields import is_secret

_ABSENT = object()  # stands for an excluded field, which is dropped at the end
_OBJECT = json_object(dict)


def compile_class(hint: Any, seen: dict[Any, Codec]) -> Codec:
    """The codec of a dataclass. `seen` has the codecs of this compilation, since a class may contain itself."""
    if hint in seen:
        return seen[hint]
    record = _ClassCodec(hint)
    to_dict, from_dict = _overrides(record.cls, "to_dict"), _overrides(record.cls, "from_dict")
    encode = record.encode_by_method if to_dict else record.encode
    decode = record.decode_by_method if from_dict else record.decode
    names, redact = (None, record.redact_whole) if to_dict else (record.names, record.redact)
    seen[hint] = Codec(encode, decode, (dict,), names=names, redact=redact)
    if not (to_dict and from_dict):
        record.add_fields(_hints(record.cls, hint), seen)
    return seen[hint]


def _overrides(cls: type, name: str) -> bool:
    """Whether a class overrides this method of DataClassJsonMixin."""
    if not issubclass(cls, DataClassJsonMixin):
        return False
    own, library = getattr(cls, name), getattr(DataClassJsonMixin, name)
    return getattr(own, "__func__", own) is not getattr(library, "__func__", library)


def _hints(cls: Any, hint: Any) -> dict[str, Any]:
    try:
        return field_hints(hint)
    except RecursionError:
        raise
    except Exception as error:  # an annotation may be any expression
        raise Refused(f"cannot evaluate the annotations of {cls.__qualname__}: {error}") from error


def _check_parameters(cls: Any) -> None:
    names = {field.name for field in fields(cls)}
    for parameter in inspect.signature(cls).parameters.values():
        variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name not in names and parameter.default is parameter.empty and not variadic:
            raise Refused(f"{cls.__qualname__}() needs {parameter.name!r}, which is not a field: give it a default")


def _encode_with(encoder: Convert) -> Convert:
    return lambda value: json_copy(call_application(encoder, value))


def _decode_with(decoder: Convert, nullable: bool) -> Convert:
    # As in dataclasses-json, null does not reach the decoder: date.fromisoformat, for one, could not take it.
    return lambda raw: None if raw is None and nullable else call_application(decoder, raw)


def _unless(exclude: Convert, encode: Convert) -> Convert:
    return lambda value: _ABSENT if call_application(exclude, value) else encode(value)


class _ClassCodec:
    """A dataclass as a JSON object. The fields are added later, since their types may contain the class itself."""

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.cls: Any = get_origin(hint) or hint
        self.writers: list[tuple[str, str, type | None, Convert]] = []
        self.readers: list[tuple[str, str, type | None, Convert, bool]] = []
        self.redactors: dict[str, Convert] = {}  # by the names in JSON
        self.secrets: set[str] = set()  # the names in JSON of secret fields
        self.keys: set[str] = set()
        self.names: dict[str, str] = {}
        self.extra = ""  # the CatchAll field, which keeps unknown keys
        self.extra_is_shown = False  # the unknown keys that a CatchAll field keeps are not secret
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
                if field.name == self.extra:
                    self.extra_is_shown = not is_secret(field)
                else:
                    self._add(field, hints[field.name], config | field.metadata.get("dataclasses_json", {}), seen)
            except Refused as error:
                raise as_refused(error, segment(field.name)) from error.__cause__
        _check_parameters(self.cls)

    def _add(self, field: Field[Any], hint: Any, config: dict[str, Any], seen: dict[Any, Codec]) -> None:
        encoder, decoder, exclude = config.get("encoder"), config.get("decoder"), config.get("exclude")
        free = (encoder and decoder) or exclude is Exclude.ALWAYS
        encode, decode, _, same, _, redact = ANY if free else codec_of(hint, partial(compile_class, seen=seen))
        if encoder:
            encode = _encode_with(encoder)
        if decoder:
            decode = _decode_with(decoder, hint is Any or NoneType in get_args(hint))
        if exclude:
            self.excludes, encode = True, _unless(exclude, encode)
        key = config["letter_case"](field.name) if config.get("letter_case") else field.name
        if key in self.keys:
            raise Refused(f"another field has the JSON name {key!r} too")
        self.keys.add(key)
        self.names[field.name] = key
        self.redactors[key] = redact
        # a secret of a class inside is anywhere in what an encoder of the application makes of it
        if is_secret(field) or ((encoder or free) and holds_secrets(hint)):
            self.secrets.add(key)
            self.redactors[key] = hide
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
            refused = self._refused(error, key)
            raise refused from refused.__cause__
        return self._finish(tree, value) if self.excludes or self.extra else tree

    def _refused(self, error: Exception, key: str) -> Refused:
        """The error of a field. That of a secret field has neither the value nor a cause, which may show it."""
        if key in self.secrets:
            return Refused(as_refused(error).discreet_problem, segment(key))
        return as_refused(error, segment(key))

    def redact(self, raw: Any) -> Any:
        """In a class with a secret field, or with one further inside, also what the class does not declare is hidden:
        that field may have had another name or form when the JSON was written."""
        if type(raw) is not dict:
            return self.redact_whole(raw)
        other = unchanged if self.extra_is_shown else self.redact_whole
        return {key: self.redactors.get(key, other)(part) for key, part in raw.items()}

    def redact_whole(self, raw: Any) -> Any:
        """Of a class with its own `to_dict`, only that knows what is where."""
        return hide(raw) if holds_secrets(self.hint) else raw

    def _finish(self, tree: dict[str, Any], value: Any) -> dict[str, Any]:
        unknown = self._encode_extra((self.extra and getattr(value, self.extra)) or {})
        for key in self.keys & unknown.keys():
            raise Refused(f"is a field, and a key of {self.extra} too: leave one of them out", segment(key))
        return {key: part for key, part in tree.items() if part is not _ABSENT} | unknown

    def _encode_extra(self, unknown: Any) -> dict[str, Any]:
        try:
            encoded: dict[str, Any] = _OBJECT.encode(unknown)
        except (Refused, RecursionError) as error:
            if self.extra_is_shown:
                raise
            raise Refused(as_refused(error).discreet_problem, segment(self.extra)) from None
        return encoded

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
            refused = self._refused(error, key)
            raise refused from refused.__cause__
        if self.extra or self.strict:
            kwargs |= self._unknown(raw)
        return call_application(self.cls, **kwargs)

    def _unknown(self, raw: dict[str, Any]) -> dict[str, Any]:
        unknown = {key: part for key, part in raw.items() if key not in self.keys}
        if self.strict and unknown:
            raise Refused(f"{self.cls.__qualname__} has no such field", segment(min(unknown)))
        return {self.extra: unknown} if self.extra and unknown else {}

    def encode_by_method(self, value: Any) -> Any:
        if type(value) is self.cls:
            return _OBJECT.encode(call_application(value.to_dict))
        raise expected(self.cls.__qualname__, value)

    def decode_by_method(self, raw: Any) -> Any:
        return check_instance(
            self.cls, call_application(self.cls.from_dict, raw), f"{self.cls.__qualname__} from its from_dict"
        )
