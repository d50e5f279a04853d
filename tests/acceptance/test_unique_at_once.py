"""Many processes that want the same unique jobs at the same time: each job once, an answer for everybody, no error."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack

import pytest

from pgjobs import Client
from tests.conftest import Connect

PROCESSES = 16

# Each has its own random order. It says when it is ready, and begins when it is told, as all the others.
ENQUEUER = """
import json, random, sys
from collections import Counter
from pgjobs import Client, NewJob, Unique

dsn, schema, seed, jobs, size = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
client = Client(dsn, schema=schema)
order = list(range(jobs))
random.Random(seed).shuffle(order)
unique = Unique(by_args=True)
answers = Counter()
ids = {}
with client.pool.connection() as conn:
    conn.execute("SELECT 1")
    conn.rollback()
    print("ready", flush=True)
    sys.stdin.readline()
    for start in range(0, jobs, size):
        part = order[start : start + size]
        if size == 1:
            made = [client.enqueue(conn, {"n": part[0]}, kind="thing", unique=unique)]
        else:
            made = client.enqueue_many(conn, [NewJob({"n": n}, kind="thing", unique=unique) for n in part])
        conn.commit()
        answers.update("duplicate" if job.duplicate else "new" for job in made)
        ids.update({n: job.id for n, job in zip(part, made, strict=True)})
print(json.dumps([answers["new"], answers["duplicate"], ids]))
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("jobs", "size"), [(250, 1), (1000, 50)], ids=["one by one", "in transactions of 50"])
def test_16_processes_that_enqueue_the_same_jobs_make_each_once(
    client: Client, database: str, connect: Connect, jobs: int, size: int
) -> None:
    with ExitStack() as started:
        processes = [
            started.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", ENQUEUER, database, client.schema, str(seed), str(jobs), str(size)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for seed in range(PROCESSES)
        ]
        for process in processes:
            started.callback(process.kill)
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=280) for process in processes]
        assert [process.returncode for process in processes] == [0] * PROCESSES, said
    answers = [json.loads(out) for out, _ in said]
    assert sum(new for new, _, _ in answers) == jobs
    assert sum(duplicates for _, duplicates, _ in answers) == (PROCESSES - 1) * jobs
    stored = connect(autocommit=True).execute(f"SELECT args ->> 'n', id FROM {client.schema}.job".encode()).fetchall()
    assert len(stored) == jobs
    assert all(ids == dict(stored) for _, _, ids in answers), "everybody was told the job that is there"
