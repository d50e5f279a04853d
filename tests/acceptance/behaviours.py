"""What handlers do in the state machine, each with what becomes of the job."""

from __future__ import annotations

import re
import select
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from pgjobs import Cancel, Client, Discard, Interrupted, Job, JobRunning, JobState, NotRunning, RetryAfter, Snooze
from pgjobs.db.connection import shut_down
from pgjobs.db.cursors import AnyConnection
from pgjobs.errors import AttemptLost, JobStopped, JobTimedOut
from pgjobs.execution.attempt import GracePeriods, Reason
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.execution.transport import Transport
from pgjobs.maintenance.queries import MaintenanceQueries
from pgjobs.maintenance.rescuing import RESCUE_GRACE
from tests import by_hand
from tests.acceptance.job_model import NOTHING, Model
from tests.samples import HOUR
from tests.waiting import wait_until

OnTheLine = Callable[[AnyConnection], None]
DETACHED = "detached"  # the kind
ON_THE_LINE = "on_the_line"  # the attribute of a store that says what happens there; see `unreliable`
AGAIN = timedelta(hours=2)  # a step of time: past every delay
STOPPED, TIMED_OUT = partial(JobStopped, "stopped"), partial(JobTimedOut, HOUR)
QUICK = GracePeriods(interrupted=0.02, severed=0.1, stuck=60)
ENDLESS = GracePeriods(interrupted=600, severed=600, stuck=600)


@dataclass
class Scene:
    """What a handler that is running has at hand."""

    tx: Any  # None if detached
    job: Job[Any]
    client: Client
    beside: AnyConnection  # commits at once
    tell: Callable[[Callable[[], Reason], GracePeriods], object]  # this attempt to end
    looks: Callable[[], bool]  # another worker of the queue; says whether it found a job
    successor: UUID  # the token of whoever takes the job over

    def when_written(self, *, before: OnTheLine | None = None, after: OnTheLine | None = None) -> None:
        """What is to happen before the outcome is sent, or before its answer arrives."""
        self.client.queries.__dict__[ON_THE_LINE] = (before or nothing_happens, after or nothing_happens)

    def sql(self, text: str) -> sql.Composed:
        return sql.SQL(text).format(s=sql.Identifier(self.client.schema))

    def effect(self, conn: AnyConnection, *, settled: bool = False) -> None:
        with psycopg.Cursor(conn) as cur:
            cur.execute(self.sql("INSERT INTO {s}.effect VALUES (%s, %s)"), [self.job.id, settled])

    def settle(self) -> None:
        """The handler is about to commit by itself what it wrote."""
        self.tx.execute(self.sql("UPDATE {s}.effect SET settled = true WHERE job = %s"), [self.job.id])

    def kill_backend(self, conn: AnyConnection) -> None:
        pid = conn.info.backend_pid
        self.beside.execute("SELECT pg_terminate_backend(%s)", [pid])
        gone = "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = %s)"
        wait_until(lambda: self.beside.execute(gone, [pid]).fetchone() == (True,))

    def rescue(self) -> None:
        """What the upkeep does when it takes the worker for dead; the job then waits, and no time passes."""
        age = "UPDATE {s}.job SET attempted_at = attempted_at - %s, leased_until = leased_until - %s WHERE id = %s"
        self.beside.execute(self.sql(age), [AGAIN, AGAIN, self.job.id])
        assert [job.id for job in MaintenanceQueries(self.client.schema).rescue(self.beside, 10, RESCUE_GRACE)] == [
            self.job.id
        ]
        freeze = "UPDATE {s}.job SET scheduled_at = scheduled_at + %s WHERE id = %s AND state = 'retryable'"
        self.beside.execute(self.sql(freeze), [HOUR, self.job.id])

    def take_over(self) -> None:
        """After the rescue another worker runs the job, for as long as this one has not noticed, and then vanishes."""
        self.rescue()
        back = "UPDATE {s}.job SET state = 'available', scheduled_at = scheduled_at - %s WHERE id = %s AND state = %s"
        self.beside.execute(self.sql(back), [AGAIN, self.job.id, JobState.RETRYABLE])
        claim_and_vanish(self.client, self.beside, self.job, self.successor)
        self.beside.execute("ROLLBACK")
        young = "UPDATE {s}.job SET attempted_at = attempted_at + %s WHERE token = %s"
        self.beside.execute(self.sql(young), [HOUR, self.successor])


