"""The operation of the app's migrations."""

from __future__ import annotations

from typing import Any

from django.db import router
from django.db.migrations.operations.base import Operation, OperationCategory

from pgjobs.contrib.django import settings
from pgjobs.db.migrate import schema_sql
from pgjobs.errors import InvalidSetting


class MigrateTables(Operation):  # type: ignore[misc]  # Django has no types
    """One migration of pgjobs: the step to its version, and back.

    The SQL skips a step that `pgjobs migrate` or `client.migrate()` has taken before. It runs on the alias of
    `PGJOBS["USING"]` alone, and where the routers allow the app.
    """

    category = OperationCategory.SQL
    reversible = True
    reduces_to_sql = True

    def __init__(self, version: int) -> None:
        self.version = version

    def state_forwards(self, app_label: str, state: Any) -> None:
        pass

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._take(app_label, schema_editor, start=self.version - 1, target=self.version)

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        self._take(app_label, schema_editor, start=self.version, target=self.version - 1)

    def describe(self) -> str:
        return f"Tables of pgjobs, version {self.version}"

    @property
    def migration_name_fragment(self) -> str:
        return f"tables_{self.version}"

    def _take(self, app_label: str, schema_editor: Any, *, start: int, target: int) -> None:
        connection = schema_editor.connection
        if connection.alias != settings.using() or not router.allow_migrate(connection.alias, app_label):
            return
        if connection.vendor != "postgresql":
            raise InvalidSetting(
                f"pgjobs needs Postgres, and {connection.alias!r} is {connection.vendor}: name another alias in "
                "PGJOBS['USING'], or use django.db.backends.postgresql"
            )
        # without parameters: a percent sign in it is just that
        schema_editor.execute(schema_sql(settings.schema(), start=start, target=target, transaction=False), params=None)
