"""Generic args classes: their type variables stand for what their subclasses and fields say."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import ModuleType
from typing import Any, Generic, TypeVar
from uuid import UUID

import pytest

from pgjobs import InvalidArgs, InvalidHandler, UndecodableArgs, WorkMap
from pgjobs.codec import check_class, decode, encode
from tests.unit.samples import NOON

T = TypeVar("T")
A = TypeVar("A")
B = TypeVar("B")


@dataclass
class Gen(Generic[T]):
    item: T
    more: list[T] = field(default_factory=list)
    maybe: T | None = None


@dataclass
class Pair(Generic[A, B]):
    first: A
    second: B


@dataclass
class Moment(Gen[datetime]):
    note: str = ""


@dataclass
class LaterMoment(Moment):
    """Whose base is bound already."""

    n: int = 0


@dataclass
class Swapped(Pair[B, A], Generic[A, B]):
    third: A | None = None


@dataclass
class OfSwapped(Swapped[date, Decimal]):
    """A is a date: the third, and the second of the Pair."""


@dataclass
class Half(Pair[int, T]):
    """Bound in one of two."""


@dataclass
class Whole(Half[UUID]):
    pass


@dataclass
class Renamed(Pair[T, T]):
    pass


@dataclass
class Deep(Gen[Gen[date]]):
    pass


@dataclass
class Lists(Gen[list[Pair[str, timedelta]]]):
    pass


@dataclass
class Holder:
    swapped: Swapped[date, Decimal]
    half: Half[date]
    renamed: Renamed[date]


@dataclass(slots=True)
class Slotted(Gen[date]):
    last: int = 0


@dataclass
class Redeclared(Gen[Any]):
    item: date = date(2026, 1, 1)


@dataclass
class Meta:
    tag: str = ""


@dataclass
class TwoBases(Meta, Gen[date]):
    """A field without a default behind one with: dataclasses order them, and Gen's come first."""


UUID_1 = UUID(int=1)
DAY = date(2026, 2, 3)
ROUND_TRIPS: list[Any] = [
    Moment(NOON, [NOON], NOON),
    LaterMoment(NOON, [NOON], None, "a", 3),
    OfSwapped(Decimal("1.50"), DAY, DAY),
    Whole(5, UUID_1),
    Deep(Gen(DAY, [DAY]), [Gen(DAY)]),
    Lists([Pair("a", timedelta(seconds=1))], [[Pair("b", timedelta(0))]]),
    Holder(Swapped(Decimal("2.0"), DAY, DAY), Half(1, DAY), Renamed(DAY, DAY)),
    Slotted(DAY, [DAY], DAY, 4),
    Redeclared(DAY, [1, "a"]),
    TwoBases(DAY, [DAY]),
    Gen("free", [1, None]),
]


@pytest.mark.finding("E12")
@pytest.mark.parametrize("args", ROUND_TRIPS, ids=lambda args: type(args).__name__)
def test_a_subclass_of_a_generic_class_comes_back_as_it_was(args: Any) -> None:
    """`class Moment(Gen[datetime])` was refused, and two parameters were bound the wrong way round."""
    check_class(type(args))
    assert decode(type(args), encode(args)) == args


@pytest.mark.finding("E12")
@pytest.mark.parametrize(
    "args",
    [
        Moment("noon"),  # type: ignore[arg-type]
        Whole("5", UUID_1),  # type: ignore[arg-type]
        OfSwapped(DAY, Decimal(1)),  # type: ignore[arg-type]
        Renamed(object(), 1),
        Holder(Swapped(DAY, Decimal(1)), Half(1, DAY), Renamed(DAY, DAY)),  # type: ignore[arg-type]
    ],
    ids=lambda args: type(args).__name__,
)
def test_what_the_variables_stand_for_is_held_to(args: Any) -> None:
    """`class Numbers(Gen[int])` took anything."""
    with pytest.raises(InvalidArgs, match=r"\$\."):
        encode(args)


@pytest.mark.finding("E12")
def test_what_is_stored_is_held_to_it_too() -> None:
    """The same where it is read."""
    with pytest.raises(UndecodableArgs, match=r"\$\.more\[1\]: expected datetime"):
        decode(Moment, f'{{"item": "{NOON.isoformat()}", "more": ["{NOON.isoformat()}", 5]}}')


@pytest.mark.finding("E12")
def test_a_parameterised_class_is_no_key_of_a_work_map_but_its_subclass_is() -> None:
    """An instance does not know that it is a Gen[datetime], so its kind cannot be that of one."""
    key: Any = Gen[datetime]
    with pytest.raises(InvalidHandler, match=r"make a subclass of it, as in class SomeGen\("):
        WorkMap({key: print})
    assert list(WorkMap({Moment: print})) == ["moment"]


NEW_SYNTAX = """
@dataclass
class New[T]:
    item: T
    more: list[T] = field(default_factory=list)

@dataclass
class OfNew(New[date]):
    pass

@dataclass
class Turned[A, B](Pair[B, A]):
    third: A | None = None

@dataclass
class OfTurned(Turned[date, Decimal]):
    pass

type Many[X] = list[X]

@dataclass
class Aliased:
    days: Many[date]

@dataclass
class AliasedGen[T]:
    items: Many[T]

@dataclass
class OfAliased(AliasedGen[date]):
    pass

ARGS = [
    OfNew(DAY, [DAY]), OfTurned(Decimal("1.5"), DAY, DAY), Aliased([DAY]), OfAliased([DAY]),
]
"""


@pytest.mark.finding("E12")
@pytest.mark.skipif(sys.version_info < (3, 12), reason="classes with type parameters are new in Python 3.12")
@pytest.mark.parametrize("postponed", [False, True])
def test_classes_with_type_parameters_are_the_same(postponed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The syntax of Python 3.12."""
    code = compile(("from __future__ import annotations\n" if postponed else "") + NEW_SYNTAX, "new", "exec", 0, True)
    module = ModuleType("new_syntax")
    for name, value in globals().items():
        if name[:2] != "__" and not isinstance(value, TypeVar):
            setattr(module, name, value)
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where their names are looked up
    exec(code, vars(module))
    for args in vars(module)["ARGS"]:
        assert decode(type(args), encode(args)) == args


DEFAULTS = """
D = TypeVar("D", default=date)

@dataclass
class Defaulted(Generic[D]):
    item: D

@dataclass
class OfDefaulted(Defaulted):
    pass
"""


@pytest.mark.skipif(sys.version_info < (3, 13), reason="defaults of type variables are new in Python 3.13")
def test_a_type_variable_may_have_a_default() -> None:
    names: dict[str, Any] = dict(globals())
    exec(compile(DEFAULTS, "defaults", "exec", 0, True), names)
    args = names["OfDefaulted"](DAY)
    assert decode(type(args), encode(args)) == args