def claim_and_vanish(client: Client, conn: AnyConnection, job: Job[Any], token: UUID) -> Job[Any] | None:
    """What a worker does that then loses its connection, or its process: the caller sees to that. It is a worker of its
    own, without neighbours that the rescue would excuse."""
    return by_hand.claim(
        client,
        conn,
        which="id",
        id=job.id,
        queue=job.queue,
        token=token,
        worker=f"worker-{token}",
        detached=[DETACHED],
        lease=HOUR,
    )


def unreliable(write: Callable[..., Any]) -> Callable[..., Any]:
    """The way to the server, on which something may happen before and after what is written there."""

    def over_the_line(sender: ExecutionQueries, to: Transport, *values: Any, **options: Any) -> Any:
        before, after = sender.__dict__.get(ON_THE_LINE, (nothing_happens, nothing_happens))
        before(to._conn)
        answer = write(sender, to, *values, **options)
        after(to._conn)
        return answer

    return over_the_line


def nothing_happens(conn: AnyConnection) -> None: ...


def lose_the_answer(conn: AnyConnection) -> None:
    conn.close()
    raise psycopg.OperationalError("the answer is lost")


Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Behaviour:
    act: Act
    ends: Callable[[Model], None]
    settled: int = 0  # effects that it commits itself
    raises: type[BaseException] | None = None  # what lock_job lets out; work_one only KeyboardInterrupt
    in_pool: bool = False  # needs somebody to watch over it

    @property
    def name(self) -> str:
        return self.act.__name__

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.name)


# --- endings that every handler may choose


def returns(scene: Scene) -> None: ...


def raises(scene: Scene) -> None:
    raise RuntimeError("failed")


def exits(scene: Scene) -> None:
    sys.exit(3)


def is_interrupted(scene: Scene) -> None:
    raise KeyboardInterrupt


def snoozes(scene: Scene) -> None:
    raise Snooze(HOUR)


def snoozes_for_nothing(scene: Scene) -> None:
    raise Snooze(NOTHING)


def retries_in_an_hour(scene: Scene) -> None:
    raise RetryAfter(HOUR)


def retries_at_once(scene: Scene) -> None:
    raise RetryAfter(NOTHING)


def discards(scene: Scene) -> None:
    raise Discard("never")


def cancels(scene: Scene) -> None:
    raise Cancel("unwanted")


def heeds_a_stop(scene: Scene) -> None:
    scene.tell(STOPPED, QUICK)
    assert scene.job.cancelled
    raise RuntimeError("told to end")


def returns_though_stopped(scene: Scene) -> None:
    scene.tell(STOPPED, ENDLESS)


def is_told_when_it_is_over(scene: Scene) -> None:
    """What is raised in a handler must not land in the library, which is writing its outcome by then."""

    def tell(conn: AnyConnection) -> None:
        scene.tell(STOPPED, GracePeriods(interrupted=0.001, severed=600, stuck=600))
        threading.Event().wait(0.05)

    scene.when_written(before=tell)


def is_told_when_it_has_failed(scene: Scene) -> None:
    is_told_when_it_is_over(scene)
    raise RuntimeError("failed")


def until_interrupted() -> None:
    while True:
        threading.Event().wait(0.001)


def resists_a_stop(scene: Scene) -> None:
    scene.tell(STOPPED, QUICK)
    until_interrupted()


def heeds_its_timeout(scene: Scene) -> None:
    scene.tell(TIMED_OUT, QUICK)
    assert scene.job.cancelled
    raise RuntimeError("told to end")


def resists_its_timeout(scene: Scene) -> None:
    scene.tell(TIMED_OUT, QUICK)
    until_interrupted()


def swallows_what_a_stop_did_to_its_statement(scene: Scene) -> None:
    """It returns from an aborted transaction, but the stop is to blame for that."""
    scene.tell(STOPPED, ENDLESS)
    with suppress(psycopg.errors.QueryCanceled):
        scene.tx.execute("SELECT pg_sleep(20)")


def is_severed(scene: Scene) -> None:
    """Nothing that can be caught makes it end, and it returns as if nothing had been."""
    wire = select.poll()  # for its end only; no other connection, in whose midst the interrupt could come
    wire.register(scene.tx.fileno(), 0)
    scene.tell(TIMED_OUT, QUICK)
    while True:
        with suppress(Interrupted):
            if wire.poll(1):
                return


