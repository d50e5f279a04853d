"""A client, and what hangs on it, in the children of a process that has made or used it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pgjobs import Client, JobFilter
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PORT_TAKEN = 5  # tries to find one that nobody takes in between


# --- gunicorn


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def gunicorn(log: Path, *options: str, **app: str) -> Iterator[int]:
    """Serves tests.acceptance.forked_app on the port that is given."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", *options, "--bind", f"127.0.0.1:{port}"]
    environ = {**os.environ, "FORKED_APP": json.dumps(app)}
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "tests.acceptance.forked_app:application"], cwd=ROOT, env=environ, stderr=output
        )
        try:
            wait_until(lambda: server.poll() is not None or answers(port), timeout=30)
            assert server.poll() is None, log.read_text()
            yield port
        finally:
            server.terminate()
            server.wait(20)


def ask_for(port: int, numbers: range) -> list[tuple[int, int, float]]:
    """Number, id of its job, and the seconds that this took."""
    got = []
    for n in numbers:
        began = time.monotonic()
        asked = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        asked.request("GET", f"/{n}")
        answer = asked.getresponse()
        text = answer.read()
        asked.close()
        assert answer.status == 200, text
        got.append((n, int(text), time.monotonic() - began))
    return got


WAYS = ("None", "own pool", "SQLAlchemy", "Django", "Flask")
SETUPS = [f"{before} {threads}" for before in ("made", "migrated", "used") for threads in (1, 4)]
SHORT = [("None", "made 1"), ("own pool", "migrated 4"), *((way, f"used {n}") for way in WAYS for n in (1, 4))]


@pytest.mark.finding("W1")
@pytest.mark.parametrize(
    ("way", "setup"),
    [
        pytest.param(way, setup, marks=[] if (way, setup) in SHORT else [pytest.mark.slow])
        for way in WAYS
        for setup in SETUPS
    ],
)
def test_the_workers_of_a_preloaded_gunicorn_enqueue_each_for_itself(
    client: Client, database: str, tmp_path: Path, way: str, setup: str
) -> None:
    """Children of a process that had made or used a client shared its connections: the ids of other jobs came back,
    enqueues hung, or were rolled back with another child's transaction."""
    before, _, threads = setup.partition(" ")
    options = ["--threads", threads] if threads != "1" else []
    total, askers = 500, 6
    log = tmp_path / "gunicorn.log"
    with (
        gunicorn(log, *options, dsn=database, schema=client.schema, way=way, before=before) as port,
        ThreadPoolExecutor(askers) as several,
    ):
        parts = [range(start, total, askers) for start in range(askers)]
        got = [one for part in several.map(lambda numbers: ask_for(port, numbers), parts) for one in part]
    stored = {
        job.id: json.loads(job.raw_args)["n"] for job in client.list_jobs(JobFilter(kinds=["forked"]), limit=1000).jobs
    }
    made_before = [n for n in stored.values() if n < 0]
    assert {id: n for n, id, _ in got} == {id: n for id, n in stored.items() if n >= 0}
    assert len(got) == total
    assert len(made_before) == (3 if before == "used" else 0)
    assert max(seconds for _, _, seconds in got) < 2.0
    assert "Traceback" not in log.read_text()


# --- without a server: programs that fork


def outcome(program: str, *args: str, timeout: float = 60) -> str:
    """What a program prints; it must end by itself, and well."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


BEGIN = """
import multiprocessing, os, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
import psycopg
from psycopg_pool import ConnectionPool
from pgjobs import Client, UsedAfterFork, WorkerPool

dsn, schema = sys.argv[1:3]

def in_child(act, *args):
    \"\"\"Fork, do this in the child, and give the exit code of that.\"\"\"
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act(*args)
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def refused(act, *args):
    try:
        act(*args)
    except UsedAfterFork as error:
        return str(error)
    raise AssertionError("not refused")
