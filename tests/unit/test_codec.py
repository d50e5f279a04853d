"""What goes in comes out equal, or is refused by its path before any SQL."""

from __future__ import annotations

import json
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, NewType, Optional, TypedDict, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from dataclasses_json import CatchAll, DataClassJsonMixin, Exclude, LetterCase, Undefined, config, dataclass_json
from dataclasses_json.core import _ExtendedEncoder
from hypothesis import given, settings
from hypothesis import strategies as st

from pgjobs.codec import MAX_DEPTH, check_class, decode, decode_dict, encode
from pgjobs.errors import InvalidArgs, UndecodableArgs
from tests.samples import shown

T = TypeVar("T")
UserId = NewType("UserId", int)


class Color(Enum):
    RED = "red"
    GREEN = "green"


class Size(StrEnum):
    SMALL = "s"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Access(IntFlag):
    READ = 1
    WRITE = 2


class Odd(Enum):
    PAIR = (1, 2)


class Email(str):
    __slots__ = ()


class Movie(TypedDict):
    name: str


@dataclass
class Point:
    x: int
    y: int = 0


@dataclass
class Order:
    id: int
    email: str
    items: list[Point]
    at: datetime
    first: Point


@dataclass
class Node:
    value: int
    next: Node | None = None
    children: list[Node] = field(default_factory=list)


@dataclass
class Link:
    next: Link | Point | None


@dataclass
class Growing(Generic[T]):
    next: Growing[list[T]] | None


@dataclass
class Box(Generic[T]):
    item: T
    more: list[T] = field(default_factory=list)


@dataclass
class Boxes:
    moment: Box[date]
    plain: Box[Any]


@dataclass(frozen=True, slots=True)
class Frozen:
    name: str
    tags: frozenset[str] = frozenset()


@dataclass
class Settings:
    kind: ClassVar[str] = "settings.change"
    name: str
    scale: InitVar[int] = 2
    _: KW_ONLY
    size: int = 3
    doubled: int = field(init=False)

    def __post_init__(self, scale: int) -> None:
        self.doubled = self.size * scale


@dataclass
class Circle:
    radius: float


@dataclass
class Square:
    side: float
    shape: Literal["square"] = "square"


def holder(hint: Any, **options: Any) -> Any:
    """A dataclass with one field `x` of this type."""
    return make_dataclass("Holder", [("x", hint, field(**options))])


def there_and_back(hint: Any, value: Any) -> Any:
    cls = holder(hint)
    return decode(cls, encode(cls(value))).x


def refusal(args: object, **options: Any) -> str:
    with pytest.raises(InvalidArgs) as caught:
        encode(args, **options)
    return str(caught.value)


def failure(cls: type, raw: Any) -> str:
    with pytest.raises(UndecodableArgs) as caught:
        decode(cls, raw)
    return str(caught.value)


AWARE = datetime(2024, 2, 29, 23, 59, 59, 123456, timezone(timedelta(hours=5, minutes=45)))
ID = UUID("12345678-1234-5678-1234-567812345678")

