"""A web application for gunicorn, which enqueues one job for each request: /7 answers with the id of the job {"n": 7}.

FORKED_APP says where and how: DSN, schema, way, and what was done with the client before the fork.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any

from pgjobs import Client, Job

WAY = json.loads(os.environ["FORKED_APP"])
Enqueue = Callable[[int], Job[Any]]


def by_none(dsn: str, schema: str) -> tuple[Client, Enqueue]:
    client = Client(dsn, schema=schema)
    return client, lambda n: client.enqueue(None, {"n": n}, kind="forked")


def by_own_transaction(dsn: str, schema: str) -> tuple[Client, Enqueue]:
    client = Client(dsn, schema=schema)

    def enqueue(n: int) -> Job[Any]:
        with client.pool.connection() as tx:
            return client.enqueue(tx, {"n": n}, kind="forked")

    return client, enqueue


def by_sqlalchemy(dsn: str, schema: str) -> tuple[Client, Enqueue]:
    import psycopg
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), pool_size=8)
    client = Client(dsn, schema=schema)

    def enqueue(n: int) -> Job[Any]:
        with Session(engine) as session, session.begin():
            return client.enqueue(session, {"n": n}, kind="forked")

    return client, enqueue


def by_django(dsn: str, schema: str) -> tuple[Client, Enqueue]:
    import django
    from django.conf import settings
    from psycopg.conninfo import conninfo_to_dict

    said = conninfo_to_dict(dsn)
    settings.configure(
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "NAME": said["dbname"],
                "USER": said.get("user", ""),
                "PASSWORD": said.get("password", ""),
                "HOST": said.get("host", ""),
                "PORT": said.get("port", ""),
            }
        }
    )
    django.setup()
    client = Client(dsn, schema=schema)

    def enqueue(n: int) -> Job[Any]:
        from django.db import connection, transaction

        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            return client.enqueue("default", {"n": n}, kind="forked")

    return client, enqueue


def by_flask(dsn: str, schema: str) -> tuple[Client, Enqueue]:
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy
    from psycopg.conninfo import conninfo_to_dict
    from sqlalchemy import URL

    from pgjobs.contrib.flask import Pgjobs

    app, db = Flask("forked"), SQLAlchemy()
    where = {key: str(value) for key, value in conninfo_to_dict(dsn).items()}
    app.config.update(SQLALCHEMY_DATABASE_URI=URL.create("postgresql+psycopg", query=where), PGJOBS_SCHEMA=schema)
    db.init_app(app)
    jobs = Pgjobs(app, db)

    def enqueue(n: int) -> Job[Any]:
        with app.app_context():
            job = jobs.enqueue({"n": n}, kind="forked")
            db.session.commit()
            return job

    with app.app_context():
        return jobs.client, enqueue


WAYS = {
    "None": by_none,
    "own pool": by_own_transaction,
    "SQLAlchemy": by_sqlalchemy,
    "Django": by_django,
    "Flask": by_flask,
}

client, enqueue = WAYS[WAY["way"]](WAY["dsn"], WAY["schema"])
if WAY["before"] != "made":
    client.migrate()
if WAY["before"] == "used":
    for _ in range(3):
        client.enqueue(None, {"n": -1}, kind="before")
        enqueue(-1)


def application(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    job = enqueue(int(environ["PATH_INFO"].strip("/")))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(job.id).encode()]
