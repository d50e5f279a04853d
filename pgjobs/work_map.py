"""Which function handles which kind."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar, get_origin, overload

from pgjobs import checks, codec
from pgjobs.backoff import Backoff
from pgjobs.errors import DuplicateHandler, InvalidHandler, InvalidSetting, UnknownKind, shown
from pgjobs.hooks import Middleware
from pgjobs.job import Job
from pgjobs.options import ClassName, check_kind, kind_of, two_classes

#: What a handler looks like: `handler(tx, job)`. What it returns is ignored.
HandlerFunction = Callable[[Any, Any], object]
F = TypeVar("F", bound=HandlerFunction)
Args = TypeVar("Args")
Tx = TypeVar("Tx")
R = TypeVar("R")


class RegistersFor(Protocol[Args]):
    """What `handles(Welcome)` gives: a decorator of functions that take a Job[Welcome]."""

    def __call__(self, function: Callable[[Tx, Job[Args]], R], /) -> Callable[[Tx, Job[Args]], R]: ...


#: How long an attempt may take; None for ever.
Timeout = timedelta | None | Callable[[Job[Any]], timedelta | Literal["inherit"] | None]


@dataclass(frozen=True, slots=True)
class Handler:
    """A function with settings of its own: `Handler(charge, timeout=timedelta(minutes=5))`.

    `timeout` is how long an attempt may take: a timedelta, None for ever, or a function of the job that gives either,
    or "inherit"; left out, the worker pool's holds, and so it does where the function raises or gives anything else.
    `backoff` None means the worker pool's. `middleware` stands around the function, inside that of the worker pool.
    `decode` turns the stored JSON into `job.args`; the WorkMap sets it.

    `detached=True` is for work of minutes that must not hold a transaction open: the function is given None as `tx`,
    and no connection is held while it runs. The job is kept by a lease, which the worker pool extends; what the
    function writes is its own affair, unless it ends with `job.complete(tx)` in a transaction of its own. A worker that
    vanishes is noticed when the lease is over, and the job runs again from the start.
    """

    function: HandlerFunction
    backoff: Backoff | None = None
    timeout: Timeout | Literal["inherit"] = "inherit"
    detached: bool = False
    middleware: Sequence[Middleware] = ()
    decode: Callable[[str], Any] = codec.decode_dict
    args_class: type | None = None  # that `decode` gives an instance of; set by the WorkMap too

    def __post_init__(self) -> None:
        if self.timeout != "inherit" and not callable(self.timeout):
            checks.check_timeout(self.timeout, error=InvalidHandler)
        _check_signature(self.function)
        checks.check_bool("detached", self.detached, error=InvalidHandler)
        checks.check_function("backoff", self.backoff, checks.A_BACKOFF, error=InvalidHandler)
        middleware = checks.check_functions(
            "middleware", self.middleware, "functions of (tx, job, run)", error=InvalidHandler
        )
        object.__setattr__(self, "middleware", middleware)


class WorkMap(dict[str, Handler]):
    """A dict from kind to Handler. A key may be given as an args class, a value as a plain function.

        work_map = WorkMap({Welcome: welcome, "report.nightly": Handler(report)})

        @work_map.handles(Invoice)
        def invoice(tx: Connection, job: Job[Invoice]) -> None: ...

    A kind has one handler: a second one is refused, also when another class names the same kind; delete the first to
    replace it. A class of the same module and name, made anew by a reload or in a notebook, replaces the former. The
    map may grow while a worker pool runs. Under an args class, `job.args` is an instance of it; under a string, a dict.
    """

    def __init__(self, handlers: Mapping[Any, Handler | HandlerFunction] | None = None) -> None:
        super().__init__()
        self.changes = 0  # how often it was changed
        if handlers is not None and not isinstance(handlers, Mapping):
            raise InvalidHandler(f"a WorkMap is made of a mapping, as in {{Welcome: welcome}}, not {shown(handlers)}")
        self.update(handlers or {})

    def __setitem__(self, key: str | type, handler: Handler | HandlerFunction) -> None:
        kind = _kind(key)
        if kind in self:
            self._check_replaced(kind, key)
        given = as_handler(handler)
        if isinstance(key, type):
            given = replace(given, decode=partial(codec.decode, key), args_class=key)
        super().__setitem__(kind, given)
        self.changes += 1

    def _check_replaced(self, kind: str, key: str | type) -> None:
        """Refuse a second handler, but for a class that was made anew: by a reload, or in a notebook."""
        before = super().__getitem__(kind)
        if before.args_class is None or not isinstance(key, type) or before.args_class is key:
            raise DuplicateHandler(f"kind {kind!r} has a handler already: {_name(before.function)}")
        known, other = ClassName.of(before.args_class), ClassName.of(key)
        if known != other:
            raise DuplicateHandler(
                f"{two_classes(kind, known, other)}; it has a handler already: {_name(before.function)}"
            )

    def __getitem__(self, key: str | type) -> Handler:
        return super().__getitem__(_kind(key))

    def __delitem__(self, key: str | type) -> None:
        super().__delitem__(_kind(key))
        self.changes += 1

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_kind(key) if isinstance(key, type) else key)

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_kind(key) if isinstance(key, type) else key, default)

    # dict's own would pass by the checks above
    update = MutableMapping.update
    setdefault = MutableMapping.setdefault
    pop = MutableMapping.pop

    def __ior__(self, other: Any) -> Self:  # type: ignore[override,misc]
        self.update(other)
        return self

    @overload
    def handles(
        self,
        key: type[Args],
        *,
        backoff: Backoff | None = None,
        timeout: Timeout | Literal["inherit"] = "inherit",
        detached: bool = False,
        middleware: Sequence[Middleware] = (),
    ) -> RegistersFor[Args]: ...

    @overload
    def handles(
        self,
        key: str,
        *,
        backoff: Backoff | None = None,
        timeout: Timeout | Literal["inherit"] = "inherit",
        detached: bool = False,
        middleware: Sequence[Middleware] = (),
    ) -> Callable[[F], F]: ...

    def handles(
        self,
        key: str | type,
        *,
        backoff: Backoff | None = None,
        timeout: Timeout | Literal["inherit"] = "inherit",
        detached: bool = False,
        middleware: Sequence[Middleware] = (),
    ) -> Callable[[F], F]:
        """Register the decorated function for this kind or args class, and leave the function as it is."""

        def register(function: F) -> F:
            self[key] = Handler(function, backoff=backoff, timeout=timeout, detached=detached, middleware=middleware)
            return function

        return register

    def find(self, kind: str) -> Handler:
        """The handler of a kind, or UnknownKind."""
        if kind not in self:
            raise UnknownKind(kind)
        return super().__getitem__(kind)


def decoding(work_map: WorkMap | None, job: Job[Any]) -> Job[Any]:
    """The job, fresh from the table, whose args come as what their handler is given."""
    handler: Handler | None = None if work_map is None else dict.get(work_map, job.kind)
    if handler is not None:
        vars(job)["decode"] = handler.decode  # nobody has seen it yet
    return job


def as_work_map(work_map: Any) -> WorkMap:
    """The WorkMap that was given, or one that is made of the mapping that was."""
    if isinstance(work_map, WorkMap):
        return work_map
    if not isinstance(work_map, Mapping):
        raise InvalidHandler(
            f"a WorkMap is made of a mapping, as in {{Welcome: welcome}}, and work_map is one, not {shown(work_map)}"
        )
    return WorkMap(work_map)


def as_handler(handler: Handler | HandlerFunction) -> Handler:
    """The handler, or one made of a plain function; raises InvalidHandler unless it can be called with (tx, job)."""
    return handler if isinstance(handler, Handler) else Handler(handler)


def check_unknown_kinds(
    unknown: Literal["error", "leave"] | Handler | HandlerFunction,
) -> Literal["error", "leave"] | Handler:
    """What a worker pool does with a kind that has no handler."""
    if isinstance(unknown, str):
        if unknown in ("error", "leave"):
            return unknown
        raise InvalidSetting(f"unknown_kinds is 'error', 'leave' or a handler(tx, job), not {shown(unknown)}")
    if not callable(unknown) and not isinstance(unknown, Handler):
        raise InvalidSetting(f"unknown_kinds is 'error', 'leave' or a handler(tx, job), not {shown(unknown)}")
    handler = as_handler(unknown)
    if handler.detached:
        raise InvalidSetting("a handler of unknown kinds cannot be detached: name the kinds in the WorkMap")
    return handler


def _kind(key: Any) -> str:
    if isinstance(key, type):
        if not is_dataclass(key):
            raise InvalidHandler(f"{key.__name__} is not a dataclass: decorate it with @dataclass")
        codec.check_class(key)
        return kind_of(key)
    if is_dataclass(get_origin(key)):
        raise InvalidHandler(
            f"{shown(key)} cannot be told from others of its class when it is enqueued: make a subclass of it, as in "
            f"class Some{get_origin(key).__name__}({shown(key)}), decorate that with @dataclass, and name that"
        )
    return check_kind(key)


def _check_signature(function: object) -> None:
    name = _name(function)
    if not callable(function):
        raise InvalidHandler(f"a handler is a function handler(tx, job), not {shown(function)}")
    for called in (function, type(function).__call__):  # an object may be called too
        if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
            raise InvalidHandler(f"{name} is async; pgjobs runs plain functions: def {name}(tx, job)")
        if inspect.isgeneratorfunction(called):
            raise InvalidHandler(f"{name} is a generator: its body would never run")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise InvalidHandler(f"{name} cannot be called as {name}(tx, job): {error}") from None
    except ValueError:  # a builtin without a signature: its first call will tell
        return


def _name(function: object) -> str:
    return re.sub(r"\W", "", str(getattr(function, "__name__", type(function).__name__))) or "handler"
