"""Where an application looks on, and where it steps in.

Hooks look on: whatever they do, the jobs go on. Middleware steps in: it stands around the insert or the handler like a
decorator, and what it raises counts. The error handler judges what a handler raised.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgjobs.answers import check_done
from pgjobs.error_text import forget_details
from pgjobs.errors import Cancel, Discard
from pgjobs.job import Job
from pgjobs.log_lines import get_logger
from pgjobs.options import EncodedJob

log = get_logger("pgjobs.hooks")

Insert = Callable[[Sequence[EncodedJob]], list[Job[Any]]]
#: `middleware(tx, jobs, insert)` around an insert: once for each `enqueue` or `enqueue_many`. Gives what `insert(jobs)`
#: gives; the jobs may be changed with `dataclasses.replace`.
EnqueueMiddleware = Callable[[Any, Sequence[EncodedJob], Insert], list[Job[Any]]]
#: `middleware(tx, job, run)` around a handler, in its transaction and its time. `run()` runs the handler and raises
#: what it raises; what the middleware lets out is the attempt's error, and nothing is a success.
Middleware = Callable[[Any, Job[Any], Callable[[], Any]], object]


class Hooks:
    """What an application is told. Inherit from it, and define the methods that matter.

    Each is called in the thread where it happened, so it should be quick. What a hook raises is logged and harms
    nothing. The jobs that they get are as they are at that moment; `job.args` may not decode.
    """

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
    """

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
            check_done(answer, self.middleware)
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
            check_done(answer, self.handler)
        return answer


def around(
    middleware: Sequence[Middleware], tx: Any, job: Job[Any], handler: Callable[[Any, Any], object]
) -> Callable[[], object]:
    """The handler with all middleware around it, the first one outermost. Each of them raises InvalidHandler where it
    returns what is no end of its work."""
    run: Callable[[], object] = _Call(handler, tx, job)
    for step in reversed(middleware):
        run = _Step(step, tx, job, run)
    return run


def around_insert(middleware: Sequence[EnqueueMiddleware], tx: Any, insert: Insert) -> Insert:
    """The insert with all middleware around it, the first one outermost."""
    for step in reversed(middleware):
        insert = _insert_step(step, tx, insert)
    return insert


def _insert_step(step: EnqueueMiddleware, tx: Any, insert: Insert) -> Insert:
    return lambda jobs: step(tx, jobs, insert)
