"""JobsMixin: the tests of a Django project, run by `manage.py test`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.documents import ROOT

SETTINGS = """
SECRET_KEY = "not a secret"
USE_TZ = True
DATABASES = {{"default": {database!r}}}
INSTALLED_APPS = ["pgjobs.contrib.django", "shop"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PGJOBS = {{"MIDDLEWARE": ["shop.jobs.counted"]}}
"""

JOBS = """
from dataclasses import dataclass

from django.db import transaction

from pgjobs.contrib.django import handles
from shop.models import Customer

seen = []


@dataclass
class Welcome:
    email: str


@handles(Welcome)
def welcome(connection, job):
    Customer.objects.filter(email=job.args.email).update(greeted=True)
    transaction.on_commit(lambda: seen.append("on_commit"))
    if not job.args.email:
        raise ValueError("no address")


def counted(tx, job, run):
    seen.append("middleware")
    run()
"""

MODELS = """
from django.db import connection, models
from django.db.models.signals import post_migrate


class Customer(models.Model):
    email = models.TextField(primary_key=True)
    greeted = models.BooleanField(default=False)


def migrate_jobs(**kwargs):
    from pgjobs.contrib.django import client

    client().migrate()  # what is there already stays as it is
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO pgjobs.queue (name) VALUES ('nightly') ON CONFLICT DO NOTHING")


post_migrate.connect(migrate_jobs)
"""

TESTS = """
import unittest

from django.db import connection
from django.test import TestCase, TransactionTestCase

from pgjobs import JobState
from pgjobs.contrib.django import client, enqueue
from pgjobs.contrib.django.test import JobsMixin
from shop.jobs import Welcome, seen
from shop.models import Customer


class Signup(JobsMixin, TestCase):
    def setUp(self):
        seen.clear()

    def test_it_greets(self):
        Customer.objects.create(email="ada@example.com")
        enqueue(Welcome("ada@example.com"))
        self.jobs.assert_enqueued(Welcome("ada@example.com"), queue="default")
        with self.assertNumQueries(1):
            with self.assertRaises(AssertionError):
                self.jobs.total(2)
            list(Customer.objects.all())
        self.assertEqual(self.jobs.drain().completed, 1)
        self.assertTrue(Customer.objects.get().greeted)
        self.assertEqual(seen, ["middleware", "on_commit"])

    def test_it_fails(self):
        done = self.jobs.perform(Welcome(""))
        self.assertEqual((done.outcome, done.job.last_error), ("retry", "no address"))
        self.assertEqual(seen, ["middleware"])

    def test_nothing_is_left(self):
        self.jobs.empty()
        self.assertEqual(client().count().total, 0)  # on a connection of its own

    def test_what_a_migration_made_is_there_after_a_class_that_was_skipped(self):
        self.assertIn("nightly", [queue.name for queue in client().queues.list()])


class Committed(JobsMixin, TransactionTestCase):
    def test_a_first_time(self):
        self.greet()

    def test_a_second_time(self):
        self.greet()

    def greet(self):
        self.jobs.empty()
        Customer.objects.create(email="ada@example.com")
        enqueue(Welcome("ada@example.com"))
        self.assertFalse(connection.in_atomic_block)
        self.assertEqual(self.jobs.drain().completed, 1)
        self.assertTrue(Customer.objects.get().greeted)
        self.assertEqual(client().list_jobs().jobs[0].state, JobState.COMPLETED)


@unittest.skip("its fixture is never set up")
class BeforeSignup(JobsMixin, TestCase):
    def test_nothing(self):
        pass


class NotTouched(JobsMixin, TransactionTestCase):
    def test_what_is_enqueued_without_looking(self):
        self.assertEqual(client().count().total, 0)
        enqueue(Welcome("ada@example.com"))

    test_what_is_enqueued_once_more = test_what_is_enqueued_without_looking
"""

MANAGE = """
import os
import sys

from django.core.management import execute_from_command_line

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
execute_from_command_line(sys.argv)
"""


@pytest.fixture
def project(tmp_path: Path, fresh_database: str) -> Path:
    where = {key: str(value) for key, value in conninfo_to_dict(fresh_database).items()}
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    named = {name: where.pop(key, "") for name, key in names.items()}
    database = {"ENGINE": "django.db.backends.postgresql", **named, "OPTIONS": where}
    (tmp_path / "shop").mkdir()
    files = {
        "settings.py": SETTINGS.format(database=database),
        "manage.py": MANAGE,
        "shop/__init__.py": "",
        "shop/models.py": MODELS,
        "shop/jobs.py": JOBS,
        "shop/tests.py": TESTS,
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_the_tests_of_a_project_pass_and_their_database_can_be_dropped(project: Path, fresh_database: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", "test", "--noinput", "-v", "2"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout
    assert "Ran 9 tests" in done.stdout
    with psycopg.connect(fresh_database) as conn:
        name = conn.info.dbname
        left = conn.execute("SELECT datname FROM pg_database WHERE datname LIKE %s", [f"test\\_{name}%"]).fetchall()
        assert left == []