"""


def kinds_of(client: Client) -> list[str]:
    return sorted(job.kind for job in client.list_jobs(limit=10_000).jobs)


@pytest.fixture
def run(client: Client, database: str) -> Any:
    return lambda program: outcome(BEGIN + program, database, client.schema)


@pytest.mark.finding("W1")
def test_a_child_that_closes_its_client_leaves_the_parents_connections_alone(client: Client, run: Any) -> None:
    """close() in a child cut the connections of the parent."""
    printed = run("""
client = Client(dsn, schema=schema)
client.enqueue(None, {}, kind="parent")
with client.pool.connection() as conn:
    before = conn.info.backend_pid
pool = client.pool

def child():
    print(refused(pool.getconn), flush=True)
    client.close()
    pool.close()

assert in_child(child) == 0
assert in_child(lambda: Client.close(client)) == 0
client.enqueue(None, {}, kind="parent")
with client.pool.connection() as conn:
    assert conn.info.backend_pid == before
client.close()
""")
    assert "use client.pool again in the child" in printed
    assert kinds_of(client) == ["parent"] * 2


@pytest.mark.finding("W1")
def test_a_child_that_ends_as_any_program_does_leaves_the_parents_connections_alone(client: Client, run: Any) -> None:
    """What runs when an interpreter ends, also in a child, closed the pool and cut the connections of the parent."""
    run("""
client = Client(dsn, schema=schema)
client.enqueue(None, {}, kind="parent")
with client.pool.connection() as conn:
    before = conn.info.backend_pid
for used in (False, True):
    pid = os.fork()
    if pid == 0:
        if used:
            client.enqueue(None, {}, kind="child")
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    client.enqueue(None, {}, kind="parent")
with client.pool.connection() as conn:
    assert conn.info.backend_pid == before
""")
    assert kinds_of(client) == ["child"] + ["parent"] * 3


@pytest.mark.finding("W1")
@pytest.mark.parametrize("used", ["", "client.migrate()", "client.enqueue(None, {}, kind='before')"], ids=str)
def test_children_of_children_enqueue_each_for_itself(client: Client, run: Any, used: str) -> None:
    """As uwsgi and Celery do it: several children of a master, which fork again."""
    printed = run(f"""
client = Client(dsn, schema=schema)
{used}

def enqueue(name):
    for number in range(20):
        job = client.enqueue(None, {{"from": name, "number": number}}, kind="child")
        own = client.id.split("-")[-2] == str(os.getpid())
        os.write(1, f"{{job.id}} {{name}} {{number}} {{own}}\\n".encode())

def child(name):
    enqueue(name)
    assert in_child(enqueue, name + "x") == 0
    enqueue(name)

children = []
for name in "abc":
    pid = os.fork()
    if pid == 0:
        try:
            child(name)
        finally:
            os._exit(0)
    children.append(pid)
enqueue("m")
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
""")
    lines = [line.split() for line in printed.splitlines()]
    said = {int(id): (name, int(number)) for id, name, number, _ in lines}
    stored = {job.id: json.loads(job.raw_args) for job in client.list_jobs(JobFilter(kinds=["child"]), limit=1000).jobs}
    assert said == {id: (args["from"], args["number"]) for id, args in stored.items()}
    assert len(lines) == len(said) == 20 * (3 * 3 + 1)
    assert {own for _, _, _, own in lines} == {"True"}, "a child has an id of its own"


@pytest.mark.finding("W1")
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing_whatever_way_it_starts_processes(
    client: Client, database: str, tmp_path: Path, method: str
) -> None:
    """A forked process shared the connections of its parent."""
    (tmp_path / "program.py").write_text("""
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from pgjobs import Client

client = Client(*sys.argv[1:2], schema=sys.argv[2])

def enqueue(number):
    return client.enqueue(None, {"number": number}, kind="child").id

