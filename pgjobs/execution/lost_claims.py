"""Undoes claims whose jobs cannot be run.

A claim is committed before its handler starts. If its answer is lost with the connection, or its row cannot be locked,
the table may say that the job is running although no worker runs it. The process then looks for that claim by its token
and undoes it: the job is available again, with its attempt not counted.

    the connection              what happens
    --------------------------  ------------------------------------------------------------------------------------
    is usable                   the claim is undone at once
    is lost, or the undo fails  the claim is put on a list. The server may still commit it, so it is looked for at once,
                                again 0.05 s later, then after pauses that double up to 1 s
    after 30 s on the list      the claim is given up: if its job is running, the rescue finds it
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.checkout import Checkout
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.set_aside import concerns_a_row
from pgjobs.loggers import get_logger

log = get_logger("pgjobs.claim")

_GIVE_UP_AFTER = 30.0  # seconds: a server notices within this time that its client is gone
_FIRST_PAUSE = 0.05  # seconds; doubles
_LONGEST_PAUSE = 1.0


@dataclass(slots=True, eq=False)
class _LostClaim:
    queue: str
    token: UUID
    give_up_at: float  # by the monotonic clock, as `next_look` is
    next_look: float = 0.0
    pause: float = _FIRST_PAUSE


class LostClaims:
    """The claims of one process that are still to be undone."""

    def __init__(self, queries: ExecutionQueries) -> None:
        self._queries = queries
        self._claims: list[_LostClaim] = []

    def add(self, queue: str, token: UUID) -> None:
        """Put a claim on the list: `unclaim_due` looks for it."""
        self._claims.append(_LostClaim(queue, token, time.monotonic() + _GIVE_UP_AFTER))

    def unclaim(self, checkout: Checkout, queue: str, token: UUID, reason: object) -> None:
        """Undo a claim that failed, if it was committed all the same; on a later connection if this one is lost."""
        if not checkout.usable:
            self.add(queue, token)
            return
        try:
            self._queries.roll_back(checkout.transport)
            undone = self._queries.unclaim(checkout.conn, queue=queue, token=token)
        except psycopg.Error as error:
            self.add(queue, token)
            if concerns_a_row(error):
                return
            raise
        if undone:
            log.warning("a claimed job could not be locked; its claim is undone: %s", one_line(reason))

    def unclaim_due(self, conn: AnyConnection, *, at_once: bool = False) -> None:
        """Undo the claims on the list whose pause is over; with `at_once`, all of them."""
        for claim in list(self._claims):
            now = time.monotonic()
            if now < claim.next_look and not at_once:
                continue
            claim.next_look = now + claim.pause
            claim.pause = min(2 * claim.pause, _LONGEST_PAUSE)
            try:
                found = self._queries.unclaim(conn, queue=claim.queue, token=claim.token)
            except psycopg.Error as error:
                if not concerns_a_row(error):
                    raise
                found = False  # a trigger of the application refuses it; in the end the rescue takes the job
                log.debug("a claim could not be undone: %s", error)
            if found or now > claim.give_up_at:
                with suppress(ValueError):  # another thread has removed it
                    self._claims.remove(claim)
            if found:
                log.warning("a claim whose connection was lost is undone")
