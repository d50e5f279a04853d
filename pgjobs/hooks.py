"""Hooks, middleware and error handlers: where an application adds its own code to the life of a job.

hook            observes; an exception that it raises is logged and changes nothing
middleware      wraps the insert or the handler like a decorator; an exception that it raises fails the call
error handler   may cancel or discard a job whose attempt failed
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from pgjobs import checks
from pgjobs.clean_text import forget_details
from pgjobs.errors import Cancel, Discard, InvalidSetting, shown
from pgjobs.events import Event
from pgjobs.job import Job
from pgjobs.loggers import get_logger
from pgjobs.options import EncodedJob
from pgjobs.return_values import check_handler_return

log = get_logger("pgjobs.hooks")

_SIMILARITY = 0.85  # from 0 to 1; a method name at least this close to a known name is taken for a misspelling

Insert = Callable[[Sequence[EncodedJob]], list[Job[Any]]]
#: `middleware(tx, jobs, insert)` wraps an insert, once for each `enqueue` or `enqueue_many`. It calls `insert(jobs)`
#: and returns the result; it may change the jobs with `dataclasses.replace`.
EnqueueMiddleware = Callable[[Any, Sequence[EncodedJob], Insert], list[Job[Any]]]
AsyncInsert = Callable[[Sequence[EncodedJob]], Awaitable[list[Job[Any]]]]
#: `async def middleware(tx, jobs, insert)` does the same around `aenqueue` and `aenqueue_many` on an asynchronous
#: connection: it returns `await insert(jobs)`.
#: An object with the first as its `__call__` and the second as its method `around_async` is both.
AsyncEnqueueMiddleware = Callable[[Any, Sequence[EncodedJob], AsyncInsert], Awaitable[list[Job[Any]]]]
#: `middleware(tx, job, run)` wraps a handler, inside the handler's transaction and timeout. `run()` runs the handler
#: and raises its exceptions. If the middleware raises, the attempt fails with that exception; else it succeeds.
Middleware = Callable[[Any, Job[Any], Callable[[], Any]], object]


def check_methods(cls: type, base: type, prefix: str) -> None:
    """Refuse a subclass with a misspelt method name, or with a method that cannot be called as pgjobs calls it."""
    known = [name for name in vars(base) if name.startswith(prefix)]
    for name, method in vars(cls).items():
        if name in known:
            _check_method(cls, name, getattr(base, name))
        elif name[:1] != "_" and (callable(method) or isinstance(method, staticmethod | classmethod | property)):
            _check_name(cls, base, name, known, prefix)
    mixins = [mixin for mixin in cls.__mro__[1:] if not issubclass(mixin, base) and not issubclass(base, mixin)]
    for name in (name for mixin in mixins for name in vars(mixin)):
        # a mixin may have methods for other purposes, so only names similar to ours are checked
        if name not in known and name[:1] != "_" and get_close_matches(name.lower(), known, 1, _SIMILARITY):
            _check_name(cls, base, name, known, prefix)


def _check_name(cls: type, base: type, name: str, known: list[str], prefix: str) -> None:
    meant = get_close_matches(name.lower(), known, 1)
    similar = get_close_matches(name.lower(), known, 1, _SIMILARITY)
    if name.lower().startswith(prefix) or similar:
        raise InvalidSetting(
            f"{cls.__qualname__}.{name} will never be called{f': is {meant[0]} meant?' if meant else ':'} "
            f"a subclass of {base.__name__} has {', '.join(known)}; name a helper method of your own _{name}"
        )


def _check_method(cls: type, name: str, original: Callable[..., object]) -> None:
    where, method = f"{cls.__qualname__}.{name}", inspect.getattr_static(cls, name)
    parameters = list(inspect.signature(original).parameters)
    wanted = f"def {name}({', '.join(parameters)})"
    function = method.__func__ if isinstance(method, staticmethod | classmethod) else method
    if not callable(function):
        raise InvalidSetting(f"{where} must be a method, {wanted}, not {shown(function)}")
    arguments = parameters[1:] if isinstance(method, staticmethod) else parameters
    checks.check_signature(where, function, wanted, arguments, error=InvalidSetting)


class Hooks:
    """Callbacks of a client and its worker pools. Inherit from this class and define the methods that you need.

    pgjobs calls each method in the thread where the event happens, so it should be quick. An exception in a hook is
    logged and changes nothing else. The job is a value of that moment; reading `job.args` may raise UndecodableArgs.
    Other method names that begin with `on_` or resemble one of these are refused as misspelt, when the class is
    defined; begin the names of helper methods with `_`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_methods(cls, Hooks, "on_")

    def on_enqueue(self, job: Job[Any]) -> None:
        """A job was inserted. Its transaction is not committed yet, and may still be rolled back; that of the tick of a
        schedule is committed."""

    def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
        """A worker claimed a job, or the claim failed with `error` and `job` is None. Not called for an empty queue."""

    def on_start(self, job: Job[Any]) -> None:
        """The handler will be called next."""

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        """An attempt has ended and its outcome is written; `job` has the new state. `error` is the exception of the
        handler, or the reason why pgjobs interrupted it (JobTimedOut, JobCancelled, JobStopped); None if the job is
        completed."""

    def on_outcome(self, event: Event, error: BaseException | None) -> None:
        """An attempt has ended and its outcome is written, whether its handler was called or not; `error` is as in
        on_finish, which comes before it. `event` says how it ended, with the job as it is now and the durations."""

    def on_unknown_kind(self, job: Job[Any]) -> None:
        """A claimed job has no handler. Neither on_start nor on_finish is called for this attempt."""

    def on_undone(self, job: Job[Any], error: BaseException) -> None:
        """The handler returned, but its transaction could not be committed: its writes are rolled back."""

    def on_rescue(self, job: Job[Any]) -> None:
        """The worker of a running job had vanished, and maintenance finished the attempt; `job` has the new state."""

    def on_stuck(self, job: Job[Any], stack: str, stuck: int) -> None:
        """A handler did not end when it was interrupted. The attempt's outcome is written and a new thread replaces
        this one. `stack` is the thread's stack as text, `stuck` the number of such threads in the worker pool."""

    def on_unstuck(self, job: Job[Any], after: timedelta) -> None:
        """The handler of a stuck thread has ended; `after` is the time since `on_stuck`."""


