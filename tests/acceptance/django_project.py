"""A small Django project on disk, and its commands and programs as processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any, LiteralString

import psycopg
from psycopg.conninfo import conninfo_to_dict

from pgjobs import schema_sql
from tests.acceptance.cli_program import Done
from tests.acceptance.work_command import Work

ROOT = Path(__file__).parents[2]

MANAGE = """
import os, sys
from django.core.management import execute_from_command_line
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
execute_from_command_line(sys.argv)
"""

SETTINGS = """
import os
SECRET_KEY = "secret"
USE_TZ = True
ROOT_URLCONF = "shop.urls"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.messages",
    "django.contrib.sessions", "pgjobs.contrib.django", "shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware", "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [{
    "BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True,
    "OPTIONS": {"context_processors": [
        "django.template.context_processors.request", "django.contrib.auth.context_processors.auth",
        "django.contrib.messages.context_processors.messages",
    ]},
}]
"""

MODELS = """
from django.db import models

class Customer(models.Model):
    email = models.TextField(unique=True)
    greeted = models.IntegerField(default=0)
"""

# What happens is told in two tables: `start` is written at once through a connection of its own, Customer by the ORM.
JOBS = """
import os, threading, time
from dataclasses import dataclass
import psycopg
from django.db import connection, transaction
from django.db.models import F
from pgjobs.contrib.django import handles
from shop.models import Customer

beside = threading.local()

@dataclass
class Greet:
    email: str
    then: str = "return"

@handles(Greet)
def greet(tx, job):
    if not hasattr(beside, "conn"):
        beside.conn = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True)
    beside.conn.execute("INSERT INTO start VALUES (%s, %s, %s)", [job.id, job.attempt, os.getpid()])
    assert Customer.objects.filter(email=job.args.email).update(greeted=F("greeted") + 1) == 1
    match job.args.then:
        case "raise":
            raise ValueError("no further")
        case "set_rollback":
            transaction.set_rollback(True)
        case "commit":
            transaction.commit()
        case "exit":
            os._exit(3)
        case "wait" if job.attempt == 1:
            connection.cursor().execute("SELECT pg_sleep(60)")
"""

URLS = """
from django.contrib import admin
from django.http import JsonResponse
from django.urls import path
from pgjobs.contrib.django import aenqueue
from shop.jobs import Greet

async def enqueue(request):
    job = await aenqueue(Greet("ada@example.com"), priority=3)
    return JsonResponse({"kind": job.kind, "priority": job.priority})

urlpatterns = [path("admin/", admin.site.urls), path("enqueue/", enqueue)]
"""

TABLES = """
CREATE TABLE start (job bigint, attempt integer, pid integer);
CREATE TABLE shop_customer (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text NOT NULL UNIQUE, greeted integer NOT NULL);
"""


def django_database(dsn: str, **settings: Any) -> dict[str, Any]:
    """An entry of DATABASES."""
    where = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    named = {name: where.pop(key, "") for name, key in names.items()}
    return {"ENGINE": "django.db.backends.postgresql", **named, "OPTIONS": where, **settings}


class Project:
    """A project with the app `shop`, and its database as it looks from outside."""

    def __init__(self, directory: Path, dsn: str, conn: psycopg.Connection[Any]) -> None:
        self.directory = directory
        self.dsn = dsn
        self._conn = conn
        self._settings = SETTINGS
        self.write("manage.py", MANAGE)
        for name, text in {"__init__": "", "models": MODELS, "jobs": JOBS, "urls": URLS}.items():
            self.write(f"shop/{name}.py", text)
        self.set(DATABASES={"default": django_database(dsn)})

    def write(self, name: str, text: str) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))

    def set(self, **settings: object) -> None:
        """Add settings; each is written as its repr."""
        self._settings += "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        self.write("shop/settings.py", self._settings)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name[:2] != "PG" and name[:6] != "DJANGO"}
        return {**kept, "PYTHONPATH": str(ROOT), "DATABASE_URL": self.dsn}

    def manage(self, *arguments: str) -> Done:
        """`manage.py` with these arguments."""
        return self.call("manage.py", *arguments)

    def run(self, program: str) -> Any:
        """What a program leaves as its `result`, by way of JSON, with Django set up."""
        setup = "import json, django; django.setup()"
        text = f"{setup}\n{dedent(program)}\nprint(json.dumps(result))\n"
        done = self.call("-c", text, DJANGO_SETTINGS_MODULE="shop.settings")
        assert done.code == 0, done.err
        return json.loads(done.out)

    def call(self, *arguments: str, **environment: str) -> Done:
        """Python with these arguments."""
        done = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.directory,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def work(self, *options: str, cwd: Path | None = None) -> Iterator[Work]:
        """`manage.py pgjobs work`, killed on the way out with all that it has started."""
        log = self.directory / f"{len(list(self.directory.glob('*.log')))}.log"
        with (
            log.open("wb") as file,
            subprocess.Popen(
                [sys.executable, "-W", "error", str(self.directory / "manage.py"), "pgjobs", "work", *options],
                cwd=cwd or self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                process_group=0,
            ) as process,
        ):
            work = Work(process, log)
            try:
                yield work
            except AssertionError as error:
                error.add_note(f"its log:\n{work.log}")
                raise
            finally:
                process.kill()
                for pid in work.pids():
                    os.kill(pid, signal.SIGKILL)

    # --- the database

    def make_tables(self) -> None:
        """The tables that `manage.py migrate` would make for `shop`, and those of the jobs."""
        self._conn.execute(TABLES)
        self._conn.execute(schema_sql().encode())

    def query(self, sql: LiteralString, *values: object) -> list[Any]:
        cur = self._conn.execute(sql, values or None)
        return cur.fetchall() if cur.description else []

    @property
    def jobs(self) -> list[tuple[str, str, int]]:
        """The kind, state and attempt of each job."""
        return self.query("SELECT kind, state::text, attempt FROM pgjobs.job ORDER BY id")

    def add_customers(self, *emails: str) -> None:
        for email in emails:
            self.query("INSERT INTO shop_customer (email, greeted) VALUES (%s, 0)", email)

    @property
    def greeted(self) -> dict[str, int]:
        return dict(self.query("SELECT email, greeted FROM shop_customer ORDER BY id"))

    @property
    def starts(self) -> list[tuple[int, int]]:
        """The attempt and the process of each start of a handler."""
        return self.query("SELECT attempt, pid FROM start ORDER BY job, attempt")

    @property
    def connections(self) -> int:
        """How many others are connected to its database."""
        found = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ((count,),) = self.query(found)
        assert isinstance(count, int)
        return count


def enqueue(*jobs: str) -> str:
    """A program that enqueues these, each the text of an args instance."""
    return "from pgjobs.contrib.django import enqueue\nfrom shop.jobs import Greet\nresult = [" + (
        ", ".join(f"enqueue({job}).id" for job in jobs) + "]"
    )


@contextmanager
def project(directory: Path, dsn: str) -> Iterator[Project]:
    with psycopg.connect(dsn, autocommit=True) as conn:
        yield Project(directory, dsn, conn)
