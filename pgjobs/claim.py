"""Claims the next job, with what its transaction is to be bounded by."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg

from pgjobs.attempt import SERVER_GRACE
from pgjobs.checkout import Checkout
from pgjobs.errors import AttemptLost
from pgjobs.job import Job
from pgjobs.outcome import one_line
from pgjobs.store import ServerFacts, Store
from pgjobs.work_map import WorkMap

log = logging.getLogger("pgjobs.claim")

# After a lost connection or a server start, claims wait for the disk for so long: a job that crashes the server
# must not take the count of its attempt with it.
_CAUTIOUS = timedelta(minutes=5)
_NOT_ASKED = float("inf")


@dataclass
class Claimer:
    """What the threads of one process share to claim jobs. `timeout` bounds the kinds that say nothing themselves."""

    store: Store
    work_map: WorkMap
    worker: str
    order: str
    timeout: timedelta | None
    _facts: ServerFacts | None = None
    _cautious_until: float = _NOT_ASKED
    _asking: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, held: Checkout, queue: str) -> Job[Any] | None:
        """The next job, locked in the transaction that is open now; None if there is none."""
        try:
            return self._claim(held, queue, self._facts or self._ask_server(held))
        except psycopg.OperationalError:
            self.be_cautious()
            raise

    def be_cautious(self) -> None:
        """A connection was lost: let claims wait for the disk for a while."""
        self._cautious_until = time.monotonic() + _CAUTIOUS.total_seconds()

    def _claim(self, held: Checkout, queue: str, facts: ServerFacts) -> Job[Any] | None:
        token = uuid4()
        try:
            return self.store.claim(
                held.conn,
                queue=queue,
                token=token,
                worker=self.worker,
                order=self.order,
                synchronous_commit=time.monotonic() < self._cautious_until,
                check_interval="500ms" if facts.can_check_connections else "0",
                bounded_by=facts.transaction_bound,
                bound=_milliseconds(self.timeout),
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
            kind: _milliseconds(handler.timeout if isinstance(handler.timeout, timedelta) else None)
            for kind, handler in list(self.work_map.items())
            if handler.timeout != "inherit"
        }
        return json.dumps(own) if own else "{}"

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
