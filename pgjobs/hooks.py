"""Where an application looks on, and where it steps in.

Hooks look on: whatever they do, the jobs go on. Middleware steps in: it stands around the insert or the handler like a
decorator, and what it raises counts. The error handler judges what a handler raised.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from difflib import get_close_matches
from typing import Any

from pgjobs import checks
from pgjobs.clean_text import forget_details
from pgjobs.errors import Cancel, Discard, InvalidSetting, shown
from pgjobs.job import Job
from pgjobs.loggers import get_logger
from pgjobs.options import EncodedJob
from pgjobs.return_values import check_handler_return

log = get_logger("pgjobs.hooks")

_ALIKE = 0.85  # how much a name must resemble another to be taken for it misspelt, from 0 to 1

Insert = Callable[[Sequence[EncodedJob]], list[Job[Any]]]
#: `middleware(tx, jobs, insert)` around an insert: once for each `enqueue` or `enqueue_many`. Gives what `insert(jobs)`
#: gives; the jobs may be changed with `dataclasses.replace`.
EnqueueMiddleware = Callable[[Any, Sequence[EncodedJob], Insert], list[Job[Any]]]
#: `middleware(tx, job, run)` around a handler, in its transaction and its time. `run()` runs the handler and raises
#: what it raises; what the middleware lets out is the attempt's error, and nothing is a success.
Middleware = Callable[[Any, Job[Any], Callable[[], Any]], object]


def check_methods(cls: type, base: type, prefix: str) -> None:
    """Refuse methods of a subclass that will never be called, or not with what they take."""
    known = [name for name in vars(base) if name.startswith(prefix)]
    for name, method in vars(cls).items():
        if name in known:
            _check_method(cls, name, getattr(base, name))
        elif name[:1] != "_" and (callable(method) or isinstance(method, staticmethod | classmethod | property)):
            _check_name(cls, base, name, known, prefix)
    mixins = [mixin for mixin in cls.__mro__[1:] if not issubclass(mixin, base) and not issubclass(base, mixin)]
    for name in (name for mixin in mixins for name in vars(mixin)):
        # what a mixin has for others is its own affair, but what resembles ours is meant for us
        if name not in known and name[:1] != "_" and get_close_matches(name.lower(), known, 1, _ALIKE):
            _check_name(cls, base, name, known, prefix)


def _check_name(cls: type, base: type, name: str, known: list[str], prefix: str) -> None:
    meant = get_close_matches(name.lower(), known, 1)
    alike = get_close_matches(name.lower(), known, 1, _ALIKE)
    if name.lower().startswith(prefix) or alike:
        raise InvalidSetting(
            f"{cls.__qualname__}.{name} will never be called{f': is {meant[0]} meant?' if meant else ':'} "
            f"a class of {base.__name__} has {', '.join(known)}; a method of your own may be called _{name}"
        )


def _check_method(cls: type, name: str, original: Callable[..., object]) -> None:
    """Refuse what cannot be called as the library calls it."""
    where, method = f"{cls.__qualname__}.{name}", inspect.getattr_static(cls, name)
    parameters = list(inspect.signature(original).parameters)
    wanted = f"def {name}({', '.join(parameters)})"
    function = method.__func__ if isinstance(method, staticmethod | classmethod) else method
    if not callable(function):
        raise InvalidSetting(f"{where} is a method, {wanted}, not {shown(function)}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise InvalidSetting(f"{where} is async, and would never run: write {wanted}")
    if inspect.isgeneratorfunction(function):
        raise InvalidSetting(f"{where} is a generator, whose body would never run: write {wanted}, without yield")
    try:
        inspect.signature(function).bind(*parameters[isinstance(method, staticmethod) :])
    except TypeError as error:
        raise InvalidSetting(f"{where} cannot be called as {wanted}: {error}") from None
    except ValueError:  # a builtin without a signature: its first call will tell
        return


class Hooks:
    """What an application is told. Inherit from it, and define the methods that matter.

    Each is called in the thread where it happened, so it should be quick. What a hook raises is logged and harms
    nothing. The jobs that they get are as they are at that moment; `job.args` may not decode. A method that begins with
    `on_` or resembles one of these, but has another name, is refused as misspelt; begin helpers of your own with `_`.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_methods(cls, Hooks, "on_")

    def on_enqueue(self, job: Job[Any]) -> None:
        """A job was inserted, in a transaction that is not committed yet."""

    def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
        """A worker took a job; or, with `job` None, could not look for one. Not called when there was none."""

    def on_start(self, job: Job[Any]) -> None:
        """The handler is about to be called."""

    def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
        """An attempt whose handler was called is over, and its outcome is written: the job as it is now. `error` is
        what the handler raised or why it was made to end; None when the job is completed."""

    def on_unknown_kind(self, job: Job[Any]) -> None:
        """A job was claimed for which there is no handler. Neither on_start nor on_finish follow."""

    def on_undone(self, job: Job[Any], error: BaseException) -> None:
        """The handler returned, but its writes could not be committed."""

    def on_rescue(self, job: Job[Any]) -> None:
        """A job whose worker vanished was finished on its behalf: the job as it is now."""

    def on_stuck(self, job: Job[Any], stack: str, stuck: int) -> None:
        """A handler ignores that it is to end. Its job is recorded and another thread takes its place; `stack` is
        where it is, `stuck` how many such threads the worker pool has now."""

    def on_unstuck(self, job: Job[Any], after: timedelta) -> None:
        """The handler of a stuck thread has ended after all, so long after it was found stuck."""


