"""Where the tests of `pgjobs work` run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgjobs import Client
from tests.acceptance.work_command import APP, Place
from tests.conftest import Connect


@pytest.fixture
def place(tmp_path: Path, client: Client, connect: Connect, database: str) -> Place:
    """A directory with an application, and tables for it."""
    place = Place(tmp_path, database, client, connect(autocommit=True))
    place.make_tables()
    place.write(APP)
    return place
