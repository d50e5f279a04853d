"""The tables of the jobs by the migrations of Django, and the check whether they are there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgjobs import Client, schema_sql
from pgjobs.db.migration_plan import versions
from tests.acceptance.django_project import Project, django_database, project
from tests.conftest import new_database

MIGRATIONS = Path(__file__).parents[2] / "pgjobs" / "contrib" / "django" / "migrations"


@pytest.fixture
def shop(tmp_path: Path, fresh_database: str) -> Iterator[Project]:
    with project(tmp_path, fresh_database) as shop:
        yield shop


def tables(shop: Project) -> list[str]:
    found = "SELECT schemaname || '.' || tablename FROM pg_tables WHERE tablename = 'job' ORDER BY 1"
    return [name for (name,) in shop.query(found)]


def assert_fit(dsn: str, schema: str = "pgjobs") -> None:
    with Client(dsn, schema=schema) as client:
        client.check_schema()


def test_there_is_one_migration_of_django_for_each_of_ours() -> None:
    files = sorted(path.name for path in MIGRATIONS.glob("0*.py"))
    assert files == [f"{version:04}_{name}.py" for version, name in sorted(versions().items())]
    for version, name in versions().items():
        assert f"MigrateTables({version})" in (MIGRATIONS / f"{version:04}_{name}.py").read_text()


@pytest.mark.parametrize("before", ["nothing", "migrate()", "a job"])
def test_they_are_made_on_an_empty_database_and_taken_over_where_they_are(shop: Project, before: str) -> None:
    if before != "nothing":
        with Client(shop.dsn) as client:
            client.migrate()
            if before == "a job":
                client.enqueue(None, {"n": 1}, kind="test")
    done = shop.manage("migrate")
    assert done.code == 0, done.err
    assert "Applying pgjobs.0001_tables... OK" in done.out
    assert_fit(shop.dsn)
    assert len(shop.jobs) == (before == "a job")
    again = shop.manage("migrate")
    assert "No migrations to apply." in again.out
    assert shop.manage("pgjobs", "migrate").out == "nothing to do\n"


def test_they_are_removed_and_made_again(shop: Project) -> None:
    assert shop.manage("migrate").code == 0
    done = shop.manage("migrate", "pgjobs", "zero")
    assert done.code == 0, done.err
    assert tables(shop) == []
    assert shop.manage("migrate").code == 0
    assert_fit(shop.dsn)


def test_they_stand_in_the_schema_of_the_settings(shop: Project) -> None:
    shop.set(PGJOBS={"SCHEMA": "shop_jobs"})
    assert shop.manage("migrate").code == 0
    assert tables(shop) == ["shop_jobs.job"]
    assert_fit(shop.dsn, "shop_jobs")
    assert shop.run("""
        from pgjobs.contrib.django import enqueue
        from pgjobs.contrib.django.models import Job
        from shop.jobs import Greet

        job = enqueue(Greet("ada"))
        result = [found.args for found in Job.objects.filter(id=job.id)]
    """) == [{"email": "ada", "then": "return"}]
    assert "No changes detected" in shop.manage("makemigrations", "--check", "--dry-run", "pgjobs").out


@pytest.mark.parametrize("using", ["default", "jobs"])
def test_they_are_made_on_the_chosen_alias_alone(shop: Project, server_dsn: str, using: str) -> None:
    with new_database(server_dsn) as other_dsn, project(shop.directory / "other", other_dsn) as other:
        shop.set(
            DATABASES={"default": django_database(shop.dsn), "jobs": django_database(other_dsn)},
            PGJOBS={"USING": using},
        )
        for alias in ("default", "jobs"):
            done = shop.manage("migrate", "--database", alias)
            assert done.code == 0, done.err
        assert (tables(shop), tables(other)) == ((["pgjobs.job"], []) if using == "default" else ([], ["pgjobs.job"]))


def test_a_router_may_forbid_them(shop: Project) -> None:
    shop.write(
        "shop/routing.py",
        """
        class NoJobs:
            def allow_migrate(self, db, app_label, **hints):
                return None if app_label != "pgjobs" else False
    """,
    )
    shop.set(DATABASE_ROUTERS=["shop.routing.NoJobs"])
    assert shop.manage("migrate").code == 0
    assert tables(shop) == []


def test_sqlmigrate_shows_the_sql_and_no_migration_is_missing(shop: Project) -> None:
    done = shop.manage("sqlmigrate", "pgjobs", "0001")
    assert done.code == 0, done.err
    assert schema_sql(target=1, transaction=False).strip() in done.out
    assert tables(shop) == []
    back = shop.manage("sqlmigrate", "pgjobs", "0001", "--backwards")
    assert schema_sql(start=1, target=0, transaction=False).strip() in back.out
    done = shop.manage("makemigrations", "--check", "--dry-run", "pgjobs")
    assert (done.code, "No changes detected" in done.out) == (0, True), done.out


def test_the_sql_that_is_shown_makes_the_tables(shop: Project) -> None:
    shop.query(shop.manage("sqlmigrate", "pgjobs", "0001").out)
    assert_fit(shop.dsn)


def test_the_test_database_has_them(shop: Project) -> None:
    shop.write("shop/migrations/__init__.py", "")
    assert shop.manage("makemigrations", "shop").code == 0
    shop.write(
        "shop/tests.py",
        """
        from django.db import connection, transaction
        from django.test import TestCase, TransactionTestCase
        from pgjobs.contrib.django import enqueue
        from pgjobs.contrib.django.models import Job
        from shop.jobs import Greet

        class RolledBack(TestCase):
            def test_first(self):
                enqueue(Greet("ada"))
                self.assertEqual(Job.objects.count(), 1)

            def test_second(self):
                enqueue(Greet("ada"))
                self.assertEqual([job.args["email"] for job in Job.objects.all()], ["ada"])

        class Committed(TransactionTestCase):
            def test_commit(self):
                with transaction.atomic():
                    enqueue(Greet("ada"))
                self.assertTrue(connection.settings_dict["NAME"].startswith("test_"))
                self.assertEqual(Job.objects.count(), 1)
    """,
    )
    done = shop.manage("test")
    assert done.code == 0, done.err
    assert re.search(r"Ran 3 tests.*\n\nOK", done.err, re.DOTALL)
    assert tables(shop) == [], "only the test database had them"


# --- the check


def test_the_check_says_when_they_are_missing_or_wrong(shop: Project) -> None:
    def check(*arguments: str) -> str:
        done = shop.manage("check", *arguments)
        assert done.code == 0, done.err
        return done.err

    assert "pgjobs.W001" not in check(), "it asks no database unless it is told to"
    missing = check("--database", "default")
    assert "(pgjobs.W001) there are no tables for the jobs in schema 'pgjobs' of 'default'" in missing
    assert "HINT: `manage.py migrate` makes and changes the tables; so does" in missing
    assert shop.manage("migrate").code == 0
    assert "pgjobs.W001" not in check("--database", "default")
    shop.query("INSERT INTO pgjobs.migration (version, name, digest) SELECT 99, 'later', 'x'")
    assert "schema 'pgjobs' is at version 99, this code knows only" in check("--database", "default")


def test_the_check_of_a_database_that_is_away_leaves_that_to_the_command(shop: Project) -> None:
    shop.set(DATABASES={"default": django_database("host=/nowhere dbname=none")})
    done = shop.manage("check", "--database", "default")
    assert "pgjobs" not in done.err.replace("pgjobs/", "")