if __name__ == "__main__":
    client.enqueue(None, {}, kind="parent")
    ways = multiprocessing.get_context(sys.argv[3])
    with ProcessPoolExecutor(2, mp_context=ways) as several:
        ids = list(several.map(enqueue, range(60)))
    one = ways.Process(target=enqueue, args=(60,))
    one.start()
    one.join()
    assert one.exitcode == 0
    client.enqueue(None, {}, kind="parent")
    print(*ids)
""")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(tmp_path / "program.py"), database, client.schema, method],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    stored = {job.id: json.loads(job.raw_args) for job in client.list_jobs(JobFilter(kinds=["child"]), limit=1000).jobs}
    assert [stored[int(id)]["number"] for id in done.stdout.split()] == list(range(60))
    assert len(stored) == 61


@pytest.mark.finding("W1")
def test_a_fork_in_the_middle_of_an_enqueue_of_another_thread(client: Client, run: Any) -> None:
    """The child had the other thread's connection and locks, and nobody to give them back."""
    run("""
client = Client(dsn, schema=schema)
enough = threading.Event()
counts = []

def enqueue_all_the_time():
    counts.append(0)
    own = len(counts) - 1
    while not enough.is_set():
        client.enqueue(None, {}, kind="parent")
        counts[own] += 1

threads = [threading.Thread(target=enqueue_all_the_time) for _ in range(3)]
for thread in threads:
    thread.start()
for number in range(30):
    began = time.monotonic()
    assert in_child(lambda: [client.enqueue(None, {}, kind="child") for _ in range(3)]) == 0
    assert time.monotonic() - began < 10
enough.set()
for thread in threads:
    thread.join()
rows = psycopg.connect(dsn).execute(f"SELECT kind, count(*) FROM {schema}.job GROUP BY kind ORDER BY kind").fetchall()
assert rows == [("child", 90), ("parent", sum(counts))], (rows, counts)
""")


@pytest.mark.finding("W1")
def test_a_fork_that_python_is_not_told_of(client: Client, run: Any) -> None:
    """uwsgi forks by itself, and runs nothing that Python runs in a child."""
    run("""
import ctypes
client = Client(dsn, schema=schema)
client.enqueue(None, {}, kind="parent")
with client.pool.connection() as conn:
    before = conn.info.backend_pid
pid = ctypes.CDLL(None).fork()
if pid == 0:
    code = 1
    try:
        for _ in range(5):
            client.enqueue(None, {}, kind="child")
        code = 0
    finally:
        os._exit(code)
assert os.waitpid(pid, 0)[1] == 0
client.enqueue(None, {}, kind="parent")
with client.pool.connection() as conn:
    assert conn.info.backend_pid == before
""")
    assert kinds_of(client) == ["child"] * 5 + ["parent"] * 2


@pytest.mark.finding("W1")
@pytest.mark.parametrize("before", ["enqueue", "made", "stopped"])
def test_a_worker_pool_of_the_child_works(client: Client, run: Any, before: str) -> None:
    """A worker pool in the child of a process that had made a client worked nothing, and ignored that it was to end."""
    made = {
        "enqueue": "client.enqueue(None, {}, kind='work')\nmake = lambda: WorkerPool(client, work_map)",
        "made": "pool = WorkerPool(client, work_map)\nmake = lambda: pool",
        "stopped": "pool = WorkerPool(client, work_map)\npool.start()\npool.stop()\nmake = lambda: pool",
    }[before]
    printed = run(f"""
import signal
client = Client(dsn, schema=schema)
work_map = {{"work": lambda tx, job: print(f"{{job.attempted_by[0]}} {{os.getpid()}}\\n", end="", flush=True)}}
{made}
client.enqueue(None, {{}}, kind="work")

def child():
    heard = client.subscribe()
    pool = make()
    threading.Timer(0.1, lambda: [heard.get(), os.kill(os.getpid(), signal.SIGTERM)]).start()
    pool.run()
    assert [worker.id for worker in client.workers()] == []

assert in_child(child) == 0
""")
    workers = {line.split()[0] for line in printed.splitlines()}
    pids = {line.split()[1] for line in printed.splitlines()}
    assert len(workers) == len(pids) == 1
    assert workers.pop().split("-")[-2] == pids.pop()


