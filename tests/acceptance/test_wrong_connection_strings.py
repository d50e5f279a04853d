"""A connection string where a transaction, an alias or another object is wanted: the error must not repeat it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest
from django.conf import settings
from flask import Flask
from sqlalchemy import create_engine

import tests.acceptance.frameworks  # noqa: F401  configures Django
from pgjobs import Client, PgjobsError
from pgjobs.contrib.django import DjangoSource
from pgjobs.contrib.django.settings import schema
from pgjobs.contrib.flask import Pgjobs
from pgjobs.contrib.sqlalchemy import SQLAlchemySource
from tests.samples import Thing

DSNS = ["postgresql://me:passw0rd@nowhere.invalid/none", "host=nowhere.invalid password=passw0rd"]


def read_django_settings(dsn: str) -> object:
    settings.PGJOBS = dsn
    try:
        return schema()
    finally:
        del settings.PGJOBS


CALLS: dict[str, Callable[[Client, Any], object]] = {
    "enqueue": lambda client, dsn: client.enqueue(dsn, Thing()),
    "cancel": lambda client, dsn: client.cancel(1, dsn),
    "aenqueue": lambda client, dsn: asyncio.run(client.aenqueue(dsn, Thing())),
    "Flask": lambda client, dsn: Pgjobs(dsn),
    "db of Flask": lambda client, dsn: Pgjobs(Flask("shop"), dsn),
    "DjangoSource": lambda client, dsn: DjangoSource(dsn),
    "PGJOBS of Django": lambda client, dsn: read_django_settings(dsn),
    "SQLAlchemySource": lambda client, dsn: SQLAlchemySource(dsn),
    "session of SQLAlchemySource": lambda client, dsn: SQLAlchemySource(
        create_engine("postgresql+psycopg://"), session=dsn
    ),
}


@pytest.mark.parametrize("dsn", DSNS, ids=["URL", "words"])
@pytest.mark.parametrize("call", [*CALLS, "enqueue without Django", "aenqueue without Django"])
def test_a_connection_string_in_the_wrong_place_is_refused_without_its_password(
    call: str, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if call.endswith(" without Django"):
        monkeypatch.delitem(sys.modules, "django.db")
    with Client("postgresql://nowhere.invalid/none") as client, pytest.raises(PgjobsError, match="a str") as refused:
        CALLS[call.removesuffix(" without Django")](client, dsn)
    assert "passw0rd" not in str(refused.value)