ANYWHERE = [
    Behaviour(raises, Model.fails, raises=RuntimeError),
    Behaviour(exits, Model.fails, raises=SystemExit),
    Behaviour(is_interrupted, Model.fails, raises=KeyboardInterrupt),
    Behaviour(snoozes, Model.snoozes),
    Behaviour(snoozes_for_nothing, Model.snoozes_for_nothing),
    Behaviour(retries_in_an_hour, Model.fails),
    Behaviour(retries_at_once, Model.retries_at_once),
    Behaviour(discards, Model.discards),
    Behaviour(cancels, Model.cancels),
    Behaviour(heeds_a_stop, Model.is_stopped, in_pool=True),
    Behaviour(resists_a_stop, Model.is_stopped, in_pool=True),
    Behaviour(heeds_its_timeout, Model.fails, in_pool=True),
    Behaviour(resists_its_timeout, Model.fails, in_pool=True),
]


# --- in the job's transaction


def nests_savepoints(scene: Scene) -> None:
    with scene.tx.transaction():
        with suppress(RuntimeError), scene.tx.transaction():
            scene.effect(scene.tx)
            raise RuntimeError("of the inner block")
        scene.tx.execute("SAVEPOINT mine")


def swallows_an_sql_error(scene: Scene) -> None:
    with suppress(psycopg.Error):
        scene.tx.execute("SELECT 1/0")


def commits(scene: Scene) -> None:
    scene.settle()
    scene.tx.execute("COMMIT")
    scene.effect(scene.tx, settled=True)


def commits_and_raises(scene: Scene) -> None:
    commits(scene)
    raise RuntimeError("after its commit")


def commits_and_begins(scene: Scene) -> None:
    scene.settle()
    scene.tx.execute(b"COMMIT; BEGIN")
    scene.effect(scene.tx)


def rolls_back(scene: Scene) -> None:
    scene.tx.execute("ROLLBACK")


def rolls_back_and_snoozes(scene: Scene) -> None:
    scene.tx.execute("ROLLBACK")
    raise Snooze(HOUR)


def rolls_back_and_begins(scene: Scene) -> None:
    scene.tx.execute(b"ROLLBACK; BEGIN")
    scene.effect(scene.tx)


def raises_rollback(scene: Scene) -> None:
    raise psycopg.Rollback


def closes_its_connection(scene: Scene) -> None:
    scene.tx.close()


def moves_its_own_row(scene: Scene) -> None:
    scene.tx.execute(scene.sql("UPDATE {s}.job SET state = 'available' WHERE id = %s"), [scene.job.id])


def finishes_its_own_row(scene: Scene) -> None:
    finish = "UPDATE {s}.job SET state = 'completed', finalized_at = now() WHERE id = %s"
    scene.tx.execute(scene.sql(finish), [scene.job.id])


def deletes_its_own_row(scene: Scene) -> None:
    scene.tx.execute(scene.sql("DELETE FROM {s}.job WHERE id = %s"), [scene.job.id])


def moves_its_own_row_and_raises(scene: Scene) -> None:
    moves_its_own_row(scene)
    raise RuntimeError("after that")


def sets_session_state(scene: Scene) -> None:
    scene.tx.execute("SET search_path = nowhere")
    scene.tx.execute("SET TimeZone = 'Pacific/Kiritimati'")
    scene.tx.execute("SELECT pg_advisory_lock(%s)", [scene.job.id])
    scene.tx.execute("CREATE TEMP TABLE job AS SELECT 1 AS id")
    scene.tx.execute("LISTEN anything")
    scene.tx.row_factory = psycopg.rows.dict_row


def sets_session_state_and_raises(scene: Scene) -> None:
    sets_session_state(scene)
    raise RuntimeError("after that")


def prepares_a_statement(scene: Scene) -> None:
    """Nobody knows its name: the connection is given up, and what was claimed on it already."""
    scene.tx.execute("PREPARE mine AS SELECT 1")


def violates_at_commit(scene: Scene) -> None:
    scene.tx.execute(scene.sql("INSERT INTO {s}.at_commit VALUES ('raise')"))


def dies_at_commit(scene: Scene) -> None:
    scene.tx.execute(scene.sql("INSERT INTO {s}.at_commit VALUES ('die')"))


def dies_and_returns(scene: Scene) -> None:
    scene.kill_backend(scene.tx)


def dies_and_goes_on(scene: Scene) -> None:
    scene.kill_backend(scene.tx)
    scene.effect(scene.tx)


def dies_and_snoozes(scene: Scene) -> None:
    scene.kill_backend(scene.tx)
    raise Snooze(HOUR)


def loses_its_network(scene: Scene) -> None:
    shut_down(scene.tx)


def loses_the_request(scene: Scene) -> None:
    scene.when_written(before=shut_down)


def loses_the_answer(scene: Scene) -> None:
    scene.when_written(after=lose_the_answer)


