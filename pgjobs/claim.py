"""Claims the next job, with what its transaction is to be bounded by."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal
from uuid import uuid4

import psycopg

from pgjobs.attempt import SERVER_GRACE
from pgjobs.checkout import Checkout
from pgjobs.error_text import one_line
from pgjobs.errors import AttemptLost
from pgjobs.job import Job
from pgjobs.store import ServerFacts, Store
from pgjobs.work_map import Handler, WorkMap

log = logging.getLogger("pgjobs.claim")

# After a lost connection or a server start, claims wait for the disk for so long: a job that crashes the server
# must not take the count of its attempt with it.
_CAUTIOUS = timedelta(minutes=5)
_NOT_ASKED = float("inf")


@dataclass
class Claimer:
    """What the threads of one process share to claim jobs. `timeout` bounds the kinds that say nothing themselves;
    `unknown_kinds` says what becomes of those without a handler."""

    store: Store
    work_map: WorkMap
    worker: str
    order: str = "priority"
    timeout: timedelta | None = None
    unknown_kinds: Literal["error", "leave"] | Handler = "error"
    lease: timedelta = timedelta(minutes=1)
    _facts: ServerFacts | None = None
    _cautious_until: float = _NOT_ASKED
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, held: Checkout, queue: str, *, id: int | None = None) -> Job[Any] | None:
        """The next job, or the one with this id, locked in the transaction that is open now; None if there is none."""
        try:
            return self._claim(held, queue, id, self._facts or self._ask_server(held))
        except psycopg.OperationalError:
            self.be_cautious()
            raise

    def be_cautious(self) -> None:
        """A connection was lost: let claims wait for the disk for a while."""
        self._cautious_until = time.monotonic() + _CAUTIOUS.total_seconds()

    def handler_of(self, kind: str) -> Handler | None:
        """The handler of a kind, or what stands in for it."""
        handler: Handler | None = self.work_map.get(kind)
        return self.unknown_kinds if handler is None and isinstance(self.unknown_kinds, Handler) else handler

    def timeout_of(self, job: Job[Any]) -> timedelta | None:
        """How long an attempt at the job may take."""
        handler = self.handler_of(job.kind)
        if handler is None or handler.timeout == "inherit":
            return self.timeout
        if not callable(handler.timeout):
            return handler.timeout
        try:
            return handler.timeout(replace(job, decode=handler.decode))
        except Exception as error:  # the user's code, and args that may not fit
            log.warning("job %d: its timeout cannot be told, the pool's holds: %s", job.id, one_line(error))
            return self.timeout

    def _claim(self, held: Checkout, queue: str, id: int | None, facts: ServerFacts) -> Job[Any] | None:
        token = uuid4()
        kinds = list(self.work_map)
        try:
            return self.store.claim(
                held.conn,
                queue=queue,
                token=token,
                worker=self.worker,
                which=self.order if id is None else "id",
                id=id,
                kinds=kinds if self.unknown_kinds == "leave" else None,
                detached=[kind for kind in kinds if self.work_map[kind].detached],
                lease=self.lease,
                synchronous_commit=time.monotonic() < self._cautious_until,
                check_interval="500ms" if facts.can_check_connections else "0",
                bounded_by=facts.transaction_bound,
                bound=_milliseconds(self._bound_of(self.unknown_kinds)),
                bounds=self._bounds(),
            )
        except (AttemptLost, psycopg.Error) as error:
            if held.usable:
                self.store.rollback(held.conn)
                if self.store.release_claim(held.conn, queue=queue, token=token):
                    log.warning("a claimed job could not be locked, its attempt is given back: %s", one_line(error))
            if isinstance(error, AttemptLost):
                return None
            raise

    def _bounds(self) -> str:
        """How long the server lets a job hold its transaction, by kind, as JSON. Asked for at each claim, since the
        WorkMap may grow. A timeout that depends on the job is known too late for a bound."""
        own = {
            kind: _milliseconds(self._bound_of(handler))
            for kind, handler in list(self.work_map.items())
            if handler.timeout != "inherit"
        }
        return json.dumps(own) if own else "{}"

    def _bound_of(self, handler: Handler | str) -> timedelta | None:
        if not isinstance(handler, Handler) or handler.timeout == "inherit":
            return self.timeout
        return handler.timeout if isinstance(handler.timeout, timedelta) else None

    def _ask_server(self, held: Checkout) -> ServerFacts:
        with self._asking:
            facts = self._facts = self.store.server_facts(held.conn)
            if self._cautious_until == _NOT_ASKED:
                self._cautious_until = time.monotonic() + (_CAUTIOUS - facts.uptime).total_seconds()
            return facts


def _milliseconds(timeout: timedelta | None) -> str:
    """The server's bound for a job with this timeout; 0 is none."""
    if timeout is None:
        return "0"
    return str(min(2**31 - 1, int((timeout + SERVER_GRACE) / timedelta(milliseconds=1))))
