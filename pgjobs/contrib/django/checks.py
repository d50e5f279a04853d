"""System checks of the app.

pgjobs.E001   PGJOBS has a setting that does not exist
pgjobs.E002   a setting is wrong: an alias that does not exist, or a value that the client or the pool refuses
pgjobs.E003   the alias is not a Postgres
pgjobs.E004   the alias is connected by psycopg2
pgjobs.W001   the tables are missing, or do not fit this version (`manage.py check --database ALIAS`)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from django.core import checks
from django.db import connections
from django.db.utils import Error

from pgjobs.contrib.django import settings
from pgjobs.contrib.django.shortcuts import config
from pgjobs.db import migrate
from pgjobs.db.borrow import borrow
from pgjobs.errors import MigrationError, PgjobsError, SchemaMissing


def register() -> None:
    """Register the checks; again is no harm."""
    checks.register(check_settings, "pgjobs")
    checks.register(check_tables, checks.Tags.database)


def check_settings(app_configs: object, **_: object) -> list[Any]:
    """What is wrong with PGJOBS and with its alias. Connects to nothing."""
    try:
        unknown = settings.unknown()
        if unknown:
            return [checks.Error(problem, id="pgjobs.E001") for problem in unknown]
        alias = settings.using()
        if alias in connections and (wrong := _backend(connections[alias])):
            return [wrong]
        config().pool()
        settings.dashboard_settings()
    except PgjobsError as error:
        return [checks.Error(str(error), hint="See PGJOBS in the settings.", id="pgjobs.E002")]
    return []


def _backend(connection: Any) -> Any:
    """What is wrong with the backend of the alias; None if nothing is."""
    if connection.vendor != "postgresql":
        return checks.Error(
            f"the jobs of {connection.alias!r} need Postgres, and it is {connection.vendor}",
            hint="Name another alias in PGJOBS['USING'].",
            id="pgjobs.E003",
        )
    if connection.Database.__name__ != "psycopg":
        return checks.Error(
            f"pgjobs needs psycopg 3, and {connection.alias!r} uses {connection.Database.__name__}",
            hint="Uninstall psycopg2: Django prefers psycopg where both are installed.",
            id="pgjobs.E004",
        )
    return None


def check_tables(app_configs: object, databases: Sequence[str] | None = None, **_: object) -> list[Any]:
    """Whether the tables fit this code, where the database may be asked."""
    try:
        alias = settings.using()
        if alias not in (databases or ()) or _backend(connections[alias]):
            return []
        migrate.check(borrow(alias), settings.schema())
    except SchemaMissing:
        return [_warning(f"there are no tables for the jobs in schema {settings.schema()!r} of {alias!r}")]
    except MigrationError as error:
        return [_warning(str(error))]
    except (PgjobsError, Error, psycopg.Error):  # wrong settings, or no database: the command says so itself
        return []
    return []


def _warning(text: str) -> Any:
    hint = (
        "`manage.py migrate` makes and changes the tables; so does `manage.py pgjobs migrate`, where Django takes its "
        "migrations for applied, as after a change of the schema."
    )
    return checks.Warning(text, hint=hint, id="pgjobs.W001")
