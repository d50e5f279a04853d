"""Secret fields of dataclasses: `password: str = field(metadata={"secret": True})`. pgjobs never shows their values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import Field, dataclass, fields, is_dataclass
from itertools import chain, islice
from operator import is_
from typing import Any

#: What is shown in place of a secret value.
HIDDEN = "[secret]"

_MOST_PARTS = 100  # more than fit into an error message


def is_secret(field: Field[Any]) -> bool:
    """Whether a field of a dataclass is marked as secret."""
    return bool(field.metadata.get("secret"))


def without_secrets(value: object) -> object:
    """The value itself if no secret field is in it; else an object with the same `repr`, but with `[secret]` in place
    of the secret values. Finds dataclasses also inside of lists, tuples, sets and mappings."""
    return _Search().replaced(value)


@dataclass(frozen=True, slots=True)
class _Text:
    """An object whose repr is this text."""

    text: str

    def __repr__(self) -> str:
        return self.text


_SECRET, _REST = _Text(HIDDEN), _Text("...")


class _Search:
    """Looks at the parts of one value, in the order in which its repr shows them, until there are too many."""

    def __init__(self) -> None:
        self.left = _MOST_PARTS

    def replaced(self, value: Any) -> Any:
        if self.left <= 0:
            return _REST
        self.left -= 1
        if is_dataclass(value) and not isinstance(value, type):
            return self._dataclass(value)
        if isinstance(value, Mapping):
            return self._mapping(value)
        for tp, form in ((list, "[{}]"), (tuple, "({})"), (Set, "{{{}}}")):
            if isinstance(value, tp):
                return self._items(value, form)
        return value

    def _first(self, values: Iterable[Any]) -> list[Any]:
        return list(islice(values, self.left + 1))

    def _items(self, values: Any, form: str) -> Any:
        old = self._first(values)
        new = [self.replaced(part) for part in old]
        return values if all(map(is_, old, new)) else _Text(form.format(", ".join(map(repr, new))))

    def _mapping(self, values: Any) -> Any:
        old = self._first(values.items())
        new = [(self.replaced(key), self.replaced(value)) for key, value in old]
        if all(map(is_, chain(*old), chain(*new))):
            return values
        return _Text(f"{{{', '.join(f'{key!r}: {value!r}' for key, value in new)}}}")

    def _dataclass(self, value: Any) -> Any:
        if type(value).__module__.partition(".")[0] == "pgjobs":  # as NewJob, which hides its args itself
            return value
        shown = [field for field in fields(value) if field.repr]
        old = [getattr(value, field.name) for field in shown]
        new = [_SECRET if is_secret(field) else self.replaced(part) for field, part in zip(shown, old, strict=True)]
        if all(map(is_, old, new)):
            return value
        parts = (f"{field.name}={part!r}" for field, part in zip(shown, new, strict=True))
        return _Text(f"{type(value).__qualname__}({', '.join(parts)})")