def checked_hooks(hooks: Any) -> tuple[Hooks, ...]:
    """The hooks of a client, which are objects of classes that inherit from Hooks."""
    given: tuple[object, ...] = checks.check_list("hooks", hooks, "Hooks")
    for hook in given:
        if isinstance(hook, type) and issubclass(hook, Hooks):
            raise InvalidSetting(f"hooks is a list of objects, not of classes: give {hook.__name__}()")
        if hook is None or callable(hook) or isinstance(hook, str | bytes | int | float | Sequence | Mapping):
            raise InvalidSetting(f"hooks is a list of objects whose class inherits from Hooks, not of {shown(hook)}")
        if not isinstance(hook, Hooks):  # one that was written against an older version, for example
            check_methods(type(hook), Hooks, "on_")
    hooks_given: Any = given
    return tuple(hooks_given)


class HookCalls:
    """Calls the hooks of one client, in their order, and lets none of them harm anybody."""

    def __init__(self, hooks: Sequence[Hooks] = (), *, error_details: bool = True) -> None:
        self._hooks = tuple(hooks)
        self._error_details = error_details

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def __call__(self, name: str, *args: object) -> None:
        for hooks in self._hooks:
            try:
                getattr(hooks, name)(*args)
            except BaseException as error:  # also a sys.exit(): it is not the hook's thread
                if not self._error_details:
                    forget_details(error)
                log.exception("the hook %s of %s failed", name, type(hooks).__name__)


class ErrorHandler:
    """Judges every failed attempt before it is recorded. Inherit from it, and define one method or both.

    Each may return `Cancel(...)` or `Discard(...)` to end the job there, whatever attempts are left; the error recorded
    stays that of the handler. Called in the worker's thread, after the handler, without a transaction. Not called when
    the handler itself raised Cancel, Discard or Snooze, or was cut off by a stop or a cancel. What it raises is logged.
    A method that begins with `handle_` or resembles one of these, but has another name, is refused as misspelt.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_methods(cls, ErrorHandler, "handle_")

    def handle_error(self, job: Job[Any], error: Exception) -> Cancel | Discard | None:
        """The handler raised an Exception, or its time was up, or there is no handler (UnknownKind)."""

    def handle_exit(self, job: Job[Any], error: BaseException) -> Cancel | Discard | None:
        """The handler raised what is no Exception: SystemExit, KeyboardInterrupt, GeneratorExit."""

    def judge(self, job: Job[Any], error: BaseException, *, error_details: bool = True) -> Cancel | Discard | None:
        """What the method for this error says; None when it fails itself."""
        try:
            return self.handle_error(job, error) if isinstance(error, Exception) else self.handle_exit(job, error)
        except BaseException as broken:
            if not error_details:
                forget_details(broken)
            log.exception("the error handler failed on job %d", job.id)
            return None


@dataclass(slots=True)
class _Step:
    """One middleware and what it stands around. No closure: a frame keeps its function, and by it all that the function
    has enclosed, and somebody who keeps the transaction is what the executor looks for."""

    middleware: Middleware
    tx: Any
    job: Job[Any]
    run: Callable[[], object]

    def __call__(self) -> object:
        answer = self.middleware(self.tx, self.job, self.run)
        if answer is not None:
            check_handler_return(answer, self.middleware)
        return answer


@dataclass(slots=True)
class _Call:
    """The handler within all middleware."""

    handler: Callable[[Any, Any], object]
    tx: Any
    job: Job[Any]

    def __call__(self) -> object:
        answer = self.handler(self.tx, self.job)
        if answer is not None:
            check_handler_return(answer, self.handler)
        return answer


def with_middleware(
    middleware: Sequence[Middleware], tx: Any, job: Job[Any], handler: Callable[[Any, Any], object]
) -> Callable[[], object]:
    """The handler with all middleware around it, the first one outermost. Each of them raises InvalidHandler where it
    returns what is no end of its work."""
    run: Callable[[], object] = _Call(handler, tx, job)
    for step in reversed(middleware):
        run = _Step(step, tx, job, run)
    return run


def insert_with_middleware(middleware: Sequence[EnqueueMiddleware], tx: Any, insert: Insert) -> Insert:
    """The insert with all middleware around it, the first one outermost."""
    for step in reversed(middleware):
        insert = _insert_step(step, tx, insert)
    return insert


def _insert_step(step: EnqueueMiddleware, tx: Any, insert: Insert) -> Insert:
    return lambda jobs: step(tx, jobs, insert)