@pytest.mark.finding("W1")
def test_a_running_worker_pool_is_the_parents_alone(client: Client, run: Any) -> None:
    """A child believed that its parent's worker pool ran, and waited for threads that it did not have."""
    printed = run("""
client = Client(dsn, schema=schema)
done = threading.Semaphore(0)
with WorkerPool(client, {"work": lambda tx, job: done.release()}) as pool:
    heard = client.subscribe()

    def child():
        assert not pool.running
        assert heard.get() is None
        print(refused(pool.start), refused(pool.stop), refused(pool.work_one), flush=True)
        print(refused(pool.add_queue, "other", 1), refused(pool.remove_queue, "default"), flush=True)
        pool.__exit__(None, None, None)
        with WorkerPool(client, {"child": lambda tx, job: done.release()}, queues={"child": 1}):
            client.enqueue(None, {}, kind="child", queue="child")
            assert done.acquire(timeout=20)

    assert in_child(child) == 0
    client.enqueue(None, {}, kind="work")
    assert done.acquire(timeout=20)
    assert heard.get() is not None
""")
    assert printed.count("was started before the process forked") == 5
    assert printed.count("make and start a WorkerPool in the child") == 5


@pytest.mark.finding("W1")
@pytest.mark.parametrize("made", ["in the parent", "in the child"])
def test_the_applications_own_pool_that_was_opened_before_the_fork_is_refused_by_name(
    client: Client, run: Any, made: str
) -> None:
    """A child that used its parent's psycopg_pool waited for 30 seconds, or shared a connection."""
    printed = run(f"""
pool = ConnectionPool(dsn, min_size=1, open=True, name="the application's")
pool.wait()
client = Client(pool, schema=schema)
client.enqueue(None, {{}}, kind="parent")

def child():
    began = time.monotonic()
    mine = client if {made == "in the parent"} else None
    make = lambda: mine or Client(pool, schema=schema)
    print(refused(lambda: make().enqueue(None, {{}}, kind="child")), flush=True)
    print(refused(lambda: make().list_jobs()), flush=True)
    print(refused(lambda: make().pool), flush=True)
    print(refused(lambda: WorkerPool(make(), {{"work": print}}).start()), flush=True)
    print(refused(lambda: Client(dsn, schema=schema).enqueue(pool, {{}}, kind="child")), flush=True)
    assert time.monotonic() - began < 10

assert in_child(child) == 0
client.enqueue(None, {{}}, kind="parent")
pool.close()
""")
    assert printed.count('"the application\'s" was opened before the process forked') == 5
    assert printed.count("open it in each child (gunicorn: the post_fork hook;") == 5
    assert kinds_of(client) == ["parent"] * 2


@pytest.mark.finding("W1")
def test_the_applications_own_pool_that_is_opened_in_each_child_is_used(client: Client, run: Any) -> None:
    """The cure that the error names."""
    run("""
pool = ConnectionPool(dsn, min_size=1, open=False)
client = Client(pool, schema=schema)

def child():
    with pool:
        client.enqueue(None, {}, kind="child")
        assert len(client.list_jobs().jobs) >= 1

assert in_child(child) == 0
assert in_child(child) == 0
""")
    assert kinds_of(client) == ["child"] * 2


