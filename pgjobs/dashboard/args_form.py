"""The fields of an args class, for people who write args by hand."""

from __future__ import annotations

import json
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any

from pgjobs import codec
from pgjobs.secret_fields import HIDDEN, is_secret
from pgjobs.work_map import Handler, WorkMap

_EMPTY: tuple[tuple[str, Any], ...] = (
    ("str", ""), ("int", 0), ("float", 0.0), ("bool", False), ("list", []), ("tuple", []), ("set", []),
    ("frozenset", []), ("dict", {}),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArgsField:
    """A field as a page shows it. `default` is its text; None if the field is required."""

    name: str
    type: str
    default: str | None
    secret: bool


def args_fields(work_map: WorkMap | None, kind: str) -> list[ArgsField] | None:
    """The fields of the args class of a kind; None if the class is not known."""
    cls = _args_class(work_map, kind)
    if cls is None:
        return None
    names = codec.json_names(cls) or {}
    return [
        ArgsField(names.get(field.name, field.name), _type_name(field), _default(field), is_secret(field))
        for field in fields(cls)
        if field.init
    ]


def example(work_map: WorkMap | None, kind: str) -> str:
    """JSON with each field of the args class, to be filled in; an empty object if the class is not known."""
    cls = _args_class(work_map, kind)
    if cls is None:
        return "{}"
    names = codec.json_names(cls) or {}
    values = {names.get(field.name, field.name): _value(field) for field in fields(cls) if field.init}
    return json.dumps(values, indent=2, ensure_ascii=False)


def _args_class(work_map: WorkMap | None, kind: str) -> Any:
    handler: Handler | None = None if work_map is None else dict.get(work_map, kind)
    return None if handler is None else handler.args_class


def _type_name(field: Field[Any]) -> str:
    return field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))


def _default(field: Field[Any]) -> str | None:
    if field.default is MISSING:
        return None if field.default_factory is MISSING else "made anew"
    return HIDDEN if is_secret(field) else repr(field.default)


def _value(field: Field[Any]) -> Any:
    default = field.default
    if not is_secret(field) and (default is None or type(default) in (str, int, float, bool)):
        return default
    name = _type_name(field)
    return next((value for start, value in _EMPTY if name.split("[")[0].lower() == start), None)