EXACT: list[tuple[Any, Any]] = [
    (str, "naïve 🐘 \\u0000 \u2028"),
    (int, 2**53 + 1),
    (int, 10**40),
    (float, 0.1 + 0.2),
    (float, 5e-324),
    (bool, True),
    (None, None),
    (bytes, b"\x00\xff"),
    (Decimal, Decimal("1.10")),
    (Decimal, Decimal("Infinity")),
    (UUID, ID),
    (datetime, AWARE),
    (date, date(1, 1, 1)),
    (time, time(12, 30, 0, 1)),
    (time, time(12, tzinfo=UTC)),
    (timedelta, timedelta(days=-3, microseconds=1)),
    (timedelta, timedelta.max),
    (Color, Color.GREEN),
    (Size, Size.SMALL),
    (Level, Level.HIGH),
    (Access, Access.READ | Access.WRITE),
    (Email, Email("a@example.org")),
    (Literal["a", 1, None], None),
    (Optional[int], None),  # noqa: UP045
    (int | None, 3),
    (Any, {"a": [1, None, {"b": 2.5}]}),
    (UserId, UserId(7)),
    (Annotated[int, "positive"], 7),
    (Final[int], 7),
    (Movie, {"name": "Heat"}),
    (list, [1, "a"]),
    (tuple[int, ...], (1, 2)),
    (tuple[int, str, UUID], (1, "a", ID)),
    (set[UUID], {ID}),
    (frozenset[int], frozenset({3, 1, 2})),
    (deque[int], deque([1, 2])),
    (Sequence[int], (1, 2)),
    (list[Point | None], [Point(1), None]),
    (dict[str, Point], {"odd key": Point(1, 2)}),
    (dict[int, str], {1: "a", -2: "b"}),
    (dict[UUID, int], {ID: 1}),
    (dict[Level, int], {Level.HIGH: 1}),
    (dict[Color, int], {Color.RED: 1}),
    (dict[date, int], {date(2024, 1, 1): 1}),
    (dict[str, dict[int, list[datetime]]], {"a": {1: [AWARE]}}),
    (Mapping[str, int], {"a": 1}),
    (OrderedDict[str, int], OrderedDict(a=1)),
    (Union[int, UUID], ID),  # noqa: UP007
    (int | UUID, 3),
    (float | int, 5),
    (int | float, 5.0),
    (int | bool, True),
    (str | UUID | None, ID),
    (date | datetime, AWARE),
    (datetime | date, date(2024, 1, 1)),
    (Color | str, "blue"),
    (list[int] | list[str], ["a"]),
    (Circle | Square, Square(2.0)),
    (Circle | Square, Circle(2.0)),
    (Box[int], Box(1, [2])),
    (Frozen, Frozen("a", frozenset({"t"}))),
]


@pytest.mark.parametrize(("hint", "value"), EXACT, ids=lambda part: str(part)[:40])
def test_a_value_of_its_declared_type_comes_back_equal_and_of_the_same_type(hint: Any, value: Any) -> None:
    back = there_and_back(hint, value)
    assert back == value
    assert type(back) is type(value)


@given(
    st.builds(
        Order,
        st.integers(),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
        st.lists(st.builds(Point, st.integers(), st.integers())),
        st.datetimes(timezones=st.timezones()).filter(lambda at: at.utcoffset() is not None),
        st.builds(Point, st.integers()),
    )
)
def test_any_order_comes_back_equal(order: Order) -> None:
    back = decode(Order, encode(order))
    assert back.at.utcoffset() == order.at.utcoffset()
    assert back.at.replace(tzinfo=None) == order.at.replace(tzinfo=None)
    back.at = order.at
    assert back == order


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner),
)


@settings(max_examples=40)
@given(st.dictionaries(st.text("abc"), JSON_VALUES))
def test_any_dict_of_json_values_comes_back_equal(payload: dict[str, Any]) -> None:
    assert decode_dict(encode(payload)) == payload


@settings(max_examples=40)
@given(st.dictionaries(st.text(), st.recursive(st.text() | st.floats(), st.lists)))
def test_a_payload_is_written_as_utf8_without_nul_or_refused_as_invalid_args(payload: dict[str, Any]) -> None:
    try:
        text = encode(payload)
    except InvalidArgs:
        return
    assert "\0" not in json.dumps(json.loads(text.encode()), ensure_ascii=False)
    assert "\\u0000" not in text.replace("\\\\", "")


@given(st.timedeltas(), st.decimals(allow_nan=False), st.times(), st.binary())
def test_durations_decimals_times_and_bytes_come_back_equal(
    duration: timedelta, decimal: Decimal, moment: time, data: bytes
) -> None:
    hint = tuple[timedelta, Decimal, time, bytes]
    assert there_and_back(hint, (duration, decimal, moment, data)) == (duration, decimal, moment, data)


def test_a_class_may_contain_itself() -> None:
    node = Node(1, Node(2), [Node(3, Node(4))])
    assert decode(Node, encode(node)) == node


def test_generic_classes_bind_their_type() -> None:
    boxes = Boxes(Box(date(2024, 1, 1), [date(2024, 1, 2)]), Box("free"))
    assert decode(Boxes, encode(boxes)) == boxes


def test_class_variables_init_variables_and_keyword_only_fields_are_understood() -> None:
    settings = Settings("a", size=5)
    assert json.loads(encode(settings)) == {"name": "a", "size": 5, "doubled": 10}
    assert decode(Settings, encode(settings)) == settings


def test_the_text_is_compact_and_keeps_letters() -> None:
    assert encode({"naïve": [1, 2]}) == '{"naïve":[1,2]}'


