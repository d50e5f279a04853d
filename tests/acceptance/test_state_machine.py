"""A few jobs driven through random handlers, kills, control by hand and upkeep, beside a model of what the table must
say; after each step the invariants I1 to I5, I9 and I12 of the fault list are queries that must return no row.

The same examples each time; PGJOBS_EXAMPLES=1000 runs so many others.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_state_machine
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, Handler, InvalidOption, Job, JobRunning, JobState, WorkerPool, constant
from pgjobs.errors import AttemptLost, TransactionBroken
from pgjobs.execution.outcome import decide
from pgjobs.execution.queries import ExecutionQueries
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.queries import MaintenanceQueries
from tests import by_hand, inside
from tests.acceptance.behaviours import (
    AGAIN,
    DETACHED,
    DETACHED_ONES,
    MEANWHILE,
    ON_THE_LINE,
    TRANSACTIONAL,
    Act,
    Behaviour,
    Scene,
    claim_and_vanish,
    completes,
    is_asked_to_end,
    loses_the_answer,
    nothing,
    returns,
    unreliable,
)
from tests.acceptance.job_model import Model
from tests.samples import HOUR
from tests.waiting import wait_until

pytestmark = pytest.mark.one_by_one("the model is of a job that shares its transaction with no other")

PLAIN = "plain"  # the kind
BACKOFF = constant(HOUR)
SUCCESS = {PLAIN: Behaviour(returns, Model.completes), DETACHED: Behaviour(completes, Model.completes)}

TABLES = """
    CREATE TABLE {s}.effect (job bigint, settled boolean);
    CREATE TABLE {s}.start (job bigint, attempt integer);
    CREATE TABLE {s}.at_commit (what text);
    CREATE FUNCTION {s}.at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.what = 'die' THEN PERFORM pg_catalog.pg_terminate_backend(pg_catalog.pg_backend_pid()); END IF;
        RAISE EXCEPTION 'at commit' USING ERRCODE = '40001';
    END $$;
    CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON {s}.at_commit DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION {s}.at_commit();
"""

# What a job finds in its session, which must be the same for every one (I12).
SESSION = """
    SELECT pg_catalog.current_setting('search_path'), pg_catalog.current_setting('TimeZone'),
        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_listening_channels()),
        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks
            WHERE locktype = 'advisory' AND pid = pg_catalog.pg_backend_pid()),
        (SELECT pg_catalog.count(*) FROM pg_catalog.pg_class WHERE relnamespace = pg_catalog.pg_my_temp_schema())
"""

# Each gives what breaks it. `known` is the model: a row for each job.
KNOWN = """
    WITH known AS (SELECT * FROM jsonb_to_recordset(%(known)s)
        AS known (id bigint, vanished boolean, refunded integer, delay interval))
"""
INVARIANTS = {
    "I1 effects: one of a completed job, else none": """
        SELECT job.id FROM {s}.job LEFT JOIN {s}.effect ON effect.job = job.id AND NOT settled
        GROUP BY job.id, state HAVING count(effect.job) <> CASE state WHEN 'completed' THEN 1 ELSE 0 END""",
    "I2 none lost: what was enqueued and committed is there, and nothing else": """
        SELECT id FROM known FULL JOIN {s}.job USING (id) WHERE known.refunded IS NULL OR job.queue IS NULL""",
    "I3 none stuck: what runs has a worker, or one that vanished and waits for its rescue": """
        SELECT id FROM {s}.job JOIN known USING (id) WHERE state = 'running' AND NOT vanished""",
    "I4 bounded: no more starts than attempts and give-backs": """
        SELECT id FROM {s}.job JOIN known USING (id)
        WHERE (SELECT count(*) FROM {s}.start WHERE start.job = id) > max_attempts + refunded""",
    "I4 bounded: one error of an attempt at most, in their order": """
        SELECT id FROM {s}.job, jsonb_array_elements(errors) WITH ORDINALITY AS one (error, n),
            jsonb_array_elements(errors) WITH ORDINALITY AS later (error, n)
        WHERE later.n > one.n AND later.error -> 'attempt' <= one.error -> 'attempt'""",
    "I5 record: what waits to be retried waits as long after its error as it should": """
        SELECT id FROM {s}.job JOIN known USING (id) WHERE state = 'retryable' AND abs(EXTRACT(
            epoch FROM scheduled_at - (errors -> -1 ->> 'at')::timestamptz - delay)) > 0.5""",
}
# These are so as soon as the server has noticed what was done to a connection.
SOON = {
    "I3 none stuck: no row is locked": """
        SELECT id FROM {s}.job WHERE id NOT IN (SELECT id FROM {s}.job FOR UPDATE SKIP LOCKED)""",
    "I9 connections: all idle": """
        SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %(name)s AND state <> 'idle'""",
}
UNLOCKED = "I3 none stuck: no row is locked"

# A worker process that is killed while its handler runs.
WORKER = """
import sys, threading, psycopg
from datetime import timedelta
from pgjobs import Client, Handler, WorkerPool