def checked_hooks(hooks: Any) -> tuple[Hooks, ...]:
    """The `hooks` argument of a client as a tuple; raises InvalidSetting for an unusable object."""
    objects: tuple[Any, ...] = checks.check_list("hooks", hooks, "Hooks")
    for hook in objects:
        if isinstance(hook, type) and issubclass(hook, Hooks):
            raise InvalidSetting(f"hooks must be a list of objects, not of classes: give {hook.__name__}()")
        if hook is None or callable(hook) or isinstance(hook, str | bytes | int | float | Sequence | Mapping):
            raise InvalidSetting(
                f"hooks must be a list of objects whose class inherits from Hooks, not of {shown(hook)}"
            )
        if not isinstance(hook, Hooks):  # a class with the same methods works too
            check_methods(type(hook), Hooks, "on_")
    return objects


class HookCalls:
    """Calls the hooks of one client in their order, and logs their exceptions."""

    def __init__(self, hooks: Sequence[Hooks] = (), *, error_details: bool = True) -> None:
        self._hooks = tuple(hooks)
        self.any = bool(self._hooks)  # whether there are any
        self._error_details = error_details

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def add(self, hooks: Hooks) -> None:
        """Call these too, after the others, for what happens from now on."""
        self._hooks = (*self._hooks, hooks)
        self.any = True

    def __call__(self, name: str, *args: object) -> None:
        for hooks in self._hooks:
            try:
                getattr(hooks, name)(*args)
            except BaseException as error:  # a sys.exit() in a hook must not end the worker thread
                if not self._error_details:
                    forget_details(error)
                log.exception("the hook %s of %s failed", name, type(hooks).__name__)