def loses_the_answer_and_raises(scene: Scene) -> None:
    scene.when_written(after=lose_the_answer)
    raise RuntimeError("failed")


def loses_the_answer_and_snoozes(scene: Scene) -> None:
    scene.when_written(after=lose_the_answer)
    raise Snooze(NOTHING)


def is_rescued(scene: Scene) -> None:
    """It gave up its lock, so it is taken for dead."""
    scene.tx.execute("ROLLBACK")
    scene.rescue()


def is_rescued_and_raises(scene: Scene) -> None:
    is_rescued(scene)
    raise RuntimeError("too late")


def is_rescued_and_dies(scene: Scene) -> None:
    is_rescued(scene)
    scene.kill_backend(scene.tx)


def is_taken_over(scene: Scene) -> None:
    scene.tx.execute("ROLLBACK")
    scene.take_over()


def is_taken_over_and_snoozes(scene: Scene) -> None:
    is_taken_over(scene)
    raise Snooze(HOUR)


def is_taken_over_and_locks_again(scene: Scene) -> None:
    """Everything is put back but the ownership: the savepoint's name too, were it known."""
    is_taken_over(scene)
    scene.tx.execute("BEGIN")
    scene.tx.execute(scene.sql("SELECT FROM {s}.job WHERE id = %s FOR UPDATE"), [scene.job.id])
    savepoint = re.search(rb"SAVEPOINT \w+", scene.client.queries.work["savepoint"])
    assert savepoint is not None
    scene.tx.execute(savepoint[0])
    scene.effect(scene.tx)


def was_taken_over(model: Model) -> None:
    model.rescued()
    if model.state is JobState.RETRYABLE:
        model.ages(AGAIN)
        model.promoted()
        model.claimed(model.successor)


def completes_by_name(scene: Scene) -> None:
    """Changes nothing in a transactional handler."""
    scene.job.complete(scene.tx)


TRANSACTIONAL = [
    *ANYWHERE,
    Behaviour(returns, Model.completes),
    Behaviour(completes_by_name, Model.completes),
    Behaviour(returns_though_stopped, Model.completes, in_pool=True),
    Behaviour(is_told_when_it_is_over, Model.completes, in_pool=True),
    Behaviour(is_told_when_it_has_failed, Model.fails, raises=RuntimeError, in_pool=True),
    Behaviour(swallows_what_a_stop_did_to_its_statement, Model.is_stopped, in_pool=True),
    Behaviour(is_severed, Model.fails, in_pool=True),
    Behaviour(nests_savepoints, Model.completes),
    Behaviour(swallows_an_sql_error, Model.fails),
    Behaviour(commits, Model.fails, settled=2),
    Behaviour(commits_and_raises, Model.fails, settled=2, raises=RuntimeError),
    Behaviour(commits_and_begins, Model.fails, settled=1),
    Behaviour(rolls_back, Model.fails),
    Behaviour(rolls_back_and_snoozes, Model.snoozes),
    Behaviour(rolls_back_and_begins, Model.fails),
    Behaviour(raises_rollback, Model.fails, raises=psycopg.Rollback),
    Behaviour(closes_its_connection, Model.fails),
    Behaviour(moves_its_own_row, Model.fails, raises=psycopg.Error),  # the table refuses it in a last attempt
    Behaviour(finishes_its_own_row, Model.fails),
    Behaviour(deletes_its_own_row, Model.fails),
    Behaviour(moves_its_own_row_and_raises, Model.fails, raises=Exception),
    Behaviour(sets_session_state, Model.completes),
    Behaviour(sets_session_state_and_raises, Model.fails, raises=RuntimeError),
    Behaviour(prepares_a_statement, Model.completes),
    Behaviour(violates_at_commit, Model.fails),
    Behaviour(dies_at_commit, Model.fails),
    Behaviour(dies_and_returns, Model.fails),
    Behaviour(dies_and_goes_on, Model.fails, raises=psycopg.OperationalError),
    Behaviour(dies_and_snoozes, Model.snoozes),
    Behaviour(loses_its_network, Model.fails),
    Behaviour(loses_the_request, Model.fails),
    Behaviour(loses_the_answer, Model.completes),
    Behaviour(loses_the_answer_and_raises, Model.fails, raises=RuntimeError),
    Behaviour(loses_the_answer_and_snoozes, Model.snoozes_for_nothing),
    Behaviour(is_rescued, Model.rescued),
    Behaviour(is_rescued_and_raises, Model.rescued, raises=RuntimeError),
    Behaviour(is_rescued_and_dies, Model.rescued),
    Behaviour(is_taken_over, was_taken_over),
    Behaviour(is_taken_over_and_snoozes, was_taken_over),
    Behaviour(is_taken_over_and_locks_again, was_taken_over),
]


