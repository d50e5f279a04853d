"""What many tests share: names of parametrized values, and small parts that say nothing of the test they are in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psycopg

from pgjobs import Job

Tx = psycopg.Connection[Any]
SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)

#: Sessions and locks of the test's own database: a server may be shared with other tests.
OF_THIS_DATABASE = "pg_stat_activity WHERE datname = current_database()"
SAME_DATABASE = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"


@dataclass
class Thing:
    """The args of a job of kind "thing"."""

    n: int = 0


def nothing(tx: Any, job: Job[Any]) -> None:
    """A handler."""


def shown(value: object) -> str:
    """Its repr without addresses: the processes of pytest-xdist must agree on the names of the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