def test_the_forms_of_the_types_that_json_lacks() -> None:
    cls = make_dataclass("Forms", [("at", datetime), ("wait", timedelta), ("price", Decimal), ("raw", bytes)])
    assert json.loads(encode(cls(AWARE, timedelta(seconds=1.5), Decimal("1.10"), b"a"))) == {
        "at": "2024-02-29T23:59:59.123456+05:45",
        "wait": 1_500_000,
        "price": "1.10",
        "raw": [97],
    }


def test_a_zone_comes_back_as_its_offset() -> None:
    back = there_and_back(datetime, datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("America/New_York")))
    assert back.isoformat() == "2024-07-01T12:00:00-04:00"


def test_equal_sets_are_equal_json() -> None:
    cls = holder(set[str])
    assert encode(cls({"a", "b", "c"})) == encode(cls({"c", "b", "a"})) == '{"x":["a","b","c"]}'


def test_what_postgres_would_change_is_written_so_that_it_cannot() -> None:
    assert encode({"a": -1.5e22, "1e+22": '"1e+22\\'}) == '{"a":-15000000000000000000000.0,"1e+22":"\\"1e+22\\\\"}'
    assert encode(holder(OrderedDict[str, int])(OrderedDict(bb=1, a=2))) == '{"x":[["bb",1],["a",2]]}'


# The same as dataclasses-json, where that is right.


@dataclass_json(letter_case=LetterCase.CAMEL)  # type: ignore[call-overload]
@dataclass
class Camel:
    user_id: int
    real_name: str = field(default="", metadata=config(field_name="legalName"))
    secret: str | None = field(default=None, metadata=config(exclude=lambda value: value is None))
    color: int = field(default=0, metadata=config(encoder=hex, decoder=lambda text: int(text, 16)))


@dataclass
class Plain(DataClassJsonMixin):
    points: dict[str, Point]
    color: Color
    price: Decimal
    id: UUID
    raw: bytes
    pair: tuple[int, str]
    by_number: dict[int, float]
    maybe: Point | None = None
    access: Access = Access.READ
    nested: list[list[Point]] = field(default_factory=list)


@pytest.mark.parametrize(
    "args",
    [
        Camel(1, "A", None, 255),
        Camel(1, "A", "x"),
        Plain({"a": Point(1)}, Color.RED, Decimal("1.5"), ID, b"ab", (1, "b"), {3: 0.1}),
        Plain({}, Color.RED, Decimal("1.5"), ID, b"", (1, "b"), {}, Point(2), Access.WRITE, [[Point(3)]]),
        Node(1, Node(2), [Node(3)]),
        Point(5),
        Frozen("a", frozenset({"b"})),
    ],
    ids=lambda args: type(args).__name__,
)
def test_the_json_is_that_of_dataclasses_json(args: Any) -> None:
    theirs = json.dumps(DataClassJsonMixin.to_dict(args), cls=_ExtendedEncoder)
    assert json.loads(encode(args)) == json.loads(theirs)
    read_by_them = DataClassJsonMixin.from_dict.__func__(type(args), json.loads(theirs))  # type: ignore[attr-defined]
    assert decode(type(args), theirs) == read_by_them


def test_names_exclusion_and_functions_of_a_field_are_honoured() -> None:
    assert json.loads(encode(Camel(1, "A", None, 255))) == {"userId": 1, "legalName": "A", "color": "0xff"}
    assert decode(Camel, '{"userId":1,"color":"0xff"}') == Camel(1, color=255)


def test_a_field_with_an_encoder_and_a_decoder_may_have_any_type() -> None:
    cls = holder(complex, metadata=config(encoder=str, decoder=complex))
    assert decode(cls, encode(cls(1 + 2j))).x == 1 + 2j
    assert "$.x: complex raised ValueError" in failure(cls, '{"x":"nonsense"}')


def test_null_does_not_reach_the_decoder_of_an_optional_field() -> None:
    metadata = config(encoder=lambda day: day and day.isoformat(), decoder=date.fromisoformat)
    cls = holder(date | None, metadata=metadata)
    assert decode(cls, encode(cls(None))).x is None