class ErrorHandler:
    """Decides about failed attempts before they are recorded. Inherit from this class and define one or both methods.

    A method may return `Cancel(...)` or `Discard(...)` to end the job, even if attempts are left; None leaves the
    decision to the backoff. The recorded error is that of the handler. pgjobs calls the method in the worker's thread,
    after the handler, without a transaction. It is not called if the handler raised Cancel, Discard or Snooze, or was
    interrupted by a stop or a cancel. An exception that it raises is logged. Other method names that begin with
    `handle_` or resemble one of these are refused as misspelt, when the class is defined.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_methods(cls, ErrorHandler, "handle_")

    def handle_error(self, job: Job[Any], error: Exception) -> Cancel | Discard | None:
        """The handler raised an Exception, exceeded its timeout (JobTimedOut), or does not exist (UnknownKind)."""

    def handle_exit(self, job: Job[Any], error: BaseException) -> Cancel | Discard | None:
        """The handler raised a BaseException that is not an Exception, such as SystemExit or KeyboardInterrupt."""

    def judge(self, job: Job[Any], error: BaseException, *, error_details: bool = True) -> Cancel | Discard | None:
        """Call the method for this error; None if the method itself raises, or returns something else."""
        try:
            answer = self.handle_error(job, error) if isinstance(error, Exception) else self.handle_exit(job, error)
        except BaseException as broken:
            if not error_details:
                forget_details(broken)
            log.exception("the error handler failed on job %d", job.id)
            return None
        given: object = answer
        if given is None or isinstance(given, Cancel | Discard):
            return answer
        wanted = "Cancel(...), Discard(...) or None"
        log.error("the error handler returned %s for job %d, and not %s: ignored", shown(given), job.id, wanted)
        return None


@dataclass(slots=True)
class _Step:
    """One middleware with the call that it wraps.

    A class and not a closure: a traceback keeps the frame and its function alive, and a closure would keep `tx` alive
    too.
    """

    middleware: Middleware
    tx: Any
    job: Job[Any]
    run: Callable[[], object]

    def __call__(self) -> object:
        returned = self.middleware(self.tx, self.job, self.run)
        if returned is not None:
            check_handler_return(returned, self.middleware)
        return returned


@dataclass(slots=True)
class _Call:
    """The handler, innermost."""

    handler: Callable[[Any, Any], object]
    tx: Any
    job: Job[Any]

    def __call__(self) -> object:
        returned = self.handler(self.tx, self.job)
        if returned is not None:
            check_handler_return(returned, self.handler)
        return returned


def with_middleware(
    middleware: Sequence[Middleware], tx: Any, job: Job[Any], handler: Callable[[Any, Any], object]
) -> Callable[[], object]:
    """The handler wrapped in all middleware, the first one outermost. The call raises InvalidHandler if the handler or
    a middleware returns unfinished work, such as a coroutine."""
    run: Callable[[], object] = _Call(handler, tx, job)
    for step in reversed(middleware):
        run = _Step(step, tx, job, run)
    return run


def insert_with_middleware(middleware: Sequence[Any], tx: Any, insert: Callable[..., Any]) -> Callable[..., Any]:
    """The insert wrapped in all middleware, the first one outermost. If the insert is asynchronous, so is all of it."""
    is_async = is_async_function(insert)
    for step in reversed(middleware):
        insert = _insert_step(_for_insert(step, is_async=is_async), tx, insert)
    return insert


def _for_insert(step: Callable[..., Any], *, is_async: bool) -> Callable[..., Any]:
    """The function of a middleware that stands around this insert."""
    both: Callable[..., Any] | None = getattr(step, "around_async", None)
    return both if is_async and both is not None else step


def _insert_step(step: Callable[..., Any], tx: Any, insert: Callable[..., Any]) -> Callable[..., Any]:
    return lambda jobs: step(tx, jobs, insert)


def check_middleware(middleware: Sequence[Any], *, is_async: bool) -> None:
    """Refuse middleware that cannot stand around this insert: it would return before the insert has run, or block the
    event loop."""
    for step in middleware:
        if is_async_function(_for_insert(step, is_async=is_async)) == is_async:
            continue
        name = getattr(step, "__qualname__", None) or type(step).__qualname__
        if is_async:
            raise InvalidSetting(
                f"the middleware {name} is a plain function, and cannot wait for an insert on an asynchronous "
                "connection: write async def and return await insert(jobs); or pass None as tx"
            )
        raise InvalidSetting(
            f"the middleware {name} is async, and stands only around aenqueue and aenqueue_many on an asynchronous "
            "connection: make another Client, with middleware of plain functions, for all other calls"
        )


def is_async_function(function: Any) -> bool:
    """Whether a call of it gives a coroutine; it may be an object with a method `__call__`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)
