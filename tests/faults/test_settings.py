"""Settings that a role, a database or a server may have: whatever they say, jobs are enqueued, worked and looked at."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from pgjobs import (
    Cancel,
    Client,
    Discard,
    Handler,
    Job,
    JobFilter,
    JobState,
    NewJob,
    QueueSettings,
    Schedule,
    Snooze,
    Unique,
    WorkerPool,
    constant,
)
from pgjobs.embedded import EmbeddedPostgres
from tests.conftest import new_database
from tests.waiting import wait_until

Settings = Mapping[str, str]
SOON = timedelta(seconds=0.2)
LONG = timedelta(days=4, microseconds=5)

# How values are written and read; each must be without effect on what we do.
STYLES: dict[str, list[str]] = {
    "IntervalStyle": ["sql_standard", "postgres_verbose", "iso_8601"],
    "DateStyle": ["German", "SQL, DMY", "Postgres, MDY", "ISO, DMY"],
    "TimeZone": ["Asia/Kathmandu", "<XX>+03:30", "America/New_York"],
    "extra_float_digits": ["-15", "3"],
    "bytea_output": ["escape"],
    "xmlbinary": ["hex"],
    "standard_conforming_strings": ["off"],
    "escape_string_warning": ["off"],
    "backslash_quote": ["off"],
    "quote_all_identifiers": ["on"],
    "transform_null_equals": ["on"],
    "array_nulls": ["off"],
    "default_text_search_config": ["pg_catalog.german"],
    "lc_messages": ["C"],
    "lc_time": ["C"],
    "lc_numeric": ["C"],
    "lc_monetary": ["C"],
}
# How transactions and statements run.
CONDUCT: dict[str, list[str]] = {
    "default_transaction_isolation": ["repeatable read", "serializable"],
    "default_transaction_deferrable": ["on"],
    "client_min_messages": ["debug5", "error"],
    "search_path": ["pg_temp", "nowhere"],
    "row_security": ["off"],
    "check_function_bodies": ["off"],
    "session_replication_role": ["replica", "local"],
    "synchronous_commit": ["off", "local"],
    "plan_cache_mode": ["force_generic_plan", "force_custom_plan"],
    "enable_indexscan": ["off"],
    "enable_seqscan": ["off"],
    "enable_hashjoin": ["off"],
    "enable_nestloop": ["off"],
    "enable_material": ["off"],
    "enable_sort": ["off"],
    "from_collapse_limit": ["1"],
    "join_collapse_limit": ["1"],
    "geqo_threshold": ["2"],
    "jit": ["off"],
    "jit_above_cost": ["0"],
    "work_mem": ["64kB"],
    "gin_fuzzy_search_limit": ["1"],
    "default_toast_compression": ["pglz"],
    "idle_in_transaction_session_timeout": ["500ms"],
    "lock_timeout": ["200ms"],
    "statement_timeout": ["2s"],
    "exit_on_error": ["on"],
}
# Not with the others: what they do takes its time.
APART = ("exit_on_error", "enable_sort", "jit_above_cost")
TOGETHER: list[dict[str, str]] = [
    {name: values[0] for name, values in STYLES.items()},
    {name: values[-1] for name, values in (STYLES | CONDUCT).items() if name not in APART},
]
HOWS = ("role", "database", "server", "server, while it runs")
EACH = [
    pytest.param({name: value}, how, id=f"{name}={value}-{how}")
    for settings, hows in ((STYLES, (HOWS[0], HOWS[-1])), (CONDUCT, HOWS[:1]))
    for name, values in settings.items()
    for value in values
    for how in hows
]
# What these do is to end sessions and statements, which is said.
LOUD = frozenset({"exit_on_error", "idle_in_transaction_session_timeout", "lock_timeout"})


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(fsync=False, settings={"max_connections": "200"}) as server:
        yield server


@contextmanager
def set_for_all(server: EmbeddedPostgres, dsn: str, how: str, settings: Settings) -> Iterator[None]:
    """The settings hold for the sessions that begin in the block; those of a server for all that there are, too."""
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    whose = {"role": sql.SQL("ROLE pgjobs"), "database": sql.SQL("DATABASE {}").format(sql.Identifier(str(database)))}
    kind = sql.SQL("ALTER {} ").format(whose[how]) if how in whose else sql.SQL("ALTER SYSTEM ")
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        known = {name for (name,) in admin.execute("SELECT lower(name) FROM pg_settings").fetchall()}
        wanted = {name: value for name, value in settings.items() if name.lower() in known}
        if not wanted:
            pytest.skip("this server does not know it")
        try:
            for name, value in wanted.items():
                admin.execute(kind + sql.SQL("SET {} = {}").format(sql.SQL(name), _value(name, value)))
            _reload(server, admin, wanted if how not in whose else {})
            yield
        finally:
            for name in wanted:
                admin.execute(kind + sql.SQL("RESET {}").format(sql.SQL(name)))
            _reload(server, admin, {})


def _value(name: str, value: str) -> sql.Composable:
    if name in ("DateStyle", "search_path"):
        return sql.SQL(", ").join(sql.Literal(each.strip()) for each in value.split(","))
    return sql.Literal(value)


def _reload(server: EmbeddedPostgres, admin: psycopg.Connection[Any], wanted: Settings) -> None:
    """Let the server read its settings, and wait until new sessions have them."""
    admin.execute("SELECT pg_reload_conf()")

    def new_sessions_have_them() -> bool:
        with suppress(psycopg.OperationalError), psycopg.connect(server.dsn, autocommit=True) as conn:
            query = """SELECT count(*) FILTER (WHERE sourcefile ~ 'auto.conf' OR source = 'command line'),
                count(*) FILTER (WHERE sourcefile ~ 'auto.conf' AND lower(name) <> ALL (%(wanted)s))
                FROM pg_settings WHERE lower(name) = ANY (%(wanted)s) OR sourcefile ~ 'auto.conf'"""
            row = conn.execute(query, {"wanted": [name.lower() for name in wanted]}).fetchone()
            return row == (len(wanted), 0)
        return False

    wait_until(new_sessions_have_them)


TEXTS = ["back\\slash", "it's", 'say "NULL"', "NULL", "{NULL}", "é ü €", "\\x41", "line\nbreak", "%s %%"]


@dataclass
class Trial:
    """Jobs of all kinds on one client, and what its handlers saw."""

    client: Client
    seen: dict[str, int] = field(default_factory=dict)

    def note(self, name: str) -> int:
        self.seen[name] = self.seen.get(name, 0) + 1
        return self.seen[name]

    def handler(self, tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        name = str(job.args["name"])
        time = self.note(name)
        job.set_metadata(seen=TEXTS)
        if "output" in name:
            job.record_output({"texts": TEXTS})
        if "fail" in name and time == 1:
            raise ValueError("\\ ' \" é")
        if "snooze" in name and time == 1:
            raise Snooze(SOON)
        if "cancel" in name:
            raise Cancel("\\'")
        if "discard" in name:
            raise Discard("\\'")

    def pool(self) -> WorkerPool:
        handler = Handler(self.handler, backoff=constant(SOON))
        return WorkerPool(
            self.client,
            {
                "thing": handler,
                "apart": Handler(lambda _, job: self.handler(None, job), detached=True, backoff=constant(SOON)),  # type: ignore[arg-type]
                "tick": handler,
            },
            queues={"default": 2, "batch": QueueSettings(1, batch_size=10)},
            cron=[Schedule("in-code", "@every 1s", {"name": "tick of code"}, kind="tick", window=LONG)],
            poll_interval=timedelta(seconds=0.2),
        )

    def enqueue_all(self, tag: str) -> dict[str, Job[Any]]:
        """One in every way there is; each by its name."""
        made: dict[str, Job[Any]] = {}

        def new(name: str, **options: Any) -> NewJob[Any]:
            return NewJob({"name": f"{tag} {name}", "texts": TEXTS}, kind="thing", **options)

        def keep(*jobs: Job[Any]) -> None:
            made.update((str(job.args["name"]), job) for job in jobs)

        client, at = self.client, datetime.now(UTC) + SOON
        keep(client.enqueue(None, new("plain output")), client.enqueue(None, new("fail")))
        keep(client.enqueue(None, NewJob({"name": f"{tag} apart fail"}, kind="apart")))
        keep(client.enqueue(None, new("delayed snooze", delay=SOON, tags=["tag-1", "NULL"], metadata={"texts": TEXTS})))
        unique = Unique(by_args=["name"], by_period=timedelta(days=1))
        first = client.enqueue(None, new("unique", unique=unique, delay=timedelta(seconds=1)))
        again = client.enqueue(None, new("unique", unique=unique, replace=["args", "scheduled_at"], delay=SOON))
        assert (again.id, again.duplicate) == (first.id, True)
        keep(first)
        with client.pool.connection() as tx:
            keep(client.enqueue(tx, new("cancel")), client.enqueue(tx, new("discard output", scheduled_at=at)))
            keep(*client.enqueue_many(tx, [new("few fail"), new("few", delay=SOON), new("few at", scheduled_at=at)]))
        keep(
            *client.enqueue_many(
                None, [new("few unique", unique=unique), new("few queued", queue="batch", tags=["NULL"])]
            )
        )
        keep(
            *client.enqueue_many(
                None, [new(f"many {n} fail" if n == 7 else f"many {n}", queue="batch") for n in range(30)]
            )
        )
        keep(*client.enqueue_many(None, [new(f"out {n} output", queue="batch") for n in range(3)]))
        assert client.enqueue_many(None, [new("spooled", queue="batch")], returning=False) == 1
        return made

    def check_all(self, made: dict[str, Job[Any]], since: int) -> None:
        wait_until(lambda: self.unfinished() == 0, timeout=30)
        ends = {name: self.client.get(job.id) for name, job in made.items()}
        for name, job in ends.items():
            assert job is not None
            wanted = "cancelled" if "cancel" in name else "discarded" if "discard" in name else "completed"
            assert (job.state, name) == (JobState(wanted), name)
            assert job.args.get("texts", TEXTS) == job.metadata["seen"] == TEXTS
            assert self.seen[name] == 1 + ("fail" in name or "snooze" in name), name
            assert job.attempt == 1 + ("fail" in name), name
            assert job.output == ({"texts": TEXTS} if "output" in name else None), name
            assert job.created_at.tzinfo is UTC
        retried = next(job for name, job in ends.items() if name.endswith(" fail"))
        assert retried is not None
        assert abs(retried.errors[0].at - datetime.now(UTC)) < timedelta(minutes=1)
        wait_until(lambda: self.seen.get("tick of code", 0) > since, timeout=15)

    def unfinished(self) -> int:
        states = [state for state in JobState if not state.final]
        return self.client.count(JobFilter(states=states)).total

    def vanish(self) -> None:
        """A job whose worker has vanished, and one that is cancelled by hand; both are seen to."""
        job = self.client.enqueue(None, NewJob({"name": "rescued"}, kind="thing", pending=True))
        table = sql.Identifier(self.client.schema, "job")
        update = sql.SQL(
            "UPDATE {} SET state = 'running', attempt = 1, token = %s, attempted_at = clock_timestamp() - interval "
            "'1 minute', attempted_by = ARRAY['some one'] WHERE id = %s"
        ).format(table)
        with self.client.pool.connection() as conn:
            conn.execute(update, [uuid4(), job.id])
        wait_until(lambda: (found := self.client.get(job.id)) and found.state is JobState.COMPLETED, timeout=20)
        found = self.client.get(job.id)
        assert found is not None
        assert found.errors[0].error.startswith("worker vanished: some one")
        parked = self.client.enqueue(None, NewJob({"name": "parked"}, kind="thing", delay=timedelta(hours=1)))
        assert parked.scheduled_at - parked.created_at == timedelta(hours=1)
        assert self.client.update(parked.id, tags=["NULL"], metadata={"a": None}).tags == ("NULL",)
        assert self.client.cancel(parked.id, reason="\\'").metadata["cancel_reason"] == "\\'"

    def look(self) -> None:
        """All that can be asked for."""
        client = self.client
        page = client.list_jobs(JobFilter(states=["completed"], metadata={"seen": TEXTS}), order="time", limit=1)
        assert page.jobs
        assert page.next
        assert client.list_jobs(JobFilter(states=["completed"]), order="time", cursor=page.next).jobs
        assert {queue.name for queue in client.queues.list()} >= {"default", "batch"}
        assert client.queues.stats()["default"].workers == 1
        assert [worker.host for worker in client.workers()]
        (row,) = [row for row in client.schedules.list() if row.name == "in-code"]
        assert row.window == LONG
        assert row.error is None
        with client.lock_job(queue="by-hand") as (_, job):
            assert job is None


def trial(server: EmbeddedPostgres, how: str, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="pgjobs")
    with new_database(server.dsn) as dsn, Client(dsn) as client:
        trial = Trial(client)
        if how == "server, while it runs":
            client.migrate()
            with trial.pool():
                trial.check_all(trial.enqueue_all("before"), 0)
                with set_for_all(server, dsn, how, settings):
                    since = trial.seen.get("tick of code", 0)
                    trial.check_all(trial.enqueue_all("meanwhile"), since)
                    trial.vanish()
                    trial.look()
                trial.check_all(trial.enqueue_all("after"), 0)
        else:
            with set_for_all(server, dsn, how, settings), Client(dsn) as other:
                trial = Trial(other)
                other.migrate()
                with trial.pool():
                    trial.check_all(trial.enqueue_all("before"), 0)
                    trial.vanish()
                    trial.look()
                other.migrate(direction="down", target=0)
    if not LOUD & settings.keys():
        warnings = [record.getMessage() for record in caplog.records if record.name.startswith("pgjobs")]
        assert [line for line in warnings if not line.startswith("job ")] == []


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
@pytest.mark.finding("W3")
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("settings", TOGETHER, ids=["styles", "all"])
def test_no_setting_changes_what_is_written_and_read(
    own_server: EmbeddedPostgres, caplog: pytest.LogCaptureFixture, how: str, settings: Settings
) -> None:
    """With another IntervalStyle no schedule ever ticked: a duration was read under the style of the session."""
    trial(own_server, how, settings, caplog)


@pytest.mark.slow
@pytest.mark.finding("W3")
@pytest.mark.parametrize(("settings", "how"), EACH)
def test_each_setting_by_itself(
    own_server: EmbeddedPostgres, caplog: pytest.LogCaptureFixture, how: str, settings: Settings
) -> None:
    """A setting that changes how values are written or read stopped schedules, rescue or enqueues."""
    trial(own_server, how, settings, caplog)