def test_what_an_encoder_raises_or_returns_wrongly_names_the_field() -> None:
    assert "$.x: int raised ValueError" in refusal(holder(str, metadata=config(encoder=int))("a"))
    assert "$.x[0]: set {1}" in refusal(holder(str, metadata=config(encoder=lambda _: [{1}]))("a"))


def test_a_field_that_is_always_excluded_may_have_any_type() -> None:
    cls = holder(object, default=None, metadata=config(exclude=Exclude.ALWAYS))
    assert encode(cls(object())) == "{}"
    assert decode(cls, "{}") == cls()


@dataclass_json(undefined=Undefined.RAISE)
@dataclass
class Strict:
    a: int
    b: int = field(init=False, default=2)


@dataclass_json(undefined=Undefined.INCLUDE)
@dataclass
class Open:
    a: int
    rest: CatchAll  # type: ignore[type-arg]


@dataclass_json(undefined=Undefined.INCLUDE)
@dataclass
class OpenWithDefault:
    a: int
    rest: CatchAll = field(default_factory=dict)  # type: ignore[type-arg]


@dataclass_json(undefined=Undefined.EXCLUDE)
@dataclass
class Ignoring:
    a: int


def test_unknown_fields_are_ignored_raised_or_kept_as_the_class_says() -> None:
    assert decode(Point, '{"x":1,"z":3}') == Point(1)
    assert decode(Ignoring, '{"a":1,"z":3}') == Ignoring(1)
    assert decode(Strict, encode(Strict(1))) == Strict(1)
    assert "$.z: Strict has no such field" in failure(Strict, '{"a":1,"z":3}')
    classes: list[Any] = [Open, OpenWithDefault]
    for cls in classes:
        kept = decode(cls, '{"a":1,"z":{"deep":[3]}}')
        assert kept.rest == {"z": {"deep": [3]}}
        assert json.loads(encode(kept)) == {"a": 1, "z": {"deep": [3]}}
        assert decode(cls, encode(kept)) == kept
        assert decode(cls, '{"a":1}').rest == {}


def test_what_is_kept_must_not_hide_a_field() -> None:
    assert "$.a: is a field" in refusal(Open(1, rest={"a": 2}))
    assert "$.b: set" in refusal(Open(1, rest={"b": {1}}))
    broken = Open(1, rest={})
    broken.rest = 3
    assert "expected dict, found int 3" in refusal(broken)


@dataclass
class Own(DataClassJsonMixin):
    low: Iterator[int] | int

    def to_dict(self, encode_json: bool = False) -> dict[str, Any]:
        return {"v": self.low}

    @classmethod
    def from_dict(cls, kvs: Any, *, infer_missing: bool = False) -> Own:
        return cls(kvs["v"])


@dataclass
class Half(DataClassJsonMixin):
    at: datetime

    @classmethod
    def from_dict(cls, kvs: Any, *, infer_missing: bool = False) -> Half:
        return cls(datetime.fromtimestamp(kvs, UTC) if isinstance(kvs, int) else datetime.fromisoformat(kvs["at"]))


def test_a_to_dict_and_from_dict_of_the_class_are_used() -> None:
    assert encode(Own(3)) == '{"v":3}'
    assert decode(Own, '{"v":3}') == Own(3)
    assert "Own.from_dict raised KeyError" in failure(Own, "{}")
    assert "$.v: set" in refusal(Own({1}))  # type: ignore[arg-type]
    assert decode(Half, encode(Half(AWARE))) == Half(AWARE)
    assert "$.x: expected Own, found Half" in refusal(holder(Own)(Half(AWARE)))


# What enqueue refuses.


@pytest.mark.conformance(27)
@pytest.mark.parametrize("args", ["a", b"a", 1, 1.5, None, len, Point, [Point(1)], {1}, object()], ids=shown)
def test_only_an_instance_of_a_dataclass_or_a_mapping_can_be_args(args: object) -> None:
    assert "$: expected an instance of a dataclass, or a dict, found " in refusal(args)


@pytest.mark.parametrize("args", [OrderedDict(a=1), MappingProxyType({"a": 1})])
def test_any_mapping_can_be_args(args: Mapping[str, int]) -> None:
    assert encode(args) == '{"a":1}'


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