@pytest.mark.finding("W1")
@pytest.mark.parametrize("given", ["own", "theirs"])
def test_a_connection_over_a_fork_is_refused_and_the_parents_transaction_goes_on(
    client: Client, run: Any, given: str
) -> None:
    """A child's statements became part of its parent's transaction."""
    connection = "client.pool.connection()" if given == "own" else "psycopg.connect(dsn)"
    printed = run(f"""
client = Client(dsn, schema=schema)
with {connection} as tx:
    client.enqueue(tx, {{}}, kind="parent")
    assert in_child(lambda: print(refused(lambda: client.enqueue(tx, {{}}, kind="child")), flush=True)) == 0
    assert in_child(lambda: client.enqueue(None, {{}}, kind="child")) == 0
    client.enqueue(tx, {{}}, kind="parent")
""")
    assert "was opened before the process forked" in printed
    assert kinds_of(client) == ["child"] + ["parent"] * 2


@pytest.mark.finding("W1")
def test_an_application_of_django_in_children_of_a_process_that_has_enqueued_on_an_alias(
    client: Client, database: str
) -> None:
    """Children went on with the connection of the alias that their parent had opened."""
    outcome(
        BEGIN
        + """
import json
os.environ["FORKED_APP"] = json.dumps({"way": "Django", "dsn": dsn, "schema": schema, "before": "used"})
from tests.acceptance.forked_app import client, enqueue
from django.db import connection, transaction

def child():
    with connection.cursor() as cursor:  # before anything is done through pgjobs
        cursor.execute("SELECT pg_backend_pid()")
        assert cursor.fetchone() != before
    enqueue(1)

with connection.cursor() as cursor:
    cursor.execute("SELECT pg_backend_pid()")
    before = cursor.fetchone()
assert in_child(child) == 0
assert in_child(child) == 0
with transaction.atomic():
    client.enqueue("default", {"n": 2}, kind="forked")
    assert in_child(lambda: print(refused(lambda: client.enqueue("default", {}, kind="child")), flush=True)) == 0
with connection.cursor() as cursor:
    cursor.execute("SELECT pg_backend_pid()")
    assert cursor.fetchone() == before
""",
        database,
        client.schema,
    )
    assert len(kinds_of(client)) == 6 + 3


@pytest.mark.finding("W1")
@pytest.mark.parametrize("source", ["SQLAlchemySource(engine)", "dsn"])
def test_an_engine_of_sqlalchemy_in_children_of_a_process_that_has_enqueued_on_it(
    client: Client, database: str, source: str
) -> None:
    """SQLAlchemy's pool does not notice a fork: children went on with the connections of their parent."""
    outcome(
        BEGIN
        + f"""
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from pgjobs.contrib.sqlalchemy import SQLAlchemySource

engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn))
client = Client({source}, schema=schema)

def enqueue(kind):
    with Session(engine) as session, session.begin():
        pid = session.execute(text("SELECT pg_backend_pid()")).scalar()
        client.enqueue(session, {{}}, kind=kind)
    return pid

def work():
    WorkerPool(client, {{"parent": lambda tx, job: None, "child": lambda tx, job: None}}).work_one()

before = enqueue("parent")
work()

def child():
    assert enqueue("child") != before
    work()

assert in_child(child) == 0
assert in_child(child) == 0
assert enqueue("parent") == before
client.close()
""",
        database,
        client.schema,
    )
    assert kinds_of(client) == ["child"] * 2 + ["parent"] * 2


def test_asynchronous_connections_and_engines_in_children_of_a_process_that_has_used_them(
    client: Client, run: Any
) -> None:
    printed = run("""
import asyncio
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

client = Client(dsn, schema=schema)
engine = create_async_engine("postgresql+psycopg://", connect_args=conninfo_to_dict(dsn))

async def enqueue(kind):
    async with AsyncSession(engine) as session, session.begin():
        await client.aenqueue(session, {}, kind=kind)
        return (await session.execute(text("SELECT pg_backend_pid()"))).scalar()

async def connect():
    conn = await psycopg.AsyncConnection.connect(dsn)
    await client.aenqueue(conn, {}, kind="parent")
    return conn

def child():
    assert asyncio.run(enqueue("child")) != before
    asyncio.run(client.aenqueue(None, {}, kind="child"))
    print(refused(lambda: asyncio.run(client.aenqueue(conn, {}, kind="refused"))), flush=True)

loop = asyncio.new_event_loop()
before = loop.run_until_complete(enqueue("parent"))
conn = loop.run_until_complete(connect())
assert in_child(child) == 0
assert loop.run_until_complete(enqueue("parent")) == before
loop.run_until_complete(conn.commit())
loop.run_until_complete(conn.close())
loop.run_until_complete(engine.dispose())
loop.close()
client.close()
""")
    assert "was opened before the process forked" in printed
    assert kinds_of(client) == ["child"] * 2 + ["parent"] * 3


