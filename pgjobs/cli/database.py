"""Which database a command uses, and a client for it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pgjobs.application import ApplicationNotLoaded
from pgjobs.cli.app import App, Framework, load
from pgjobs.client import Client
from pgjobs.errors import PgjobsError, SchemaDamaged

# libpq finds the database by any of these environment variables.
_DATABASE_VARIABLES = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE")


@contextmanager
def connect(options: argparse.Namespace) -> Iterator[App]:
    """The client that the options name, on tables that fit this code.

    The first connection is made here, outside the pool: an unreachable server is an error at once, where a pool would
    try again for half a minute. Damage that a worker pool repairs at its start hinders no command.
    """
    with client_of(options) as app:
        with suppress(SchemaDamaged):
            app.client.check_schema()
        yield app


@contextmanager
def client_of(options: argparse.Namespace) -> Iterator[App]:
    """The client that the options name; whether the tables exist is for the caller to see."""
    app = _app_of(options)
    if app is None:
        with Client(_dsn(options), schema=options.schema or "pgjobs") as client:
            yield App(client)
        return
    if options.schema is not None:
        raise PgjobsError("the app decides the schema: leave out --schema, or give --dsn in place of the app")
    with _opened(app):
        yield app


def schema_of(options: argparse.Namespace) -> str:
    """The schema, for commands that need no database."""
    app = None if options.schema is not None else _app_of(options)
    schema: str = app.client.schema if app is not None else options.schema or "pgjobs"
    return schema


def _app_of(options: argparse.Namespace) -> App | None:
    """The app that is named, or that of the framework, unless the command line names a database instead."""
    dsn = getattr(options, "dsn", None)
    if options.app and dsn:
        raise PgjobsError("--app and --dsn name two databases: give one of them")
    framework: Framework | None = options.framework
    if dsn:
        return None
    if framework is not None and not options.app:
        return framework.load()
    name = options.app or os.environ.get("PGJOBS_APP")
    return _load(options, name) if name else None


def _load(options: argparse.Namespace, name: str) -> App:
    try:
        return load(name)
    except ApplicationNotLoaded as error:
        if not options.app:  # the user may have forgotten what the environment says
            error.add_note("the app is that of PGJOBS_APP")
        raise


@contextmanager
def _opened(app: App) -> Iterator[None]:
    """Open the pool of the application, if it left that to its own start."""
    source = app.client.source
    if source.owned or not source.pool.closed:
        yield
        return
    with source.pool:
        yield


def _dsn(options: argparse.Namespace) -> str:
    dsn: str | None = options.dsn or os.environ.get("DATABASE_URL")
    if dsn:
        return dsn
    if any(os.environ.get(name) for name in _DATABASE_VARIABLES):
        return "application_name=pgjobs"  # libpq reads the environment
    raise PgjobsError(
        "which database? give --dsn or --app, or set DATABASE_URL, PGJOBS_APP or one of "
        + ", ".join(_DATABASE_VARIABLES)
    )