BAD_VALUES: list[tuple[Any, str]] = [
    (float("nan"), "float nan is not a number in JSON"),
    (float("-inf"), "float -inf is not a number in JSON"),
    ("a\0b", "str 'a\\x00b' holds the character NUL"),
    ("\udc80", "str '\\udc80' holds a lone surrogate"),
    (10**4300, "int … has more than 4300 digits"),
    (-(10**4300), "int … has more than 4300 digits"),
    ({1, 2}, "set {1, 2} is not a JSON value"),
    (b"a", "bytes b'a' is not a JSON value"),
    (AWARE, "datetime datetime.datetime(2024, 2, 2"),
    (ID, "UUID UUID('1234"),
    (Color.RED, "Color <Color.RED: 'red'>"),
    (Decimal(1), "Decimal Decimal('1')"),
    (Point(1), "Point Point(x=1, y=0) would come back as a dict"),
    (len, "builtin_function_or_method"),
    (Unprintable(), "Unprintable"),
]


@pytest.mark.conformance(337)
@pytest.mark.parametrize(("value", "problem"), BAD_VALUES, ids=lambda part: str(type(part)))
@pytest.mark.parametrize("typed", [True, False])
def test_what_json_or_postgres_cannot_hold_is_refused_by_its_path(value: Any, problem: str, typed: bool) -> None:
    args = {"items": [1, {"price": value}], "a": "\\u0000"}
    message = refusal(holder(Any)(args) if typed else args)
    assert f"${'.x' if typed else ''}.items[1].price: {problem}" in message
    assert len(message) < 300


@pytest.mark.parametrize("hint", [str, str | None, list[str], dict[str, str], Literal["a\0"]])
def test_text_that_postgres_cannot_hold_is_refused_in_a_typed_field(hint: Any) -> None:
    value = {list[str]: ["a\0"], dict[str, str]: {"a\0": "b"}}.get(hint, "a\0")
    assert "holds the character NUL" in refusal(holder(hint)(value))


@pytest.mark.conformance(337)
@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("a\0", "str 'a\\x00' holds the character NUL"),
        ("\ud800", "str '\\ud800' holds a lone surrogate"),
        (1.5, "expected a key that is a str or an int, found float 1.5"),
        (True, "expected a key that is a str or an int, found bool True"),
        (None, "expected a key that is a str or an int, found NoneType None"),
        ((1, 2), "expected a key that is a str or an int, found tuple (1, 2)"),
        (10**4300, "raised ValueError"),
    ],
    ids=lambda part: str(type(part)),
)
def test_a_key_that_json_or_postgres_cannot_hold_is_refused_by_its_path(key: Any, problem: str) -> None:
    message = refusal({"a": {key: 1}})
    assert "$.a[" in message
    assert problem in message


@pytest.mark.conformance(340)
def test_int_keys_of_a_dict_payload_become_text() -> None:
    assert decode_dict(encode({1: "a", "b": {-2: 3}})) == {"1": "a", "b": {"-2": 3}}


@pytest.mark.parametrize("payload", [{1: "a", "1": "b"}, {"1": "a", 1: "b"}])
def test_keys_that_become_one_are_refused(payload: dict[Any, str]) -> None:
    assert "two keys become '1'" in refusal(payload)


def test_tuples_of_a_dict_payload_become_lists() -> None:
    assert decode_dict(encode({"a": (1, (2,))})) == {"a": [1, [2]]}


def test_cycles_are_refused_by_their_path() -> None:
    node = Node(1)
    node.next = node
    assert "$.next.next" in refusal(node)
    assert "$.a[0][0][0]" in refusal({"a": CYCLE})
    assert "contains itself, or is nested too deeply" in refusal({"a": CYCLE})


@pytest.mark.parametrize("levels", [MAX_DEPTH, 500, 2_000, 50_000])
def test_deep_nesting_is_refused(levels: int) -> None:
    assert "nested " in refusal({"a": nested(levels)})
    assert "nested " in refusal(holder(Any)(nested(levels)))