dsn, schema, queue = sys.argv[1:]

def run(tx, job):
    with psycopg.connect(dsn, autocommit=True) as beside:
        beside.execute(f'INSERT INTO "{schema}".start VALUES (%s, %s)', [job.id, job.attempt])
    if tx is not None:
        tx.execute(f'INSERT INTO "{schema}".effect VALUES (%s, false)', [job.id])
    print(job.token, flush=True)
    threading.Event().wait()

work_map = {"plain": run, "detached": Handler(run, detached=True)}
WorkerPool(Client(dsn, schema=schema), work_map, lease=timedelta(hours=1)).work_one(queue)
"""

which = st.integers(0, 5)  # of the jobs that will do
attempts = st.integers(1, 4)
meanwhile = st.sampled_from(MEANWHILE)
behaves_by_hand = [behaviour for behaviour in TRANSACTIONAL if not behaviour.in_pool]


class Machine(RuleBasedStateMachine):
    """Drives at most three jobs, each in a queue of its own, through one worker pool that has no threads."""

    def __init__(self, dsn: str, schema: str) -> None:
        super().__init__()
        self.dsn, self.name = dsn, f"machine-{uuid4().hex[:8]}"
        self.beside = psycopg.connect(dsn, autocommit=True)
        self.client = Client(make_conninfo(dsn, application_name=self.name), schema=schema, backoff=BACKOFF)
        self.pool = self._pool()
        self.duties = Maintenance(self.client.schema, keep={})
        self.jobs: list[Model] = []
        self.claims: list[Job[Any]] = []  # of all attempts that ever were
        self.unstarted: list[Job[Any]] = []  # of those whose handler was not reached
        self.plays: dict[int, tuple[Behaviour, Act]] = {}  # what is to come, by the job; else it succeeds
        self.played: tuple[Model, Behaviour] | None = None  # the last one, of which the model does not know yet
        self.runs = 0
        self.sessions: set[Any] = set()
        for table in ("job", "cancel_request", "effect", "start"):
            self.query(f"DELETE FROM {{s}}.{table}")

    def query(self, text: str, *values: Any, **named: Any) -> list[Any]:
        cur = self.beside.execute(sql.SQL(text).format(s=sql.Identifier(self.client.schema)), named or values or None)
        return cur.fetchall() if cur.description else []

    def _pool(self) -> WorkerPool:
        handlers = {
            PLAIN: Handler(self._handle),
            DETACHED: Handler(self._handle, detached=True),
        }
        return WorkerPool(self.client, handlers, lease=HOUR, timeout=None)

    # --- the handler

    def _handle(self, tx: Any, job: Job[Any] | None) -> None:
        assert job is not None
        assert job.token is not None
        self._settle()
        model = next(model for model in self.jobs if model.id == job.id)
        behaviour, meanwhile = self.plays.pop(job.id, (SUCCESS[model.kind], nothing))
        self.played = model, behaviour
        self.query("INSERT INTO {s}.start VALUES (%s, %s)", job.id, job.attempt)
        self.claims.append(job)
        model.starts += 1
        model.claimed(job.token, self.runs)
        scene = Scene(
            tx=tx,
            job=job,
            client=self.client,
            beside=self.beside,
            tell=lambda reason, patience: inside.request_stop(self.pool, model.token or uuid4(), reason(), patience),
            looks=lambda: self._pool().work_one(job.queue),
            successor=model.successor,
        )
        if tx is not None:
            with psycopg.Cursor(tx, row_factory=psycopg.rows.tuple_row) as cur:
                self.sessions.add(cur.execute(SESSION).fetchone())
            scene.effect(tx)
        job.set_metadata(mark=self.runs)
        job.record_output(self.runs)
        meanwhile(scene)
        if meanwhile is is_asked_to_end:
            model.is_cancelled()
        behaviour.act(scene)

    def _settle(self) -> None:
        """The job that ran last is over: the model is where its behaviour leads."""
        if self.played is not None:
            model, behaviour = self.played
            model.settled += behaviour.settled
            behaviour.ends(model)
        self.played = None
        self.client.queries.__dict__.pop(ON_THE_LINE, None)

    # --- which job

    def _pick(self, number: int, *states: JobState) -> Model | None:
        fitting = [model for model in self.jobs if not states or model.state in states]
        return fitting[number % len(fitting)] if fitting else None

    def _ready(self, number: int, kind: str) -> Model:
        """One that can run now, whatever it takes."""
        for make_ready in (list, self._wait_for_all, partial(self.enqueue, kind == DETACHED, 2)):
            make_ready()
            ready = [model for model in self.jobs if (model.kind, model.state) == (kind, JobState.AVAILABLE)]
            if ready:
                return ready[number % len(ready)]
        raise AssertionError("a new job is not available")

    def _wait_for_all(self) -> None:
        for wait in (self.time_passes, self.rescue, self.time_passes, self.promote):
            wait()

    # --- enqueue

    @initialize(detached=st.booleans(), max_attempts=attempts)
    def begin(self, detached: bool, max_attempts: int) -> None:
        self.enqueue(detached, max_attempts)

    def enqueue(self, detached: bool, max_attempts: int) -> None:
        if len(self.jobs) == 3 and (over := self._pick(0, JobState.COMPLETED, JobState.CANCELLED, JobState.DISCARDED)):
            self.delete(over, 0)
        self._enqueue(DETACHED if detached else PLAIN, f"queue-{uuid4().hex[:8]}", max_attempts)

    def _enqueue(self, kind: str, queue: str, max_attempts: int) -> Model:
        with self.client.pool.connection() as tx:
            self.client.enqueue(tx, {}, kind=kind, queue=queue, max_attempts=max_attempts)
            tx.rollback()  # this one never was
            job: Job[Any] = self.client.enqueue(tx, {}, kind=kind, queue=queue, max_attempts=max_attempts)
        model = Model(job.id, queue, kind, max_attempts)
        self.jobs.append(model)
        return model

    # --- run

    @rule(number=which, behaviour=st.sampled_from(TRANSACTIONAL), meanwhile=meanwhile)
    def run(self, number: int, behaviour: Behaviour, meanwhile: Act) -> None:
        self.play(self._ready(number, PLAIN), behaviour, meanwhile)

    @rule(number=which, behaviour=st.sampled_from(DETACHED_ONES), meanwhile=meanwhile)
    def run_detached(self, number: int, behaviour: Behaviour, meanwhile: Act) -> None:
        self.play(self._ready(number, DETACHED), behaviour, meanwhile)

    def play(self, model: Model, behaviour: Behaviour, meanwhile: Act) -> None:
        with self._playing(model, behaviour, meanwhile):
            if behaviour.raises is KeyboardInterrupt:
                with pytest.raises(KeyboardInterrupt):
                    self.pool.work_one(model.queue)
            else:
                assert self.pool.work_one(model.queue)

    @precondition(lambda self: self._pick(0, JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE))
    @rule(number=which, behaviour=st.sampled_from(behaves_by_hand), meanwhile=meanwhile)
    def lock_job(self, number: int, behaviour: Behaviour, meanwhile: Act) -> None:
        model = self._pick(number, JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE)
        assert model is not None
        # what kept its writes from being committed is raised, and what it raised itself
        let_out = (TransactionBroken, AttemptLost, behaviour.raises or TransactionBroken)
        with (
            self._playing(model, behaviour, meanwhile),
            suppress(*let_out),
            self.client.lock_job(id=model.id) as (tx, job),
        ):
            self._handle(tx, job)

    @rule(number=which, behaviour=st.sampled_from(TRANSACTIONAL), meanwhile=st.sampled_from(MEANWHILE[:-1]))
    def run_in_a_row(self, number: int, behaviour: Behaviour, meanwhile: Act) -> None:
        """As a worker's thread does: until the queue is empty, the next job claimed with the finish of the last."""
        model = self._ready(number, PLAIN)
        following = self._enqueue(PLAIN, model.queue, 2)
        with self.pool._watchdog.running(), self._playing(model, behaviour, meanwhile):
            # a server that has not seen yet that a connection was given up holds the row of the job claimed on it
            lost = behaviour.act is loses_the_answer
            wait_until(lambda: self._worked_until_empty(model.queue) and (following.starts or lost))
        if not following.starts:  # claimed with a finish whose answer was lost
            assert behaviour.act is loses_the_answer
            job = self.client.get(following.id)
            assert job is not None
            self._vanished(following, job, starts=0)
            self.time_passes()
            self.rescue()
        self.the_table_says_what_the_model_says()
        self.delete(following, 0)

    def _worked_until_empty(self, queue: str) -> bool:
        with suppress(KeyboardInterrupt):
            inside.work_while_jobs(self.pool, queue)
            return True
        return False

    @contextmanager
    def _playing(self, model: Model, behaviour: Behaviour, meanwhile: Act) -> Iterator[None]:
        self.plays = {model.id: (behaviour, meanwhile)}
        self.runs += 1
        model.successor = uuid4()
        yield
        assert not self.plays, "the handler was not reached"
        self._settle()

    # --- workers that vanish

    @rule(number=which, kind=st.sampled_from([PLAIN, DETACHED]), reached=st.booleans())
    def vanish(self, number: int, kind: str, reached: bool) -> None:
        """A worker loses its connection for good, in the handler or before."""
        model = self._ready(number, kind)
        with closing(psycopg.connect(self.dsn, autocommit=True)) as conn:  # without a commit
            found = self.client.get(model.id)
            assert found is not None
            job = claim_and_vanish(self.client, conn, found, uuid4())
            assert job is not None
            if reached:
                self.query("INSERT INTO {s}.start VALUES (%s, %s)", job.id, job.attempt)
                conn.execute(sql.SQL("INSERT INTO {s}.effect VALUES (%s, false)").format(
                    s=sql.Identifier(self.client.schema)), [job.id])  # fmt: skip
            else:
                self.unstarted.append(job)
        self._vanished(model, job, starts=int(reached))

    @precondition(lambda self: self.runs % 8 == 0)  # it takes its time
    @rule(number=which, kind=st.sampled_from([PLAIN, DETACHED]))
    def kill(self, number: int, kind: str) -> None:
        """A worker's process is killed in the handler."""
        model = self._ready(number, kind)
        self.runs += 1
        arguments = [sys.executable, "-c", WORKER, self.dsn, self.client.schema, model.queue]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            token = process.stdout.readline().strip()
            process.send_signal(signal.SIGKILL)
        job = self.client.get(model.id)
        assert job is not None
        assert str(job.token) == token
        self._vanished(model, job, starts=1)

    def _vanished(self, model: Model, job: Job[Any], *, starts: int) -> None:
        """And no time passes by itself."""
        assert job.token is not None
        self.claims.append(job)
        model.claimed(job.token)
        model.starts += starts
        wait_until(partial(self._holds, SOON[UNLOCKED]))
        self.query("UPDATE {s}.job SET attempted_at = attempted_at + %s WHERE id = %s", HOUR, model.id)

    @precondition(lambda self: self.claims)
    @rule(number=st.integers(0, 20), lost=st.booleans())
    def late_record(self, number: int, lost: bool) -> None:
        """Some attempt of long ago, or the one that is taken for vanished, records that it has failed."""
        job = self.claims[number % len(self.claims)]
        outcome = decide(job, RuntimeError("late"), BACKOFF)
        own = [model for model in self.jobs if (model.token, model.state) == (job.token, JobState.RUNNING)]
        if own:
            by_hand.finish_late(self.client, self.beside, job, outcome, after_loss=lost)
            own[0].marking = None
            own[0].fails()
            return
        with pytest.raises(AttemptLost):
            by_hand.finish_late(self.client, self.beside, job, outcome, after_loss=lost)
        self.beside.execute("ROLLBACK")

    @precondition(lambda self: self.unstarted)
    @rule(number=which)
    def give_back(self, number: int) -> None:
        """A worker that lives never got the lock of what it had claimed."""
        job = self.unstarted.pop(number % len(self.unstarted))
        assert job.token is not None
        model = next((model for model in self.jobs if model.token == job.token), None)
        gives = model is not None and model.state in (JobState.RUNNING, JobState.RETRYABLE, JobState.DISCARDED)
        assert self.client.queries.unclaim(self.beside, queue=job.queue, token=job.token) == gives
        if gives and model is not None:
            self.claims = [claim for claim in self.claims if claim.token != job.token]
            model.is_unclaimed()
            MaintenanceQueries(self.client.schema).settle_requests(self.beside, 10)

    # --- upkeep

    def time_passes(self) -> None:
        self.query(
            "UPDATE {s}.job SET scheduled_at = scheduled_at - %(by)s, attempted_at = attempted_at - %(by)s,"
            " leased_until = leased_until - %(by)s",
            by=AGAIN,
        )
        for model in self.jobs:
            model.ages(AGAIN)
        self.claims = [
            replace(job, attempted_at=(job.attempted_at or datetime.now(UTC)) - AGAIN) for job in self.claims
        ]

    def promote(self) -> None:
        self.duties.promote(self.beside)
        for model in self.jobs:
            model.promoted()

    def rescue(self) -> None:
        """Those that run are those that vanished; the old ones are rescued."""
        self.duties.rescue(self.beside)
        for model in self.jobs:
            if model.old and model.state is JobState.RUNNING:
                model.rescued()
                freeze = "UPDATE {s}.job SET scheduled_at = scheduled_at + %s WHERE id = %s AND state = 'retryable'"
                self.query(freeze, HOUR, model.id)
        left = {id for (id,) in self.query("SELECT job_id FROM {s}.cancel_request")}
        assert left <= {model.id for model in self.jobs if model.asked}, "a request that nobody needs is left"

    def drain(self) -> None:
        """I3: with all handlers able to succeed, nothing is left."""
        while any(not model.state.final for model in self.jobs):
            self._wait_for_all()
            for model in self.jobs:
                if model.state is JobState.AVAILABLE:
                    self.play(model, SUCCESS[model.kind], nothing)

    @rule(act=st.sampled_from([time_passes, promote, rescue, drain]))
    def upkeep(self, act: Callable[[Machine], None]) -> None:
        act(self)

    # --- control by hand

    def cancel(self, model: Model, value: int) -> None:
        self.client.cancel(model.id, reason="by hand")
        model.is_cancelled()

    def retry(self, model: Model, value: int) -> None:
        self.query("UPDATE {s}.effect SET settled = true WHERE job = %s", model.id)
        self.client.retry(model.id)
        model.is_retried()

    def delete(self, model: Model, value: int) -> None:
        if model.state is JobState.RUNNING:
            with pytest.raises(JobRunning):
                self.client.delete(model.id)
        else:
            assert self.client.delete(model.id).id == model.id
            self.jobs.remove(model)

    def move(self, model: Model, value: int) -> None:
        ahead = value % 2 == 0
        when = datetime.now(UTC) + (HOUR if ahead else -HOUR)
        if model.state is JobState.RUNNING:
            with pytest.raises(JobRunning):
                self.client.update(model.id, scheduled_at=when)
        else:
            self.client.update(model.id, scheduled_at=when)
            model.is_moved(ahead=ahead)

    def bound(self, model: Model, value: int) -> None:
        if model.state is not JobState.RUNNING and model.can_have(value):
            self.client.update(model.id, max_attempts=value)
            model.max_attempts = value
            return
        with pytest.raises(JobRunning if model.state is JobState.RUNNING else InvalidOption):
            self.client.update(model.id, max_attempts=value)

    def find_nothing(self, model: Model, value: int) -> None:
        if model.state is not JobState.AVAILABLE:
            assert not self.pool.work_one(model.queue)

    @precondition(lambda self: self.jobs)
    @rule(number=which, act=st.sampled_from([cancel, retry, delete, move, bound, find_nothing]), value=attempts)
    def control(self, number: int, act: Callable[[Machine, Model, int], None], value: int) -> None:
        act(self, self.jobs[number % len(self.jobs)], value)

    # --- what must hold

    def _holds(self, text: str) -> bool:
        known = [
            {
                "id": model.id,
                "vanished": model.state is JobState.RUNNING,
                "refunded": model.refunded,
                "delay": None if model.delay is None else f"{model.delay.total_seconds()} s",
            }
            for model in self.jobs
        ]
        broken = self.query(KNOWN + text, known=json.dumps(known), name=self.name)
        return broken == []

    def _all_connections_are_in_the_pool(self) -> bool:
        stats = self.client.pool.get_stats()
        return stats["pool_size"] == stats["pool_available"]

    @invariant()
    def the_invariants_hold(self) -> None:
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("pgjobs/")])
        wait_until(self._all_connections_are_in_the_pool)  # I9
        for name, text in SOON.items():
            assert wait_until(partial(self._holds, text)), name
        if not self._holds(" UNION ALL ".join(INVARIANTS.values())):
            assert [name for name, text in INVARIANTS.items() if not self._holds(text)] == []
        assert len(self.sessions) <= 1, "I12: each job finds the same session"

    @invariant()
    def the_table_says_what_the_model_says(self) -> None:
        for model in self.jobs:
            job = self.client.get(model.id)
            assert job is not None
            [(effects, starts)] = self.query(
                "SELECT (SELECT count(*) FROM {s}.effect WHERE job = %(id)s),"
                " (SELECT count(*) FROM {s}.start WHERE job = %(id)s)",
                id=model.id,
            )
            said = {
                "state": job.state,
                "attempt": job.attempt,
                "max_attempts": job.max_attempts,
                "errors": [error.attempt for error in job.errors],
                "effects": effects,
                "starts": starts,
                "token": job.token,
                "mark": (job.metadata.get("mark"), job.output),
            }
            right = {name: getattr(model, name) for name in said} | {"mark": (model.mark, model.mark)}
            assert said == right, job.errors

    def teardown(self) -> None:
        self.client.close()
        self.beside.close()


