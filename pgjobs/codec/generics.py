"""The types of a dataclass's fields, with the type variables of generic base classes such as `Base[int]` replaced."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field, fields
from inspect import get_annotations
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Bound = Mapping[Any, Any]  # from type variables to types


def field_hints(hint: Any) -> dict[str, Any]:
    """The types of the fields of a dataclass, or of `Box[int]`. Type variables are replaced by the types that they
    stand for in the class that declares the field."""
    cls = get_origin(hint) or hint
    hints = _evaluated(cls)
    owners = dict(_bases(cls, _bound(cls, get_args(hint))))
    return hints | {field.name: substituted(hints[field.name], _of_owner(cls, field, owners)) for field in fields(cls)}


def _evaluated(cls: Any) -> dict[str, Any]:
    try:
        return get_type_hints(cls)
    except NameError:  # Python before 3.12.4 does not find the parameters of `class Box[T]` in postponed annotations
        if not any(getattr(base, "__type_params__", ()) for base in cls.__mro__):
            raise
        hints: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            own = {parameter.__name__: parameter for parameter in getattr(base, "__type_params__", ())}
            hints |= get_annotations(base, eval_str=True, locals={**vars(base), **own})
        return hints


def substituted(hint: Any, bound: Bound) -> Any:
    """The type with its variables replaced; unbound ones stay."""
    if isinstance(hint, TypeVar):
        return bound.get(hint, hint)
    parameters = () if isinstance(hint, type) else getattr(hint, "__parameters__", ())
    if not parameters or not all(isinstance(parameter, TypeVar) for parameter in parameters):
        return hint
    return hint[tuple(bound.get(parameter, parameter) for parameter in parameters)]


def _bases(cls: Any, bound: Bound) -> Iterator[tuple[Any, Bound]]:
    """The class and its bases, each with the types that its own type variables stand for."""
    # from __dict__, since getattr would find the __orig_bases__ of a base class
    for base in reversed(cls.__dict__.get("__orig_bases__", cls.__bases__)):
        origin = get_origin(base) or base
        if isinstance(origin, type) and origin is not object:
            yield from _bases(origin, _bound(origin, [substituted(part, bound) for part in get_args(base)]))
    yield cls, bound


def _bound(cls: Any, parts: list[Any] | tuple[Any, ...]) -> Bound:
    parameters = getattr(cls, "__parameters__", ())
    if len(parameters) != len(parts) or not all(isinstance(parameter, TypeVar) for parameter in parameters):
        parts = parameters  # no arguments, or a variable number of them
    return {
        parameter: _default(parameter) if part is parameter else part
        for parameter, part in zip(parameters, parts, strict=True)
    }


def _default(parameter: Any) -> Any:
    """The default of a type variable, new in Python 3.13; else the variable itself."""
    return parameter.__default__ if getattr(parameter, "has_default", bool)() else parameter


def _of_owner(cls: Any, field: Field[Any], owners: Mapping[Any, Bound]) -> Bound:
    """The types that the type variables stand for in the class that declares the field."""
    declaring = [base for base in cls.__mro__ if vars(base).get("__dataclass_fields__", {}).get(field.name) is field]
    return owners.get(declaring[-1], {}) if declaring else {}
