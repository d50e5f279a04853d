"""The statements of the dashboard that no call of the client makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pgjobs.db import statements
from pgjobs.db.cursors import AnyConnection, answers, literal_cursor
from pgjobs.interval import instant


class DashboardQueries:
    """The statements of one schema."""

    def __init__(self, schema: str) -> None:
        self._sql = statements.load("dashboard.sql", schema)

    def begin_reading(self, conn: AnyConnection) -> datetime:
        """Make the transaction READ ONLY, and return the time of the database."""
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["begin_reading"])
            ((now,),) = answers(cur)[-1]
            return instant(now)

    def begin_acting(self, conn: AnyConnection) -> None:
        with literal_cursor(conn) as cur:
            cur.execute(self._sql["begin_acting"])

    def write_audit(self, conn: AnyConnection, who: str, act: str, target: Mapping[str, Any], count: int) -> None:
        with literal_cursor(conn) as cur:
            values = {"who": who, "act": act, "target": json.dumps(target, default=str), "count": count}
            cur.execute(self._sql["write_audit"], values)