def test_the_deepest_nesting_that_is_allowed_comes_back() -> None:
    payload = {"a": nested(MAX_DEPTH - 1), "b": [[]] * 500}
    assert decode_dict(encode(payload)) == payload
    node = Node(0)
    for value in range(MAX_DEPTH - 3):
        node = Node(value, node)
    assert decode(Node, encode(node)) == node
    tree = Node(0)
    for value in range((MAX_DEPTH - 2) // 2):
        tree = Node(value, children=[tree])
    assert decode(Node, encode(tree)) == tree
    assert f"nested more than {MAX_DEPTH} levels deep" in refusal(Node(1, Node(2, node)))


def test_the_deepest_nesting_can_be_read_far_down_the_stack() -> None:
    link = Link(None)
    for _ in range(MAX_DEPTH - 2):
        link = Link(link)

    def far_down(frames: int) -> Link:
        return far_down(frames - 1) if frames else decode(Link, text)

    text = encode(link)
    assert far_down(200) == link


def test_a_long_int_is_refused_whatever_python_is_told() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert "$.a: int " in refusal({"a": 10**4300})
        assert encode({"a": 10**4299}) == '{"a":1' + "0" * 4299 + "}"
    finally:
        sys.set_int_max_str_digits(before)


def test_args_above_the_limit_are_refused_with_both_sizes() -> None:
    payload = {"small": 1, "texts": ["é" * 20]}
    size = len(encode(payload).encode())
    assert encode(payload, max_bytes=size)
    message = refusal(payload, max_bytes=size - 1)
    assert f"$.texts[0]: {size} bytes of JSON, more than the {size - 1} allowed" in message
    assert "1048576 allowed" in refusal({"a": "x" * 1_048_576})


@pytest.mark.conformance(337)
def test_a_string_that_jsonb_cannot_hold_is_refused_whatever_the_limit() -> None:
    message = refusal({"a": "x" * 268_435_456}, max_bytes=10**12)
    assert "$.a: 268435464 bytes of JSON, more than the 268435455 allowed" in message


@pytest.mark.parametrize(
    ("hint", "value", "problem"),
    [
        (int, "5", "$.x: expected int, found str '5'"),
        (int, True, "$.x: expected int, found bool True"),
        (int, 5.0, "$.x: expected int, found float 5.0"),
        (int, None, "$.x: expected int, found NoneType None"),
        (float, 2**53 + 1, "$.x: expected a number that a float holds exactly"),
        (float, 10**400, "$.x: expected float"),
        (float, float("nan"), "$.x: float nan is not a number"),
        (list[float], [0.0, float("inf")], "$.x[1]: float inf is not a number"),
        (str, b"a", "$.x: expected str, found bytes b'a'"),
        (list[int], (1,), "$.x: expected list, found tuple (1,)"),
        (list[int], [1, "a"], "$.x[1]: expected int, found str 'a'"),
        (Sequence[str], "abc", "$.x: expected Sequence, found str 'abc'"),
        (tuple[int, str], (1,), "$.x: expected a tuple of 2, found tuple (1,)"),
        (tuple[int, str], (1, 2), "$.x[1]: expected str, found int 2"),
        (dict[str, int], {"a b": "c"}, "$.x['a b']: expected int, found str 'c'"),
        (dict[int, int], {"1": 1}, "$.x['1']: expected int, found str '1'"),
        (dict[str, int], [1], "$.x: expected dict, found list [1]"),
        (date, AWARE, "$.x: expected date, found datetime"),
        (datetime, AWARE.replace(tzinfo=None), "$.x: naive datetime 2024-02-29 23:59:59.123456: give it a time zone"),
        (date | datetime, AWARE.replace(tzinfo=None), "naive datetime"),
        (time, time(1, tzinfo=ZoneInfo("Europe/Paris")), "$.x: time 01:00:00 has a zone without an offset"),
        (Color, "red", "$.x: expected Color, found str 'red'"),
        (Literal["a", 1], True, "$.x: expected 'a' or 1, found bool True"),
        (Point, Node(1), "$.x: expected Point, found Node"),
        (Point, {"x": 1}, "$.x: expected Point, found dict"),
        (UUID | str, str(ID), "would come back as UUID"),
        (int | str, 1.5, "$.x: expected int, found float 1.5; expected str, found float 1.5"),
        (list[int] | Point, Point("a"), "$.x.x: expected int, found str 'a'"),  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_a_value_that_its_declared_type_excludes_is_refused(hint: Any, value: Any, problem: str) -> None:
    assert problem in refusal(holder(hint)(value))


def test_a_member_of_a_union_that_another_would_read_is_refused() -> None:
    @dataclass
    class Wide:
        x: int
        more: str = ""

    cls = holder(Point | Wide)
    assert "would come back as Point" in refusal(cls(Wide(1, "lost")))
    cls = holder(Wide | Circle)
    assert decode(cls, encode(cls(Wide(1, "kept")))).x == Wide(1, "kept")


def test_a_field_that_was_never_set_is_refused() -> None:
    cls = make_dataclass("Cls", [("a", int), ("b", int, field(init=False))])
    assert "$.b: " in refusal(cls(1))


# What a stored row may hold.


@pytest.mark.conformance(271)
@pytest.mark.parametrize(
    "raw",
    [
        *["", "nonsense", "[1]", "1", "null", '"a"', "NaN", '{"x":NaN}', '{"x":1', '{"x":1}x', None, b"{}"],
        *["[" * 100_000, '{"a":1e999}', '{"x":' + "9" * 5_000 + "}"],
    ],
    ids=lambda raw: str(raw)[:20],
)
def test_text_that_is_no_json_object_is_one_error(raw: Any) -> None:
    assert "Point" in failure(Point, raw)
    with pytest.raises(UndecodableArgs):
        decode_dict(raw)


@pytest.mark.parametrize(
    ("hint", "raw", "problem"),
    [
        (int, "null", "$.x: expected int, found NoneType"),
        (int, '"5"', "$.x: expected int, found str"),
        (int, "5.5", "$.x: expected int, found float"),
        (int, "9007199254740994.0", "$.x: expected int"),
        (int, "true", "$.x: expected int, found bool"),
        (bool, "1", "$.x: expected bool, found int"),
        (float, "1" + "0" * 400, "$.x: expected float"),
        (float, '"1"', "$.x: expected float, found str"),
        (str, "1", "$.x: expected str, found int"),
        (Decimal, "0.1", "$.x: expected Decimal, found float"),
        (Decimal, '"x"', "$.x: expected Decimal, found str"),
        (UUID, '"x"', "$.x: expected UUID, found str"),
        (datetime, '"2024-01-01T00:00:00"', "$.x: naive datetime"),
        (datetime, "1700000000.5", "$.x: expected datetime, found float"),
        (date, '"2024-13-01"', "$.x: expected date, found str"),
        (timedelta, "1" + "0" * 30, "$.x: expected timedelta"),
        (bytes, "[256]", "$.x: expected bytes"),
        (bytes, "5", "$.x: expected bytes, found int"),
        (Color, '"blue"', "$.x: expected Color, found str"),
        (Level, "true", "$.x: expected Level, found bool"),
        (Literal["a"], '"b"', "$.x: expected 'a', found str"),
        (list[int], '{"a":1}', "$.x: expected an array, found dict"),
        (list[int], "[1,null]", "$.x[1]: expected int, found NoneType"),
        (tuple[int, int], "[1]", "$.x: expected a list of 2, found list"),
        (set[Any], "[[1]]", "$.x: set raised TypeError"),
        (dict[int, int], '{"07":1}', "$.x['07']: expected int, found str"),
        (dict[int, int], '{"a":1}', "$.x.a: int raised ValueError"),
        (dict[UUID, int], f'{{"{ID}":1,"{ID.hex}":2}}', "two keys become"),
        (dict[str, int], "[]", "$.x: expected an object, found list"),
        (Point, '{"y":1}', "$.x.x: missing, and Point has no default for it"),
        (Point, "[]", "$.x: expected an object with the fields of Point, found list"),
        (list[Point], '[{"x":1},{"x":"1"}]', "$.x[1].x: expected int, found str"),
        (int | UUID, '"a"', "$.x: expected UUID, found str"),
        (int | UUID, "[]", "$.x: expected int | UUID, found list"),
        (Circle | Square, '{"radius":"a"}', "$.x.radius: expected float, found str"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_one_error_that_names_the_field(hint: Any, raw: str, problem: str) -> None:
    message = failure(holder(hint), f'{{"x":{raw}}}')
    assert message.startswith("args do not fit Holder: ")
    assert problem in message


@pytest.mark.parametrize(
    "hint",
    [int, UUID, Decimal, datetime, Color, Literal["a"], list[int], tuple[int, int], dict[str, int], Point, int | UUID],
    ids=str,
)
def test_the_error_of_a_value_that_does_not_fit_does_not_tell_it(hint: Any) -> None:
    """It is recorded and logged; args are not."""
    for raw in ('"m4rk3r"', '["m4rk3r"]', '{"x": "m4rk3r"}'):
        message = failure(holder(hint), f'{{"x":{raw}}}')
        assert "$.x" in message
        assert "m4rk3r" not in message
    assert "m4rk3r" not in failure(Point, "m4rk3r")


@pytest.mark.parametrize(
    ("hint", "raw", "value"),
    [(int, "5.0", 5), (float, "5", 5.0), (float, "1" + "0" * 22, 1e22), (Decimal, "5", Decimal(5))],
)
def test_reading_converts_what_loses_nothing(hint: Any, raw: str, value: Any) -> None:
    back = decode(holder(hint), f'{{"x":{raw}}}').x
    assert (type(back), back) == (type(value), value)


@pytest.mark.parametrize("hint", [int, int | None, Any, list[int]])
def test_a_missing_field_without_a_default_is_one_error(hint: Any) -> None:
    assert "$.x: missing, and Holder has no default for it" in failure(holder(hint), "{}")


def test_missing_fields_take_their_defaults() -> None:
    assert decode(Node, '{"value":1}') == Node(1)


def test_what_the_class_itself_refuses_is_one_error() -> None:
    @dataclass
    class Positive:
        x: int

        def __post_init__(self) -> None:
            if self.x <= 0:
                raise KeyError(self.x)

    assert decode(Positive, '{"x":1}') == Positive(1)
    message = failure(Positive, '{"x":0}')
    assert "Positive raised KeyError" in message


def test_args_of_other_classes_by_name_are_only_data() -> None:
    assert decode_dict('{"__class__":"os.system"}') == {"__class__": "os.system"}
    assert "$.x: missing" in failure(Point, '{"__class__":"os.system"}')


# What registration refuses.


class Custom:
    pass


@dataclass
class NeedsMore:
    a: int
    seed: InitVar[int]


@pytest.mark.parametrize(
    ("hint", "problem"),
    [
        (object, "$.x: <class 'object'> cannot be written as JSON"),
        (Custom, "Custom'> cannot be written as JSON"),
        (list[Custom], "Custom'> cannot be written as JSON"),
        (Callable[[], int], "cannot be written as JSON"),
        (complex, "<class 'complex'> cannot be written as JSON"),
        (Enum, "Enum'> has no members"),
        (IntEnum | None, "IntEnum'> has no members"),
        (dict[StrEnum, int], "StrEnum'> has no members"),
        (type, "<class 'type'> cannot be written as JSON"),
        (Odd, "$.x: the values of the enum Odd"),
        (Literal[b"a"], "$.x: the values of typing.Literal[b'a']"),
        (dict[float, int], "$.x: keys are text in JSON"),
        (dict[int | None, int], "$.x: keys are text in JSON"),
        (NeedsMore, "$.x: NeedsMore() needs 'seed'"),
        (Growing[int], "nested too deeply"),
        ("int |", "cannot evaluate the annotations of Holder"),
        ("Missing", "cannot evaluate the annotations of Holder"),
        (Open, None),
    ],
    ids=str,
)
def test_a_class_whose_fields_cannot_come_back_is_refused_early(hint: Any, problem: str | None) -> None:
    cls = holder(hint)
    if problem is None:
        check_class(cls)
        return
    with pytest.raises(InvalidArgs, match=r"^Holder cannot be a class of args: \$") as caught:
        check_class(cls)
    assert problem in str(caught.value)
    assert problem in refusal(cls(None))
    assert problem in failure(cls, "{}")


def test_two_fields_with_one_name_in_json_are_refused() -> None:
    cls = make_dataclass("Cls", [("a", int), ("b", int, field(metadata=config(field_name="a")))])
    with pytest.raises(InvalidArgs, match=r"\$\.b: another field has the JSON name 'a' too"):
        check_class(cls)


def test_a_class_that_keeps_unknown_fields_needs_one_field_for_them() -> None:
    cls: Any = dataclass_json(undefined=Undefined.INCLUDE)(make_dataclass("Cls", [("a", int)]))
    with pytest.raises(InvalidArgs, match="needs one field of the type CatchAll"):
        check_class(cls)


@pytest.mark.parametrize("cls", [int, dict, Custom])
def test_only_a_dataclass_can_be_a_class_of_args(cls: type) -> None:
    with pytest.raises(InvalidArgs, match="is not a dataclass"):
        check_class(cls)
