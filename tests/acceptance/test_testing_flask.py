"""pgjobs.testing in a Flask app: handlers have an app context, and `db.session` is the job's Session."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgjobs import InvalidTransaction, Job
from pgjobs.contrib.flask import Pgjobs
from pgjobs.testing import Jobs


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(model_class=Base)
pgjobs = Pgjobs(db=db)


class Account(db.Model):  # type: ignore[name-defined,misc]
    email: Mapped[str] = mapped_column(String, primary_key=True)
    greeted: Mapped[bool] = mapped_column(default=False)


@dataclass
class Welcome:
    email: str


@pgjobs.handles(Welcome)
def welcome(session: Session, job: Job[Welcome]) -> None:
    assert db.session() is session
    assert current_app.name == __name__
    db.session.get_one(Account, job.args.email).greeted = True
    if job.args.email == "fails":
        raise KeyError
    if job.args.email == "removes":
        db.session.remove()
        db.session.add(Account(email="apart"))
        db.session.commit()


@pytest.fixture
def app(fresh_database: str) -> Iterator[Flask]:
    app = Flask(__name__)
    where: dict[str, Any] = {name: str(value) for name, value in conninfo_to_dict(fresh_database).items()}
    app.config["SQLALCHEMY_DATABASE_URI"] = URL.create("postgresql+psycopg", query=where)
    db.init_app(app)
    pgjobs.init_app(app)
    with app.app_context():
        db.create_all()
        pgjobs.client.migrate()
        yield app
        db.session.remove()
        pgjobs.client.close()
        db.engine.dispose()


def test_a_job_of_a_flask_app_runs_in_the_session_of_the_test(app: Flask) -> None:
    jobs = Jobs(pgjobs.client, db.session, pgjobs.work_map)
    ours = db.session()
    for email in ("ada", "fails"):
        db.session.add(Account(email=email))
        pgjobs.enqueue(Welcome(email))
    jobs.assert_many_enqueued([Welcome("ada"), Welcome("fails")])
    drained = jobs.drain()
    assert (drained.completed, drained.retried) == (1, 1)
    assert db.session() is ours
    assert [db.session.get_one(Account, email).greeted for email in ("ada", "fails")] == [True, False]
    db.session.rollback()
    assert jobs.empty()
    assert db.session.query(Account).count() == 0


def test_a_session_after_a_remove_is_refused_as_in_a_worker(app: Flask) -> None:
    db.session.add(Account(email="removes"))
    done = Jobs(pgjobs.client, db.session, pgjobs.work_map).perform(Welcome("removes"))
    assert isinstance(done.error, InvalidTransaction)
    assert db.session.get_one(Account, "removes").greeted is False
    db.session.rollback()
    assert db.session.query(Account).count() == 0