@pytest.fixture(scope="module")
def machine(database: str) -> Iterator[Callable[[], Machine]]:
    """Makes machines on tables of this module's."""
    schema = f"test_{uuid4().hex[:12]}"
    with Client(database, schema=schema) as client, pytest.MonkeyPatch.context() as patch:
        client.migrate()
        patch.setattr(ExecutionQueries, "complete", unreliable(ExecutionQueries.complete))
        patch.setattr(ExecutionQueries, "fail", unreliable(ExecutionQueries.fail))
        with client.pool.connection() as conn:
            conn.execute(sql.SQL(TABLES).format(s=sql.Identifier(schema)))
        yield lambda: Machine(database, schema)
        with client.pool.connection() as conn:
            conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


EACH = [(PLAIN, behaviour) for behaviour in TRANSACTIONAL] + [(DETACHED, behaviour) for behaviour in DETACHED_ONES]


@pytest.mark.parametrize(("kind", "behaviour"), EACH, ids=[f"{kind}-{behaviour.name}" for kind, behaviour in EACH])
def test_each_way_to_behave_leads_where_the_model_says(
    machine: Callable[[], Machine], kind: str, behaviour: Behaviour
) -> None:
    """Also when somebody wants the job cancelled meanwhile. The jobs after it find the same session."""
    driven = machine()
    try:
        for asked in (nothing, is_asked_to_end):
            driven.begin(kind == DETACHED, 2)
            driven.play(driven.jobs[-1], behaviour, asked)
            driven.the_invariants_hold()
            driven.the_table_says_what_the_model_says()
        if kind == PLAIN:
            driven.run_in_a_row(0, behaviour, nothing)
        driven.enqueue(detached=False, max_attempts=2)
        driven.drain()
        driven.the_invariants_hold()
        driven.the_table_says_what_the_model_says()
    finally:
        driven.teardown()


def test_no_sequence_of_faults_breaks_an_invariant(machine: Any) -> None:
    wanted = os.environ.get("PGJOBS_EXAMPLES")
    run_state_machine(
        machine,
        settings=settings(
            max_examples=int(wanted or 15), stateful_step_count=40, derandomize=not wanted, database=None, deadline=None
        ),
    )
