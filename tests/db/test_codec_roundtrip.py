"""What goes through a jsonb column comes out equal."""

from __future__ import annotations

import json
from collections import OrderedDict
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgjobs import codec
from tests.unit import test_codec as unit

Conn = psycopg.Connection[Any]


class Distance(Enum):
    FAR = 1e22


@pytest.fixture
def conn(conn: Conn) -> Conn:
    """The connection, with a table that has a jsonb column."""
    conn.execute("CREATE TEMPORARY TABLE sent (args jsonb NOT NULL)")
    return conn


def through(conn: Conn, args: object) -> str:
    """The text of the args, as the column gives it back."""
    text = codec.encode(args)
    row = conn.execute("INSERT INTO sent VALUES (%s::jsonb) RETURNING args::text", [text]).fetchone()
    assert row is not None
    return str(row[0])


LARGE = [1e16, -1.5e300, 1.7976931348623157e308, 2.0**53, 5e-324, 1e-7, 0.1 + 0.2, 5.0, 0.0]
MORE: list[tuple[Any, Any]] = [
    *[(float, number) for number in LARGE],
    *[(int, number) for number in (10**16, -(10**22), 10**4299, -(2**63))],
    (int | float, 1e22),
    (int | float, 10**22),
    (timedelta | float, 1e16),
    (set[float], {1e22, 2.5}),
    (dict[str, float], {"1e+22": 1e22}),
    (Distance, Distance.FAR),
    (Decimal, Decimal("-0.00")),
    (Decimal, Decimal("1E+400")),
    (str, 'a "quoted" 1e+22 \\" \\'),
    (str, "\x01\x1f\x7f\x85\ufeff\uffff\U0010ffff"),
    (str, "x" * 1_000_000),
    (OrderedDict[str, int], OrderedDict(bb=1, a=2)),
    (OrderedDict, OrderedDict([(2, None), (1, [])])),
    (dict[str, int], {"": 1, " ": 2, "é": 3, "\\u0000": 4}),
    (datetime, datetime.max.replace(tzinfo=UTC)),
    (datetime, datetime(2024, 7, 1, 12, tzinfo=ZoneInfo("America/New_York"))),
]


@pytest.mark.parametrize(("hint", "value"), unit.EXACT + MORE, ids=lambda part: str(part)[:40])
def test_a_value_of_its_declared_type_comes_back_equal_and_of_the_same_type(conn: Conn, hint: Any, value: Any) -> None:
    cls = unit.holder(hint)
    back = codec.decode(cls, through(conn, cls(value))).x
    assert back == value
    assert type(back) is type(value)


def nodes(levels: int) -> unit.Node:
    node = unit.Node(0)
    for value in range(levels):
        node = unit.Node(value, node)
    return node


@pytest.mark.parametrize(
    "args",
    [
        unit.Node(1, unit.Node(2), [unit.Node(3, unit.Node(4))]),
        nodes(codec.MAX_DEPTH - 3),
        unit.Boxes(unit.Box(date(2024, 1, 1), [date(2024, 1, 2)]), unit.Box("free")),
        unit.Settings("a", size=5),
        unit.Camel(1, "A", None, 255),
        unit.Camel(1, "A", "x"),
        unit.Plain({"a": unit.Point(1)}, unit.Color.RED, Decimal("1.50"), unit.ID, b"ab", (1, "b"), {3: 0.1, -1: 1e16}),
        unit.Strict(1),
        unit.Ignoring(1),
        unit.Open(1, rest={"z": {"deep": [3, 1e22]}}),
        unit.Open(1, rest={}),
        unit.OpenWithDefault(1),
        unit.Own(3),
        unit.Half(unit.AWARE),
    ],
    ids=lambda args: type(args).__name__,
)
def test_an_instance_comes_back_equal(conn: Conn, args: Any) -> None:
    assert codec.decode(type(args), through(conn, args)) == args


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"": "", "a": [], "b": {}, "c": [None, True, False, 0, -1, "é🐘\u2028"]},
        {"a": unit.nested(codec.MAX_DEPTH - 1), "b": [[]] * 500},
        {"floats": LARGE, "ints": [10**16, 10**4299]},
        {"a": 'e+ "1e+22" \\', "b\\": -1e22, "c": [2e16, "3e+16"]},
    ],
    ids=lambda payload: str(payload)[:40],
)
def test_a_dict_of_json_values_comes_back_equal_with_every_number_of_its_own_type(
    conn: Conn, payload: dict[str, Any]
) -> None:
    back = codec.decode_dict(through(conn, payload))
    assert back == payload
    assert json.dumps(back, sort_keys=True) == json.dumps(payload, sort_keys=True)


def test_int_keys_become_text_and_tuples_lists(conn: Conn) -> None:
    assert codec.decode_dict(through(conn, {1: (2, (3,))})) == {"1": [2, [3]]}


def test_the_order_of_keys_and_the_sign_of_zero_are_lost(conn: Conn) -> None:
    back = codec.decode_dict(through(conn, {"bb": 1, "a": -0.0}))
    assert list(back.items()) == [("a", 0.0), ("bb", 1)]
    assert str(back["a"]) == "0.0"


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(payload=st.dictionaries(st.text("abc"), unit.JSON_VALUES))
def test_any_dict_of_json_values_comes_back_equal(conn: Conn, payload: dict[str, Any]) -> None:
    assert codec.decode_dict(through(conn, payload)) == payload
