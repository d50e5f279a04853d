"""What a worker sends, one step at a time, on a connection of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from pgjobs import Client, Job
from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.outcome import NO_DATA, AttemptData, Outcome
from pgjobs.execution.queries import Completion, FinishResult
from pgjobs.execution.requests import ClaimRequest, ClaimSettings, Mark
from pgjobs.execution.scripts import FinishRequest, NextClaim
from pgjobs.execution.transport import Transport
from tests import modes

BY_HAND = FinishRequest()  # behind a handler that has used its connection, of whose role nothing is known


def transport(client: Client, conn: AnyConnection, *, prepares: bool = not modes.PLAIN) -> Transport:
    return client.queries.transport(conn, prepares=prepares)


def request(
    queue: str = "default",
    *,
    token: UUID | None = None,
    worker: str = "tester",
    which: str = "priority",
    id: int | None = None,
    kinds: list[str] | None = None,
    detached: Sequence[str] = (),
    lease: timedelta = timedelta(minutes=1),
    mark: Mark | None = None,
    set_aside: Sequence[int] = (),
    settings: ClaimSettings | None = None,
) -> ClaimRequest:
    """The values of a claim, as a worker makes them for its threads; `settings` are used in place of all that it makes
    once."""
    made = ClaimSettings(
        worker=worker, kinds=kinds, detached=list(detached), lease=lease, synchronous_commit=True, check_interval="0",
        bounded_by=None, bound="0", bounds=None,
    )  # fmt: skip
    return ClaimRequest(settings or made, queue, which, token or uuid4(), id, mark, set_aside)


def claim(client: Client, conn: AnyConnection, queue: str = "default", **values: Any) -> Job[Any] | None:
    """Claim the next job, or that with this id. It is locked in the transaction that is open then."""
    wanted = request(queue, **values)
    job, _ = client.queries.claim(transport(client, conn), wanted, None, savepoint=True, by_tcp=True)
    return job


def must_claim(client: Client, conn: AnyConnection, queue: str = "default", **values: Any) -> Job[Any]:
    job = claim(client, conn, queue, **values)
    assert job is not None
    return job


def complete(
    client: Client, conn: AnyConnection, job: Job[Any], data: AttemptData = NO_DATA, *, then: NextClaim | None = None
) -> Completion:
    how = BY_HAND._replace(has_data=data is not NO_DATA)
    return client.queries.complete(transport(client, conn), job, how, data, then=then)


def fail(
    client: Client, conn: AnyConnection, job: Job[Any], outcome: Outcome, data: AttemptData = NO_DATA
) -> FinishResult:
    return client.queries.fail(transport(client, conn), job, outcome, BY_HAND, data)


def finish_late(
    client: Client, conn: AnyConnection, job: Job[Any], outcome: Outcome, *, after_loss: bool = False
) -> FinishResult:
    return client.queries.finish_late(transport(client, conn), job, outcome, BY_HAND, after_loss=after_loss)
