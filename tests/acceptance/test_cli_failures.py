"""What goes wrong around the command line: servers, passwords, rights, readers that go, Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgjobs import Client, Discard, Job, WorkerPool, cli, roles_sql
from tests.acceptance.cli_program import BARE, PIPE, environment, of, run, start
from tests.waiting import wait_until


def test_without_a_command_the_help_says_which_there_are() -> None:
    done = run()
    assert (done.code, done.out) == (2, "")
    assert "usage: pgjobs" in done.err
    assert all(f"\n    {command} " in done.err for command in ("work", "list", "stats", "migrate"))


def test_no_server_is_one_line_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run("list", "--dsn", f"postgresql://me:hunter2@127.0.0.1:{port}/app")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("pgjobs: error: connection failed: ")
    assert "Connection refused" in done.err
    assert done.err.count("\n") == 1
    assert "hunter2" not in done.err


@contextmanager
def refusing_server() -> Iterator[int]:
    """A server that refuses every password, as Postgres does; gives its port."""

    def serve() -> None:
        while True:
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            with conn:
                length = int.from_bytes(conn.recv(4), "big")
                if length == 8:  # a request for SSL or GSS encryption
                    conn.recv(4)
                    conn.sendall(b"N")
                    length = int.from_bytes(conn.recv(4), "big")
                conn.recv(length)
                conn.sendall(b"R\0\0\0\x08\0\0\0\x03")  # a password in clear text, please
                conn.recv(1000)
                fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'
                conn.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def test_a_wrong_password_is_one_line_that_does_not_show_it() -> None:
    with refusing_server() as port:
        done = run("list", "--dsn", f"postgresql://me:hunter2@127.0.0.1:{port}/app?sslmode=disable&gssencmode=disable")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("pgjobs: error: ")
    assert 'password authentication failed for user "me"' in done.err
    assert done.err.count("\n") == 1
    assert "hunter2" not in done.err


def test_a_dsn_with_a_slip_does_not_show_its_password() -> None:
    for dsn in ("postgresql://me:hunt@er2@localhost/app", "postgresql+odd://me:hunter2@localhost/app", "hunter2"):
        done = run("list", "--dsn", dsn)
        assert done.code == 1
        assert done.err.startswith("pgjobs: error: the connection string ")
        assert "er2" not in done.err


@pytest.mark.parametrize(
    "words",
    [
        *(["list"], ["show", "1"], ["wait", "1"], ["enqueue", "test"], ["cancel", "--all"], ["delete", "1", "--yes"]),
        *(["queues", "list"], ["schedules", "list"], ["workers"], ["stats"]),
    ],
    ids=" ".join,
)
def test_missing_tables_are_said_with_what_to_do(
    database: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--dsn", database, "--schema", "nowhere"]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("pgjobs: error: there are no pgjobs tables in schema 'nowhere' ")
    assert "run `pgjobs migrate`" in said.err
    assert said.err.count("\n") == 1


@pytest.fixture
def roles(client: Client) -> Iterator[dict[str, str]]:
    """The dsn of a login role for each of the roles of `pgjobs roles`, and of one without any rights."""
    names = {name: f"{name}_{uuid.uuid4().hex[:8]}" for name in ("enqueuer", "worker", "viewer", "operator", "nobody")}
    own: Any = {name: role for name, role in names.items() if name != "nobody"}
    with client.pool.connection() as tx:
        tx.execute(roles_sql(client.schema, transaction=False, **own).encode())
        tx.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(names["nobody"])))
        for role in names.values():
            tx.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(role)))
    yield {name: make_conninfo(str(client.pool.conninfo), user=role) for name, role in names.items()}
    with client.pool.connection() as tx:
        for role in names.values():
            tx.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role)))
            tx.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))


def test_each_role_can_do_its_part_and_learns_which_right_it_lacks(
    client: Client, roles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    id = str(client.enqueue(None, {}, kind="test").id)

    def tried(role: str, *words: str) -> tuple[int, str]:
        code = cli.main([*words, "--dsn", roles[role], "--schema", client.schema])
        err = capsys.readouterr().err
        assert err.count("\n") <= 1
        return code, err

    for words in (["list"], ["show", id], ["queues", "list"], ["schedules", "list"], ["workers"], ["stats"]):
        assert tried("viewer", *words)[0] == 0, words
        assert tried("operator", *words)[0] == 0, words
    assert tried("enqueuer", "enqueue", "test")[0] == 0
    assert tried("operator", "update", id, "--set-priority", "1") == (0, "")
    assert tried("operator", "cancel", id) == (0, "")
    assert tried("operator", "retry", id) == (0, "")
    assert tried("operator", "queues", "pause", "default") == (0, "")
    assert tried("operator", "delete", id, "--yes") == (0, "")
    assert tried("viewer", "migrate", "--check") == (0, "")

    for role, words, needed in (
        ("viewer", ["cancel", "--all"], "pgjobs_operator"),
        ("viewer", ["enqueue", "test"], "pgjobs_enqueuer"),
        ("enqueuer", ["list"], "pgjobs_viewer"),
        ("enqueuer", ["wait", id], "pgjobs_viewer, granted without --hide-args"),
    ):
        code, err = tried(role, *words)
        assert code == 1
        assert err.startswith("pgjobs: error: permission denied for ")
        assert f"`pgjobs roles --sql --schema {client.schema}` prints what a role needs" in err
        assert err.endswith(f"; this command needs the rights of {needed}\n")
    code, err = tried("nobody", "list")
    assert code == 1
    assert "permission denied for schema" in err


def test_a_viewer_who_may_not_read_args_sees_the_rest(
    client: Client, roles: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(tx: Any, job: Job[Any]) -> None:
        job.record_output("her secret")
        raise Discard("her secret")

    own: Any = {role: conninfo_to_dict(dsn)["user"] for role, dsn in roles.items() if role != "nobody"}
    with client.pool.connection() as tx:
        tx.execute(roles_sql(client.schema, transaction=False, view_args=False, **own).encode())
    job = client.enqueue(None, {"to": "her secret"}, kind="test", tags=["tag"])
    with WorkerPool(client, {"test": fail}):
        client.wait(job)

    def said(*words: object) -> tuple[str, str]:
        assert cli.main([*map(str, words), "--dsn", roles["viewer"], "--schema", client.schema]) == 0
        out, err = capsys.readouterr()
        assert "her secret" not in out
        return out, err

    remark = "errors are not shown: this database role may not read them\n"
    out, err = said("list")
    assert (out.splitlines()[1].split()[:2], err) == ([str(job.id), "discarded"], remark)
    out, err = said("list", "--json")
    assert (json.loads(out)["errors"], json.loads(out)["last_error"], err) == (None, None, remark)
    for more in ([], ["--no-args"]):
        out, err = said("show", job.id, *more)
        assert "  not shown  args, errors, output and notes: this database role may not read them\n" in out
        assert "  tags       tag\n" in out
        assert err == ""
    shown = json.loads(said("show", job.id, "--json")[0])
    assert [shown[name] for name in ("args", "errors", "output", "tags")] == [None, None, None, ["tag"]]


def test_watch_goes_on_after_a_lost_connection(client: Client) -> None:
    client.enqueue(None, {}, kind="test")
    name = f"watch_{client.schema}"
    where = ["--dsn", make_conninfo(str(client.pool.conninfo), application_name=name), "--schema", client.schema]
    running = start("stats", "--watch", "100ms", "--json", *where, stdout=PIPE, stderr=PIPE, text=True)
    try:
        assert '"waiting": 1' in running.stdout.readline()
        with psycopg.connect(str(client.pool.conninfo), autocommit=True) as conn:
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = %s"
            assert conn.execute(query, [name]).fetchone() == (1,)
        client.enqueue(None, {}, kind="test")
        wait_until(lambda: '"waiting": 2' in running.stdout.readline(), timeout=30)
    finally:
        running.kill()
        running.communicate()


def test_list_into_head_ends_quietly(client: Client) -> None:
    with client.pool.connection() as tx:
        tx.execute(
            f"INSERT INTO {client.schema}.job (kind, args) SELECT 'test', '{{}}' FROM generate_series(1, 5000)".encode()
        )
    running = start("list", "--limit", "0", *of(client), stdout=PIPE, stderr=PIPE, text=True)
    assert running.stdout.readline().startswith(" ")
    running.stdout.close()
    assert (running.stderr.read(), running.wait(timeout=60)) == ("", 141)
    running.stderr.close()


def test_ctrl_c_is_130_and_no_traceback(client: Client) -> None:
    id = client.enqueue(None, {}, kind="test", queue="lonely").id
    name = f"wait_{client.schema}"
    where = ["--dsn", make_conninfo(str(client.pool.conninfo), application_name=name), "--schema", client.schema]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    running = start("wait", id, *where, stdout=PIPE, stderr=PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    with psycopg.connect(str(client.pool.conninfo), autocommit=True) as conn:
        asked = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state = 'idle' AND query = 'COMMIT'"
        )
        wait_until(lambda: (conn.execute(asked, [name]).fetchone() or [0])[0], timeout=30)  # between two looks
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out, err) == (130, "", "")


def test_a_terminal_that_cannot_show_a_character_is_no_error(client: Client) -> None:
    client.enqueue(None, {"city": "Zürich"}, kind="test")
    id = client.list_jobs().jobs[0].id
    done = run("show", id, *of(client), env={"PYTHONIOENCODING": "ascii"})
    assert (done.code, done.err) == (0, "")
    assert "Z\\xfcrich" in done.out


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_error(client: Client, closed: str) -> None:
    """As a service manager or a cron of old may start a program."""
    for words, code in ((["list"], 0), (["enqueue", "test", "--json"], 0), (["show", "0"], 1)):
        command = [sys.executable, "-c", BARE, *words, *of(client)]
        done = subprocess.run(
            ["sh", "-c", f'exec "$@" {closed}', "sh", *command],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        assert bool(done.stdout) == (words[0] == "enqueue" and ">&-" not in closed.split())
    assert len(client.list_jobs().jobs) == 1
