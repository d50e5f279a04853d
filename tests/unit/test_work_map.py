"""Which function handles which kind, and what cannot be a handler."""

from __future__ import annotations

import functools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import pytest

from pgjobs import (
    DuplicateHandler,
    Handler,
    InvalidArgs,
    InvalidHandler,
    InvalidKind,
    UndecodableArgs,
    UnknownKind,
    WorkMap,
    never,
)

Content = TypeVar("Content")


@dataclass
class Welcome:
    email: str


@dataclass
class Greeting:
    kind: ClassVar[str] = "welcome"  # the same kind, by name
    name: str = ""


def handler(tx: Any, job: Any) -> None: ...


def other(tx: Any, job: Any) -> None: ...


# --- registration


def test_a_key_is_a_kind_or_a_class_and_both_find_the_handler() -> None:
    work_map: Any = WorkMap({Welcome: handler, "report.nightly": other})
    assert list(work_map) == ["welcome", "report.nightly"]
    assert work_map["welcome"].function is work_map[Welcome].function is handler
    assert Welcome in work_map
    assert "report.nightly" in work_map
    assert "report.daily" not in work_map
    assert Greeting in work_map, "found by its kind"


def test_a_value_is_a_function_or_a_handler_with_settings() -> None:
    policy = never()
    work_map = WorkMap({Welcome: Handler(handler, backoff=policy), "plain": other})
    assert (work_map["welcome"].function, work_map["welcome"].backoff) == (handler, policy)
    assert work_map["plain"].backoff is None


def test_the_decorator_registers_a_function_and_leaves_it_as_it_is() -> None:
    work_map = WorkMap()
    policy = never()
    assert work_map.handles(Welcome, backoff=policy)(handler) is handler
    assert (work_map[Welcome].function, work_map[Welcome].backoff) == (handler, policy)


@pytest.mark.conformance(274)
@pytest.mark.parametrize("second", [Welcome, Greeting, "welcome"], ids=["class", "other class", "kind"])
def test_a_second_handler_for_a_kind_is_refused_and_the_first_stays(second: Any) -> None:
    work_map = WorkMap({Welcome: handler})
    with pytest.raises(DuplicateHandler, match=r"welcome.*handler"):
        work_map[second] = other
    with pytest.raises(DuplicateHandler):
        work_map.handles(second)(other)
    with pytest.raises(DuplicateHandler):
        work_map.update({second: other})
    with pytest.raises(DuplicateHandler):
        WorkMap({"welcome": handler, Greeting: other})
    assert work_map["welcome"].function is handler
    assert len(work_map) == 1


@pytest.mark.parametrize("key", [Welcome, "welcome"], ids=["class", "kind"])
def test_a_handler_that_was_deleted_can_be_replaced(key: Any) -> None:
    work_map = WorkMap({Welcome: handler})
    del work_map[key]
    work_map[Welcome] = other
    assert work_map[Welcome].function is other


def test_every_way_into_the_map_goes_through_its_checks() -> None:
    work_map: Any = WorkMap()
    work_map.update({Welcome: handler}, report=other)
    work_map.update([("listed", other)])
    work_map |= {"joined": other}
    assert work_map.setdefault("default", other)
    assert set(work_map) == {"welcome", "report", "listed", "joined", "default"}
    assert all(isinstance(value, Handler) for value in work_map.values())
    with pytest.raises(DuplicateHandler):
        work_map |= {"joined": handler}


@pytest.mark.parametrize("joined", [lambda a, b: a | b, lambda a, b: b | a], ids=["left", "right"])
def test_two_maps_are_joined_into_a_map_and_a_kind_of_both_is_refused(joined: Any) -> None:
    first, second = WorkMap({Welcome: handler}), {"report": other}
    made = joined(first, second)
    assert isinstance(made, WorkMap)
    assert (made[Welcome].args_class, made["report"].function, set(first)) == (Welcome, other, {"welcome"})
    with pytest.raises(DuplicateHandler, match="welcome"):
        joined(first, {"welcome": other})
    with pytest.raises(TypeError):
        joined(first, [("report", other)])


def test_a_copy_is_a_map_of_its_own() -> None:
    work_map = WorkMap({Welcome: handler})
    copied: Any = work_map.copy()
    copied["report"] = other
    assert (copied[Welcome].args_class, Welcome in copied, set(work_map)) == (Welcome, True, {"welcome"})


@pytest.mark.parametrize("remove", [WorkMap.clear, WorkMap.popitem], ids=["clear", "popitem"])
def test_a_running_pool_notices_each_way_to_take_a_handler_away(remove: Any) -> None:
    work_map = WorkMap({Welcome: handler})
    before = work_map.changes
    remove(work_map)
    assert (len(work_map), work_map.changes) == (0, before + 1)


@dataclass
class Box(Generic[Content]):
    content: Content


def test_the_decorator_refuses_a_generic_class_as_the_map_does() -> None:
    """It took the alias for the function of a decorator without parentheses."""
    generic: Any = Box[int]
    with pytest.raises(InvalidHandler, match="make a subclass of it") as of_map:
        WorkMap({generic: handler})
    with pytest.raises(InvalidHandler) as of_decorator:
        WorkMap().handles(generic)
    assert str(of_decorator.value) == str(of_map.value)


@pytest.mark.parametrize(
    "function", [handler, lambda tx, job: None, functools.partial(handler)], ids=["def", "lambda", "partial"]
)
def test_the_decorator_without_a_class_or_kind_is_refused_and_no_handler_is_lost(function: Any) -> None:
    """`@work_map.handles` without parentheses made a decorator of the handler, and registered nothing."""
    with pytest.raises(InvalidHandler, match=r"@work_map.handles\(Welcome\)"):
        WorkMap().handles(function)
    with pytest.raises(InvalidKind):
        WorkMap().handles("not a kind")


