"""A Django project with the app: what it enqueues, and what its workers do with it. Each test is a project on disk."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgjobs.embedded import EmbeddedPostgres
from tests.acceptance.django_project import Project, django_database, enqueue, project
from tests.conftest import new_database
from tests.faults.servers import PGBOUNCER, pgbouncer, through
from tests.waiting import wait_until

SOON = 30.0  # seconds: the machine may be busy, and each process imports much


@pytest.fixture
def shop(tmp_path: Path, fresh_database: str) -> Iterator[Project]:
    with project(tmp_path, fresh_database) as shop:
        shop.make_tables()
        yield shop


# --- enqueue


def test_a_job_goes_the_way_of_its_atomic_block_first_or_not(shop: Project) -> None:
    shop.run("""
        from django.db import transaction
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet
        from shop.models import Customer

        def first(then):
            enqueue(Greet("first"), tags=[f"first-{then}"])
            Customer.objects.create(email=f"first {then}")

        def later(then):
            Customer.objects.create(email=f"later {then}")
            enqueue(Greet("later"), tags=[f"later-{then}"])

        for do in (first, later):
            with transaction.atomic():
                do("kept")
            try:
                with transaction.atomic():
                    do("dropped")
                    raise KeyError
            except KeyError:
                pass
        enqueue(Greet("outside"), tags=["outside"])
        result = None
    """)
    assert shop.query("SELECT tags FROM pgjobs.job ORDER BY id") == [
        (["first-kept"],),
        (["later-kept"],),
        (["outside"],),
    ]
    assert list(shop.greeted) == ["first kept", "later kept"]


def test_enqueue_takes_what_the_client_takes(shop: Project) -> None:
    shop.write(
        "shop/jobs.py",
        """
        from pgjobs.contrib.django import handles

        @handles("by.name")
        def by_name(tx, job): ...
    """,
    )
    assert shop.run("""
        from datetime import timedelta
        from pgjobs import NewJob
        from pgjobs.contrib.django import enqueue, enqueue_many

        jobs = [
            enqueue({"n": 1}, kind="by.name", priority=7, delay=timedelta(hours=1)),
            enqueue(NewJob({"n": 2}, kind="by.name", queue="mail"), using="default"),
            *enqueue_many([NewJob({"n": n}, kind="by.name") for n in (3, 4)], tags=["many"]),
        ]
        count = enqueue_many([NewJob({"n": 5}, kind="by.name")], returning=False)
        result = [[job.args["n"], job.priority, job.queue, str(job.state), list(job.tags)] for job in jobs], count
    """) == [
        [
            [1, 7, "default", "scheduled", []],
            [2, 0, "mail", "available", []],
            [3, 0, "default", "available", ["many"]],
            [4, 0, "default", "available", ["many"]],
        ],
        1,
    ]


def test_what_cannot_be_enqueued_is_refused_and_the_block_goes_on(shop: Project) -> None:
    refused = shop.run("""
        from django.db import transaction
        from pgjobs.contrib.django import client, enqueue
        from shop.jobs import Greet
        from shop.models import Customer

        result = []
        with transaction.atomic():
            for wrong in (
                lambda: enqueue({}, kind="no.handler"),
                lambda: enqueue(Greet("ada"), using="replica"),
                lambda: enqueue(Greet("ada"), queues="mail"),
                lambda: client("replica"),
            ):
                try:
                    wrong()
                except Exception as error:
                    result.append([type(error).__name__, str(error)])
            Customer.objects.create(email="ada")
    """)
    assert [name for name, _ in refused] == ["UnknownKind", "InvalidSetting", "InvalidOption", "InvalidSetting"]
    assert "no.handler" in refused[0][1]
    assert "'replica'" in refused[1][1]
    assert list(shop.greeted) == ["ada"]
    assert shop.jobs == []


def test_a_project_without_the_app_is_told_so(shop: Project) -> None:
    shop.set(INSTALLED_APPS=["shop"])
    assert shop.run("""
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet

        try:
            enqueue(Greet("ada"))
        except Exception as error:
            result = [type(error).__name__, str(error)]
    """) == ["InvalidSetting", "the app is not installed: add 'pgjobs.contrib.django' to INSTALLED_APPS"]


def test_the_functions_are_imported_before_django_is_set_up(shop: Project) -> None:
    """As by the __init__ of an app, which Django imports before its models."""
    shop.write(
        "shop/__init__.py",
        """
        from pgjobs.contrib.django import DjangoSource, enqueue, handles

        @handles("early")
        def early(tx, job): ...
    """,
    )
    assert shop.run("""
        from django.apps import apps
        result = sorted(apps.get_app_config("pgjobs").work_map)
    """) == ["early", "greet"]


def test_an_asynchronous_view_enqueues(shop: Project) -> None:
    shop.run("""
        import asyncio
        from django.test import AsyncClient
        result = asyncio.run(AsyncClient().get("/enqueue/")).json()
        assert result == {"kind": "greet", "priority": 3}, result
    """)
    assert shop.jobs == [("greet", "available", 0)]


def test_a_client_belongs_to_an_alias_and_follows_the_settings(shop: Project) -> None:
    shop.set(DATABASES={"default": django_database(shop.dsn), "again": django_database(shop.dsn)})
    assert shop.run("""
        from django.apps import apps
        from django.db import connections, transaction
        from django.test import override_settings
        from pgjobs.contrib.django import client, enqueue
        from shop.jobs import Greet

        config = apps.get_app_config("pgjobs")
        before = client()
        assert before is client("default") is config.client() is not client("again")
        with transaction.atomic(using="again"):
            enqueue(Greet("kept"), using="again", tags=["again"])
        with transaction.atomic(using="again"):
            enqueue(Greet("dropped"), using="again", tags=["dropped"])
            transaction.set_rollback(True, using="again")
        with override_settings(PGJOBS={"USING": "again", "PRIORITY": 5}):
            job = enqueue(Greet("kept"), tags=["by-settings"])
            result = [client() is config.client("again"), client() is before, job.priority]
        assert client() is config.client("default")
    """) == [True, False, 5]
    assert shop.query("SELECT tags FROM pgjobs.job ORDER BY id") == [(["again"],), (["by-settings"],)]


# --- settings


def test_settings_reach_the_client_and_the_pool_also_by_dotted_paths(shop: Project) -> None:
    shop.write(
        "shop/scheduling.py",
        """
        from datetime import timedelta
        from pgjobs import Schedule, constant
        from shop.jobs import Greet

        nightly = Schedule("nightly", "30 2 * * *", Greet("ada"))
        others = [Schedule("hourly", "@hourly", Greet("ada")), Schedule("yearly", "@yearly", Greet("ada"))]
        backoff = constant(timedelta(seconds=7))

        def in_a_circle(tx, job, run):
            return run()
    """,
    )
    shop.set(
        PGJOBS={
            "QUEUES": {"default": 3, "mail": 1},
            "CRON": ["shop.scheduling.nightly", "shop.scheduling.others"],
            "BACKOFF": "shop.scheduling.backoff",
            "MIDDLEWARE": ["shop.scheduling.in_a_circle"],
            "QUEUE": "mail",
        }
    )
    assert shop.run("""
        from datetime import timedelta
        from django.apps import apps
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet
        from shop.scheduling import backoff

        pool = apps.get_app_config("pgjobs").pool()
        assert pool.client.backoff is backoff
        result = [pool.threads, sorted(pool.schedules.by_name), enqueue(Greet("ada")).queue]
    """) == [4, ["hourly", "nightly", "yearly"], "mail"]


@pytest.mark.parametrize(
    ("settings", "id", "said"),
    [
        ({"QEUES": {"default": 10}}, "E001", "PGJOBS has no setting 'QEUES': is QUEUES meant?"),
        ({"queues": {"default": 10}}, "E001", "PGJOBS has no setting 'queues': is QUEUES meant?"),
        ({"USING": "replica"}, "E002", "settings.DATABASES has no 'replica', but 'default'"),
        ({"QUEUES": {"default": "ten"}}, "E002", "'ten'"),
        ({"CRON": ["shop.jobs.nothing"]}, "E002", "PGJOBS['CRON'] has 'shop.jobs.nothing', which cannot be imported"),
        ({"PRIORITY": 100_000}, "E002", "100000"),
        ({"BACKOFF": "shop.jobs.Greet.email"}, "E002", "PGJOBS['BACKOFF']"),
    ],
)
def test_a_wrong_setting_is_an_error_of_the_system_check(
    tmp_path: Path, settings: dict[str, object], id: str, said: str
) -> None:
    with_no_server = Project(tmp_path, "host=/nowhere dbname=none", None)  # type: ignore[arg-type]
    with_no_server.set(PGJOBS=settings)
    done = with_no_server.manage("check")
    assert done.code == 1
    assert f"(pgjobs.{id})" in done.err
    assert said in done.err


def test_a_database_that_is_not_postgres_is_an_error_of_the_system_check(tmp_path: Path) -> None:
    with_sqlite = Project(tmp_path, "", None)  # type: ignore[arg-type]
    with_sqlite.set(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
    done = with_sqlite.manage("check")
    assert done.code == 1
    assert "(pgjobs.E003) the jobs of 'default' need Postgres, and it is sqlite" in done.err


# --- work


def test_what_a_handler_writes_by_the_orm_goes_the_way_of_its_job(shop: Project) -> None:
    ends = ("return", "raise", "set_rollback", "commit")
    shop.add_customers(*ends)
    shop.run(enqueue(*(f"Greet({end!r}, {end!r}, )" for end in ends)))
    with shop.work() as work:
        wait_until(lambda: all(state not in ("available", "running") for _, state, _ in shop.jobs), SOON)
        assert work.stop() == 0
    assert shop.greeted == {"return": 1, "raise": 0, "set_rollback": 0, "commit": 0}
    assert [state for _, state, _ in shop.jobs] == ["completed", "retryable", "retryable", "retryable"]
    assert shop.query("SELECT jsonb_array_length(errors) FROM pgjobs.job ORDER BY id") == [(0,), (1,), (1,), (1,)]


def test_the_job_of_a_killed_worker_has_written_nothing_and_is_run_again_once(shop: Project) -> None:
    shop.add_customers("ada")
    shop.run(enqueue("Greet('ada', 'wait')"))
    with shop.work() as work:
        (pid,) = work.wait_ready()
        wait_until(lambda: shop.starts == [(1, pid)], SOON)
        os.kill(pid, signal.SIGKILL)  # the parent starts another one
        wait_until(lambda: shop.jobs == [("greet", "completed", 2)], SOON)
        assert work.stop() == 0
    assert shop.greeted == {"ada": 1}
    assert [attempt for attempt, _ in shop.starts] == [1, 2]


def test_a_job_that_kills_its_process_is_discarded_after_its_attempts(shop: Project) -> None:
    shop.set(PGJOBS={"QUEUES": {"default": 1}})  # a crash with a neighbour does not count
    shop.add_customers("poison", "ada")
    shop.run("""
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet
        result = [enqueue(Greet("poison", "exit"), max_attempts=2).id, enqueue(Greet("ada")).id]
    """)
    with shop.work() as work:
        wait_until(lambda: [state for _, state, _ in shop.jobs] == ["discarded", "completed"], 2 * SOON)
        assert work.stop() == 0
    assert shop.greeted == {"poison": 0, "ada": 1}
    assert shop.query("SELECT count(*) FROM start JOIN pgjobs.job ON id = job WHERE state = 'discarded'") == [(2,)]


def test_a_thousand_jobs_on_eight_threads_take_no_more_connections_and_leave_none(shop: Project) -> None:
    shop.set(PGJOBS={"QUEUES": {"default": 8}})
    shop.add_customers(*map(str, range(1000)))
    shop.run("""
        from pgjobs.contrib.django import enqueue_many
        from shop.jobs import Greet
        result = enqueue_many([Greet(str(n)) for n in range(1000)], returning=False)
    """)
    seen: list[int] = []

    def done() -> bool:
        seen.append(shop.connections)
        return shop.query("SELECT count(*) FROM pgjobs.job WHERE state = 'completed'") == [(1000,)]

    with shop.work() as work:
        wait_until(done, 2 * SOON)
        assert work.stop() == 0
    # of each thread one for its jobs, and one that the test's handler keeps; the listener and the upkeep
    assert 8 < max(seen) <= 2 * 8 + 4
    assert set(shop.greeted.values()) == {1}
    wait_until(lambda: shop.connections == 0)


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer here")
def test_it_works_through_pgbouncer_in_transaction_mode(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tcp=True, fsync=False) as server,
        new_database(server.dsn) as dsn,
        pgbouncer(dsn) as port,
        project(tmp_path, dsn) as shop,
    ):
        shop.make_tables()
        pooled = django_database(through(dsn, port), DISABLE_SERVER_SIDE_CURSORS=True)
        shop.set(DATABASES={"default": pooled}, PGJOBS={"QUEUES": {"default": 6}, "LISTEN_DSN": dsn})
        shop.add_customers(*map(str, range(60)))
        with shop.work() as work:
            work.wait_ready()
            shop.run(enqueue(*(f"Greet('{n}', {'raise' if n % 10 == 9 else 'return'!r})" for n in range(60))))
            wait_until(lambda: all(state in ("completed", "retryable") for _, state, _ in shop.jobs), SOON)
            assert work.stop() == 0
            assert "prepared statement" not in work.log
        assert shop.greeted == {str(n): int(n % 10 != 9) for n in range(60)}


# --- between two jobs


@pytest.mark.parametrize("detached", [False, True], ids=["transactional", "detached"])
def test_what_django_looks_after_between_two_requests_is_looked_after_between_two_jobs(
    shop: Project, detached: bool
) -> None:
    shop.set(
        DEBUG=True,  # so that Django logs queries
        CACHES={"default": {"BACKEND": "shop.caching.Closing"}},
        DATABASES={"default": django_database(shop.dsn), "other": django_database(shop.dsn)},
    )
    shop.write(
        "shop/caching.py",
        """
        from django.core.cache.backends.dummy import DummyCache

        closed = []

        class Closing(DummyCache):
            def close(self, **kwargs):
                closed.append(self)
    """,
    )
    shop.write(
        "shop/jobs.py",
        f"""
        from dataclasses import dataclass
        from django.core.cache import cache
        from django.db import connection, connections
        from django.core.signals import request_finished, request_started
        from pgjobs.contrib.django import handles
        from shop.caching import closed

        seen = []
        signals = []

        def hear(signal, **_):
            signals.append(str(signal))

        request_started.connect(hear)
        request_finished.connect(hear)

        @dataclass
        class Look: ...

        @handles(Look, detached={detached})
        def look(tx, job):
            seen.append([len(connection.queries), connections["other"].connection is not None, len(closed) > 0])
            closed.clear()
            cache.get("anything")
            for each in connections.all():
                with each.cursor() as cursor:
                    cursor.execute("SELECT 1")
    """,
    )
    seen, signals = shop.run("""
        from django.apps import apps
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Look, seen, signals

        for _ in range(3):
            enqueue(Look())
        pool = apps.get_app_config("pgjobs").pool()
        while pool.work_one():
            pass
        result = seen, signals
    """)
    assert [each[:2] for each in seen] == [[0, False]] * 3
    assert [closed for _, _, closed in seen[1:]] == [True, True]
    assert signals == []


def test_a_cache_that_cannot_be_closed_changes_nothing(shop: Project) -> None:
    shop.add_customers("ada", "lin")
    shop.set(CACHES={"default": {"BACKEND": "shop.caching.Broken"}})
    shop.write(
        "shop/caching.py",
        """
        from django.core.cache.backends.dummy import DummyCache

        class Broken(DummyCache):
            def close(self, **kwargs):
                raise OSError("no such cache")
    """,
    )
    shop.run("""
        from django.apps import apps
        from django.core.cache import cache
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet

        cache.get("anything")
        enqueue(Greet("ada"))
        enqueue(Greet("lin"))
        pool = apps.get_app_config("pgjobs").pool()
        while pool.work_one():
            pass
        result = None
    """)
    assert shop.greeted == {"ada": 1, "lin": 1}
    assert shop.jobs == [("greet", "completed", 1)] * 2


def test_a_process_that_is_forked_has_a_client_of_its_own(shop: Project) -> None:
    """As under a server that imports the project and then forks."""
    assert (
        shop.run("""
        import os
        from django.db import connections
        from pgjobs.contrib.django import enqueue
        from shop.jobs import Greet

        enqueue(Greet("parent"))
        connections.close_all()
        child = os.fork()
        if child == 0:
            enqueue(Greet("child"))
            os._exit(0)
        result = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        enqueue(Greet("parent"))
    """)
        == 0
    )
    assert len(shop.jobs) == 3