@pytest.mark.finding("W1")
def test_a_process_that_a_handler_starts_ends_when_it_is_told_to(client: Client, run: Any) -> None:
    """It had the handlers of the worker's signals, which only put them down for a thread that it did not have."""
    run("""
import signal
client = Client(dsn, schema=schema)
codes = []

def work(tx, job):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"x")
        while True:
            time.sleep(60)
    os.read(read, 1)
    os.kill(pid, signal.SIGTERM)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os.kill(os.getpid(), signal.SIGTERM)

client.enqueue(None, {}, kind="work")
WorkerPool(client, {"work": work}).run()
assert codes == [-signal.SIGTERM], codes
""")


@pytest.mark.finding("W1")
@pytest.mark.parametrize("given", ["dsn", "theirs"])
def test_a_process_that_a_handler_forks_enqueues_for_itself_and_not_on_the_handlers_tx(
    client: Client, run: Any, given: str
) -> None:
    """What a child sent on the handler's connection became part of the job's transaction."""
    printed = run(f"""
theirs = ConnectionPool(dsn, min_size=0, max_size=16, open=True)
client = Client({given}, schema=schema)
done = threading.Event()

def work(tx, job):
    tx.execute("SELECT 1")
    mine = Client(dsn, schema=schema) if client.pool is theirs else client
    def child():
        print(refused(lambda: client.enqueue(tx, {{}}, kind="wrong")), flush=True)
        mine.enqueue(None, {{}}, kind="child", queue="other")
    assert in_child(child) == 0
    client.enqueue(tx, {{}}, kind="parent", queue="other")

client.enqueue(None, {{}}, kind="work")
with WorkerPool(client, {{"work": work}}) as pool:
    heard = client.subscribe()
    print(heard.get().kind)
theirs.close()
client.close()
""")
    assert "was opened before the process forked" in printed
    assert printed.endswith("job_completed\n")
    assert kinds_of(client) == ["child", "parent", "work"]


@pytest.mark.finding("W1")
def test_the_private_words_of_psycopg_pool_by_which_an_inherited_pool_is_told(database: str) -> None:
    """A canary: where these change, a child waits for a connection as long as its parent's pool lets it."""
    from psycopg_pool import ConnectionPool, NullConnectionPool

    for cls in (ConnectionPool, NullConnectionPool):
        pool: Any = cls(database, min_size=0, max_size=2, open=False)
        assert pool._sched_runner is None
        pool.open()
        runner: Any = pool._sched_runner
        assert runner.is_alive()
        pool.close()
        assert pool.closed


# --- processes that are not forked


@pytest.mark.finding("E8")
def test_what_cannot_be_sent_to_another_process_says_what_can(client: Client) -> None:
    """A Client could not be pickled, and said "cannot pickle '_thread.lock' object"."""
    import copy
    import pickle

    from pgjobs import WorkerPool

    with pytest.raises(TypeError, match=r"a Client cannot be pickled.* give the other process the connection string"):
        pickle.dumps(client)
    with pytest.raises(TypeError, match=r"a WorkerPool cannot be pickled.* make one in the other process"):
        pickle.dumps(WorkerPool(client, {"work": print}))
    with pytest.raises(TypeError, match="a Client cannot be pickled"):
        copy.deepcopy(client)