def test_a_map_made_from_another_decodes_as_that_one_did() -> None:
    copied = WorkMap(WorkMap({Welcome: handler}))
    assert copied["welcome"].decode('{"email": "a@b.c"}') == Welcome("a@b.c")


@pytest.mark.parametrize("get", [WorkMap.get, WorkMap.pop], ids=["get", "pop"])
def test_a_class_finds_its_handler_whatever_it_is_asked_with(get: Any) -> None:
    assert get(WorkMap({Welcome: handler}), Welcome).function is handler


def test_an_unknown_kind_is_an_error_that_names_it() -> None:
    with pytest.raises(UnknownKind, match=r"'report\.daily'") as unknown:
        WorkMap({Welcome: handler}).find("report.daily")
    assert unknown.value.kind == "report.daily"
    with pytest.raises(KeyError):
        WorkMap()["welcome"]


@pytest.mark.parametrize("kind", ["", "a", "with space", 5, None])
def test_a_kind_that_cannot_be_one_is_refused(kind: Any) -> None:
    with pytest.raises(InvalidKind):
        WorkMap({kind: handler})


def test_a_class_that_cannot_be_args_is_refused() -> None:
    class Plain:
        pass

    @dataclass
    class Unstorable:
        stream: Iterator[int]

    with pytest.raises(InvalidHandler, match="Plain is not a dataclass"):
        WorkMap({Plain: handler})
    with pytest.raises(InvalidArgs, match="stream"):
        WorkMap({Unstorable: handler})


# --- decoding


def test_args_come_as_the_class_they_were_registered_under() -> None:
    work_map = WorkMap({Welcome: handler, "report": other})
    assert work_map["welcome"].decode('{"email": "a@b.c"}') == Welcome("a@b.c")
    assert work_map["report"].decode('{"email": "a@b.c"}') == {"email": "a@b.c"}


@pytest.mark.conformance(271)
@pytest.mark.parametrize("raw", ["", "{", "nope", "[1]", "5", "null", '{"email": 5}', "{}"])
def test_args_that_do_not_fit_are_an_error_of_the_decoding(raw: str) -> None:
    with pytest.raises(UndecodableArgs):
        WorkMap({Welcome: handler})["welcome"].decode(raw)


def test_a_dict_handler_takes_any_object_and_nothing_else() -> None:
    decode = WorkMap({"report": other})["report"].decode
    assert decode(json.dumps({"a": [1, {"b": None}]})) == {"a": [1, {"b": None}]}
    with pytest.raises(UndecodableArgs):
        decode("[1]")


# --- signatures


class Callable_:
    def __call__(self, tx: Any, job: Any) -> None: ...

    def method(self, tx: Any, job: Any) -> None: ...

    @classmethod
    def of_class(cls, tx: Any, job: Any) -> None: ...

    @staticmethod
    def static(tx: Any, job: Any) -> None: ...


GOOD: list[Any] = [
    handler,
    lambda tx, job: None,
    lambda tx, job, extra=None, *, more=None: None,
    lambda *everything, **named: None,
    Callable_(),
    Callable_().method,
    Callable_.of_class,
    Callable_.static,
    functools.partial(lambda prefix, tx, job: None, "prefix"),
    functools.wraps(handler)(lambda *everything: None),
    max,  # a builtin that does not tell its signature
]


@pytest.mark.parametrize("function", GOOD, ids=lambda f: getattr(f, "__qualname__", type(f).__name__))
def test_whatever_can_be_called_with_a_transaction_and_a_job_is_a_handler(function: Any) -> None:
    assert WorkMap({Welcome: function})[Welcome].function is function


async def coroutine(tx: Any, job: Any) -> None: ...


async def async_generator(tx: Any, job: Any) -> AsyncIterator[int]:
    yield 1


def generator(tx: Any, job: Any) -> Iterator[int]:
    yield 1


class AsyncCallable:
    async def __call__(self, tx: Any, job: Any) -> None: ...


class GeneratorCallable:
    def __call__(self, tx: Any, job: Any) -> Iterator[int]:
        yield 1


BAD: list[Any] = [
    None,
    5,
    "handler",
    lambda: None,
    lambda tx: None,
    lambda tx, job, more: None,
    lambda tx, *, job: None,
    lambda tx, job, *, more: None,
    Callable_.method,
    coroutine,
    async_generator,
    generator,
    functools.partial(coroutine),
    AsyncCallable(),
    GeneratorCallable(),
]


@pytest.mark.parametrize("function", BAD, ids=lambda f: getattr(f, "__qualname__", type(f).__name__))
def test_what_cannot_be_a_handler_is_refused_at_registration(function: Any) -> None:
    work_map = WorkMap()
    with pytest.raises(InvalidHandler):
        work_map[Welcome] = function
    with pytest.raises(InvalidHandler):
        work_map["kind"] = Handler(function)
    assert not work_map


@pytest.mark.finding("E7")
@pytest.mark.parametrize("name", ["A", "É", "Größe", "X" * 129])
def test_a_class_whose_name_makes_no_kind_is_told_how_to_say_one(name: str) -> None:
    """A class of one letter was told of a kind that nobody had written."""
    made: Any = dataclass(type(name, (), {"__annotations__": {"n": int}}))
    with pytest.raises(InvalidKind, match=rf"the name of class {name} makes no kind: .*kind: ClassVar\[str\] = "):
        WorkMap({made: handler})
    made.kind = "named.otherwise"
    assert list(WorkMap({made: handler})) == ["named.otherwise"]
