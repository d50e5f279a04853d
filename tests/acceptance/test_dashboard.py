"""The dashboard: its pages, and who may see them and change something."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg import sql

from pgjobs import Client
from pgjobs.dashboard import User
from tests.acceptance.dashboard_site import LOCAL, Site
from tests.samples import Thing


def audit(client: Client) -> list[tuple[Any, ...]]:
    with client.pool.connection() as conn:
        table = sql.Identifier(client.schema, "audit")
        statement = sql.SQL("SELECT who, act, target, count FROM {} ORDER BY id").format(table)
        return list(conn.execute(statement).fetchall())


def test_an_action_and_its_audit_commit_together(client: Client) -> None:
    client.enqueue(None, Thing(1))
    site = Site(client)
    assert "1 queue paused." in site.act("/queues/pause", {"name": "default"})
    assert client.queues.list()[0].paused_at is not None
    assert audit(client) == [("local", "pause-queues", {"queue": "default"}, 1)]
    assert site.post("/queues/pause", {"name": "other"}).status_code == 404
    assert len(audit(client)) == 1


@pytest.mark.parametrize("environ", [{}, {"REMOTE_ADDR": "10.0.0.1"}, {**LOCAL, "HTTP_X_FORWARDED_FOR": "10.0.0.1"}])
def test_without_auth_it_answers_this_machine_alone(client: Client, environ: dict[str, Any]) -> None:
    response = Site(client)._browser.get("/", environ_overrides=environ)
    assert response.status_code == 403
    assert client.schema not in response.text


def test_a_viewer_changes_nothing(client: Client) -> None:
    client.enqueue(None, Thing(1))
    for site in (Site(client, auth=lambda environ: User("eve")), Site(client, read_only=True)):
        assert "Pause</button>" not in site.page("/queues")
        assert site.post("/queues/pause", {"name": "default"}).status_code == 403
    assert audit(client) == []
