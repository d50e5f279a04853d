"""WorkMap: the handler of each kind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar, get_origin, overload

from pgjobs import checks, codec
from pgjobs.backoff import Backoff
from pgjobs.errors import DuplicateHandler, InvalidArgs, InvalidHandler, InvalidSetting, PgjobsError, UnknownKind, shown
from pgjobs.hooks import Middleware
from pgjobs.job import Job, has_args
from pgjobs.options import ClassName, check_kind, kind_of, two_classes

#: `handler(tx, job)`. Its return value is ignored.
HandlerFunction = Callable[[Any, Any], object]
F = TypeVar("F", bound=HandlerFunction)
Args = TypeVar("Args")
Tx = TypeVar("Tx")
R = TypeVar("R")


class RegistersFor(Protocol[Args]):
    """The decorator that `handles(Welcome)` returns, for functions that take a Job[Welcome]."""

    def __call__(self, function: Callable[[Tx, Job[Args]], R], /) -> Callable[[Tx, Job[Args]], R]: ...


#: How long an attempt may take; None means no limit. A function of the job may return either, or "inherit" for the
#: timeout of the worker pool.
Timeout = timedelta | None | Callable[[Job[Any]], timedelta | Literal["inherit"] | None]


@dataclass(frozen=True, slots=True)
class Handler:
    """A handler function with its own settings: `Handler(charge, timeout=timedelta(minutes=5))`.

    - `timeout`: how long an attempt may take; a timedelta, None for no limit, or a function of the job that returns
      either. "inherit", the default, means the timeout of the worker pool; so does a function that raises or returns
      anything else.
    - `backoff`: when a failed job runs again; None means the backoff of the worker pool.
    - `middleware`: wraps the function, inside the middleware of the worker pool.
    - `detached=True`: for work of minutes that must not hold a transaction open. The function gets None as `tx`, and no
      connection is held while it runs. A lease keeps the job, and the worker pool extends it. What the function writes
      is not committed together with the job, unless it calls `job.complete(tx)` in its own transaction. If the worker
      vanishes, the job runs again from the start when the lease has expired.

    The WorkMap sets `decode` and `args_class`. Raises InvalidHandler if a setting is invalid or the function cannot be
    called with (tx, job).
    """

    function: HandlerFunction
    backoff: Backoff | None = None
    timeout: Timeout | Literal["inherit"] = "inherit"
    detached: bool = False
    middleware: Sequence[Middleware] = ()
    decode: Callable[[str], Any] = codec.decode_dict  # makes `job.args` from the stored JSON text
    args_class: type | None = None  # the class of `job.args`; None for a dict

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
    """A dict from kind to Handler. A key may also be an args class, and a value a plain function.

        work_map = WorkMap({Welcome: welcome, "report.nightly": Handler(report)})

        @work_map.handles(Invoice)
        def invoice(tx: Connection, job: Job[Invoice]) -> None: ...

    Under an args class `job.args` is an instance of it; under a string it is a dict. A kind has one handler. A second
    one raises DuplicateHandler, also if another class names the same kind; delete the first to replace it. A class that
    was reloaded, or redefined in a notebook, replaces its former version. The map may grow while a worker pool runs.

    For a kind that was renamed, `work_map["old.name"] = work_map[Welcome]` lets the handler run the jobs of both names,
    with the args class.
    """

    def __init__(self, handlers: Mapping[Any, Handler | HandlerFunction] | None = None) -> None:
        super().__init__()
        self.changes = 0  # counts changes, so that a running worker pool notices them
        if handlers is not None:
            _check_mapping("the argument of WorkMap", handlers)
            self.update(handlers)

    def __setitem__(self, key: str | type, handler: Handler | HandlerFunction) -> None:
        kind = _kind(key)
        if kind in self:
            self._check_replaced(kind, key)
        made = as_handler(handler)
        if isinstance(key, type):
            made = replace(made, decode=partial(codec.decode, key), args_class=key)
        super().__setitem__(kind, made)
        self.changes += 1

    def _check_replaced(self, kind: str, key: str | type) -> None:
        """Refuse a second handler, unless its args class is a new version of the same class."""
        before = super().__getitem__(kind)
        name = _name(before.function)
        if before.args_class is None or not isinstance(key, type) or before.args_class is key:
            raise DuplicateHandler(f"kind {kind!r} has a handler already, {name}: delete it first to replace it")
        known, other = ClassName.of(before.args_class), ClassName.of(key)
        if known != other:
            raise DuplicateHandler(f"{two_classes(kind, known, other)}; it has a handler already, {name}")

    def __getitem__(self, key: str | type) -> Handler:
        return super().__getitem__(_kind(key))

    def __delitem__(self, key: str | type) -> None:
        super().__delitem__(_kind(key))
        self.changes += 1

    def __contains__(self, key: object) -> bool:
        return super().__contains__(_kind(key) if isinstance(key, type) else key)

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get(_kind(key) if isinstance(key, type) else key, default)

    # the methods of dict would bypass the checks above
    update = MutableMapping.update
    setdefault = MutableMapping.setdefault
    pop = MutableMapping.pop
    popitem = MutableMapping.popitem
    clear = MutableMapping.clear

    def __ior__(self, other: Any) -> Self:  # type: ignore[override]
        self.update(other)
        return self

    def __or__(self, other: Any) -> WorkMap:  # type: ignore[override]
        """A new WorkMap with the handlers of both; raises DuplicateHandler for a kind of both."""
        return WorkMap(self).__ior__(other) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Any) -> WorkMap:  # type: ignore[override]
        return WorkMap(other).__ior__(self) if isinstance(other, Mapping) else NotImplemented

    def copy(self) -> WorkMap:
        return WorkMap(self)

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
        """A decorator that registers a function for this kind or args class and returns the function unchanged. The
        options are those of Handler."""
        if get_origin(key) is None and callable(key) and not isinstance(key, type):
            raise InvalidHandler(
                f"handles needs an args class or a kind, as in @work_map.handles(Welcome); it was given the function "
                f"{_name(key)} alone"
            )
        _kind(key)

        def register(function: F) -> F:
            self[key] = Handler(function, backoff=backoff, timeout=timeout, detached=detached, middleware=middleware)
            return function

        return register

    def find(self, kind: str) -> Handler:
        """The handler of a kind; raises UnknownKind if there is none."""
        if kind not in self:
            raise UnknownKind(kind)
        return super().__getitem__(kind)


def decoding(work_map: WorkMap | None, job: Job[Any]) -> Job[Any]:
    """Set the job's decoder, so that `job.args` has the type that its handler gets. Changes and returns `job`; leaves
    alone one from `without_args`."""
    handler: Handler | None = None if work_map is None else dict.get(work_map, job.kind)
    if handler is not None and has_args(job):
        vars(job)["decode"] = handler.decode  # frozen for callers, but no caller has this job yet
    return job


def shown_args(work_map: WorkMap | None, kind: str, raw_args: str) -> str:
    """The JSON text of the args of a job without secrets, as far as the work map names the args class of its kind."""
    handler: Handler | None = None if work_map is None else dict.get(work_map, kind)
    if handler is None or handler.args_class is None:
        return raw_args
    return codec.redacted(handler.args_class, raw_args)


def payload(work_map: WorkMap | None, kind: str, args: dict[str, Any]) -> Any:
    """The args that a person has written, for `enqueue`: an instance of the args class, if the work map has one for the
    kind. Raises PgjobsError for a kind that it does not handle, and InvalidArgs for fields that the class lacks."""
    if work_map is None:
        return args
    handler: Handler | None = dict.get(work_map, kind)
    if handler is None:
        near = get_close_matches(kind, work_map, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        known = f": it handles {', '.join(sorted(work_map)[:20])}" if not near and work_map else ""
        raise PgjobsError(f"the app has no handler for kind {kind!r}{meant}{known}")
    if handler.args_class is None:
        return args
    made: Any = codec.decode(handler.args_class, args)
    unknown = args.keys() - json.loads(codec.encode(made, max_bytes=codec.JSONB_BYTES)).keys()
    if unknown:  # decoding passes over them, and a misspelt field would go unnoticed
        raise InvalidArgs(f"{handler.args_class.__qualname__} has no field {', '.join(sorted(map(repr, unknown)))}")
    return made


def as_work_map(work_map: Any) -> WorkMap:
    """The `work_map` argument of a client or worker pool, as a WorkMap."""
    if isinstance(work_map, WorkMap):
        return work_map
    _check_mapping("work_map", work_map)
    return WorkMap(work_map)


def as_handler(handler: Handler | HandlerFunction) -> Handler:
    return handler if isinstance(handler, Handler) else Handler(handler)


def check_unknown_kinds(
    unknown: Literal["error", "leave"] | Handler | HandlerFunction,
) -> Literal["error", "leave"] | Handler:
    """The `unknown_kinds` of a worker pool, checked, with a plain function made a Handler."""
    if isinstance(unknown, str) and unknown in ("error", "leave"):
        return unknown
    if not callable(unknown) and not isinstance(unknown, Handler):
        raise InvalidSetting(f"unknown_kinds must be 'error', 'leave' or a handler(tx, job), not {shown(unknown)}")
    handler = as_handler(unknown)
    if handler.detached:
        raise InvalidSetting("a handler of unknown kinds cannot be detached: name the kinds in the WorkMap")
    return handler


def _check_mapping(name: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InvalidHandler(f"{name} must be a mapping, as in {{Welcome: welcome}}, not {shown(value)}")


def _kind(key: Any) -> str:
    if isinstance(key, type):
        if not is_dataclass(key):
            raise InvalidHandler(f"{key.__name__} is not a dataclass: decorate it with @dataclass")
        codec.check_class(key)
        return kind_of(key)
    if is_dataclass(get_origin(key)):
        raise InvalidHandler(
            f"{shown(key)} has the same kind as every other {get_origin(key).__name__}: make a subclass of it, as in "
            f"class Some{get_origin(key).__name__}({shown(key)}), decorate that with @dataclass, and use that class"
        )
    return check_kind(key)


def _check_signature(function: object) -> None:
    if not callable(function):
        raise InvalidHandler(f"a handler must be a function handler(tx, job), not {shown(function)}")
    name = _name(function)
    checks.check_signature(name, function, f"def {name}(tx, job)", (None, None), error=InvalidHandler)


def _name(function: object) -> str:
    return re.sub(r"\W", "", str(getattr(function, "__name__", type(function).__name__))) or "handler"
