"""What many tests share: names of parametrized values, and small parts that say nothing of the test they are in."""

from __future__ import annotations

import re

#: Sessions and locks of the test's own database: a server may be shared with other tests.
OF_THIS_DATABASE = "pg_stat_activity WHERE datname = current_database()"
SAME_DATABASE = "database = (SELECT oid FROM pg_database WHERE datname = current_database())"


def shown(value: object) -> str:
    """Its repr without addresses: the processes of pytest-xdist must agree on the names of the tests."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