# --- detached


def writes_and_returns(scene: Scene) -> None:
    scene.effect(scene.beside)


def completes(scene: Scene) -> None:
    with scene.client.pool.connection() as tx:
        scene.effect(tx)
        assert scene.job.complete(tx).state is JobState.COMPLETED


def completes_and_raises(scene: Scene) -> None:
    completes(scene)
    raise RuntimeError("after its commit")


def completes_and_snoozes(scene: Scene) -> None:
    completes(scene)
    raise Snooze(HOUR)


def completes_and_rolls_back(scene: Scene) -> None:
    with scene.client.pool.connection() as tx:
        scene.effect(tx)
        scene.job.complete(tx)
        tx.rollback()


def completes_and_fails_to_commit(scene: Scene) -> None:
    with scene.client.pool.connection() as tx:
        scene.effect(tx)
        scene.job.complete(tx)
        scene.kill_backend(tx)


def completes_twice(scene: Scene) -> None:
    with scene.client.pool.connection() as tx:
        scene.effect(tx)
        scene.job.complete(tx)
        scene.job.complete(tx)


def completes_twice_and_catches_it(scene: Scene) -> None:
    with scene.client.pool.connection() as tx:
        scene.effect(tx)
        scene.job.complete(tx)
        with suppress(NotRunning):
            scene.job.complete(tx)


def its_lease_ends(scene: Scene) -> None:
    scene.rescue()


def its_lease_ends_and_it_completes(scene: Scene) -> None:
    scene.rescue()
    completes(scene)


def its_lease_ends_and_it_completes_regardless(scene: Scene) -> None:
    """The transaction is aborted: there is no way to commit the effect without the job."""
    scene.rescue()
    with scene.client.pool.connection() as tx:
        scene.effect(tx)
        with suppress(AttemptLost):
            scene.job.complete(tx)


def it_is_taken_over_and_completes(scene: Scene) -> None:
    scene.take_over()
    completes(scene)


def completes_and_is_retried(scene: Scene) -> None:
    completes(scene)
    settle = "UPDATE {s}.effect SET settled = true WHERE job = %s"
    scene.beside.execute(scene.sql(settle), [scene.job.id])
    scene.client.retry(scene.job.id)


def was_completed_and_retried(model: Model) -> None:
    model.completes()
    model.is_retried()


DETACHED_ONES = [
    *ANYWHERE,
    Behaviour(writes_and_returns, Model.completes),
    Behaviour(completes, Model.completes),
    Behaviour(completes_and_raises, Model.completes),
    Behaviour(completes_and_snoozes, Model.completes),
    Behaviour(completes_and_rolls_back, Model.fails),
    Behaviour(completes_and_fails_to_commit, Model.fails),
    Behaviour(completes_twice, Model.fails),
    Behaviour(completes_twice_and_catches_it, Model.completes),
    Behaviour(its_lease_ends, Model.rescued),
    Behaviour(its_lease_ends_and_it_completes, Model.rescued),
    Behaviour(its_lease_ends_and_it_completes_regardless, Model.rescued),
    Behaviour(it_is_taken_over_and_completes, was_taken_over),
    Behaviour(completes_and_is_retried, was_completed_and_retried),
]


# --- what others do meanwhile


def nothing(scene: Scene) -> None: ...


def is_asked_to_end(scene: Scene) -> None:
    assert scene.client.cancel(scene.job.id, reason="asked").state is JobState.RUNNING


def is_retried_by_hand(scene: Scene) -> None:
    assert scene.client.retry(scene.job.id).state is JobState.RUNNING


def is_deleted_by_hand(scene: Scene) -> None:
    with suppress(JobRunning):
        scene.client.delete(scene.job.id)
        raise AssertionError("a job that runs was deleted")


def is_changed_by_hand(scene: Scene) -> None:
    with suppress(JobRunning):
        scene.client.update(scene.job.id, max_attempts=99)
        raise AssertionError("a job that runs was changed")


def is_looked_at_by_the_rescue(scene: Scene) -> None:
    assert MaintenanceQueries(scene.client.schema).rescue(scene.beside, 1000, NOTHING) == []


def is_looked_for_by_another_worker(scene: Scene) -> None:
    assert not scene.looks()


MEANWHILE = [
    nothing,
    is_asked_to_end,
    is_retried_by_hand,
    is_deleted_by_hand,
    is_changed_by_hand,
    is_looked_at_by_the_rescue,
    is_looked_for_by_another_worker,
]
