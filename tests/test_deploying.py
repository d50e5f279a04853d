"""The page about deploying: its unit, its query for KEDA, its commands and its times fit pgjobs and each other."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from pgjobs import Client, NewJob, cli, roles_sql
from tests.documents import PAGES

PAGE = next(page for page in PAGES if page.name == "deploying")
ENOUGH = 4  # seconds after its stop timeout in which the command has ended, whatever handlers do


def fence(beginning: str) -> str:
    """The configuration file that begins so."""
    (code,) = (block.code for block in PAGE.blocks("text") if block.code.startswith(beginning))
    return code


UNIT = fence("# /etc/systemd/system/")
KEDA = fence("apiVersion: keda.sh/")
DEPLOYMENT = fence("apiVersion: apps/v1")


# --- the unit


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "pgjobs"
    program.touch(0o755)
    (command,) = re.findall(r"^ExecStart=(\S+)", UNIT, re.MULTILINE)

    def said_of(unit: str) -> list[str]:
        file = tmp_path / "shop-workers.service"
        file.write_text(unit.replace(command, str(program)))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True, check=False
        )
        return [line for line in (done.stdout + done.stderr).splitlines() if file.name in line]

    assert said_of(UNIT) == []
    assert said_of(UNIT.replace("KillMode=mixed", "KillMode=mixd")) != [], "it says what it does not understand"
    assert said_of(UNIT.replace("TimeoutStopSec", "TimeoutStop")) != []


# --- times


def test_every_stop_has_ended_before_the_process_is_killed() -> None:
    timeouts = [int(seconds) for seconds in re.findall(r'--stop-timeout"?,? "?(\d+)s', PAGE.text)]
    assert len(timeouts) >= 5
    grace = [
        *re.findall(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE),
        *re.findall(r"terminationGracePeriodSeconds: (\d+)$", DEPLOYMENT, re.MULTILINE),
        *re.findall(r"docker stop --time (\d+)|stop_grace_period: (\d+)s", PAGE.text),
    ]
    seconds = [int(part) for found in grace for part in ([found] if isinstance(found, str) else found) if part]
    assert len(seconds) == 4
    assert max(timeouts) + ENOUGH < min(seconds)


# --- the commands


def commands() -> list[list[str]]:
    """The words behind `pgjobs` of each command, in whatever file it stands."""
    found = []
    for block in PAGE.blocks("text"):
        for line in block.code.splitlines():
            before, called, words = re.sub(r'[][,"]', " ", line).partition("pgjobs ")  # of lists in JSON and YAML
            if called and re.search(r"(^|CMD|args:|ExecStart=\S*|\w:)\W*$", before):
                found.append(shlex.split(words))
    return found


def test_the_commands_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    found = commands()
    assert [words[0] for words in found].count("work") == 7
    assert [words[0] for words in found].count("migrate") == 2
    # of the prose those with a value, and those that need none
    said = [words for words in re.findall(r"`(--[^`]+)`", PAGE.prose) if " " in words or words == "--no-wait"]
    options = [["work", *shlex.split(words.replace("host:port", "localhost:8080"))] for words in said]
    assert len(options) >= 5
    for words in [*found, *options]:
        with pytest.raises(SystemExit) as ended:
            cli.main([*words, "--help"])  # behind the options, whose values are then converted
        assert ended.value.code == 0, (words, capsys.readouterr().err)


# --- the query


def keda_query() -> str:
    """What YAML makes of the folded block: its lines, joined by spaces."""
    block = KEDA.split("query: >-\n")[1]
    lines = block.splitlines()
    assert len({len(line) - len(line.lstrip()) for line in lines}) == 1, "a line that is indented more is not folded"
    return " ".join(line.strip() for line in lines)


@pytest.fixture
def own_client(fresh_database: str) -> Any:
    with Client(fresh_database) as client:
        client.migrate()
        yield client


def test_the_query_counts_what_could_run_and_what_runs(own_client: Client, fresh_database: str) -> None:
    """It is sent with the rights of a viewer that may not see args."""
    role = sql.Identifier("keda_viewer")
    with psycopg.connect(fresh_database, autocommit=True) as conn:

        def counted() -> Any:
            with conn.transaction():
                conn.execute(sql.SQL("SET LOCAL ROLE {}").format(role))
                cursor = conn.execute(keda_query().encode())
                (row,) = cursor.fetchall()
                (value,) = row
                return value

        only_viewer: dict[str, Any] = {"enqueuer": None, "worker": None, "operator": None, "viewer": "keda_viewer"}
        conn.execute(roles_sql(**only_viewer, view_args=False, transaction=False).encode())
        try:
            assert counted() == 0
            for queue in ("default", "mail", "reports"):
                own_client.enqueue(None, {}, kind="thing", queue=queue)
            own_client.enqueue(None, {}, kind="thing", delay=timedelta(hours=1))
            own_client.enqueue(None, {}, kind="thing", pending=True)
            assert counted() == 2, "not those of another queue, nor those that wait for their time or release"
            conn.execute("UPDATE pgjobs.job SET state = 'running' WHERE queue = 'mail'")
            assert counted() == 2
            own_client.queues.pause("default")
            own_client.queues.pause("mail")
            assert counted() == 1, "the one that runs"
            own_client.queues.resume("default")
            own_client.enqueue_many(None, [NewJob({}, kind="thing") for _ in range(1500)])
            assert counted() == 1001
        finally:
            conn.execute(sql.SQL("DROP OWNED BY {r}; DROP ROLE {r}").format(r=role))


def test_the_query_reads_no_finished_jobs(own_client: Client, fresh_database: str) -> None:
    with psycopg.connect(fresh_database, autocommit=True) as conn:
        conn.execute("INSERT INTO pgjobs.job (kind, state, finalized_at) "
                     "SELECT 'thing', 'completed', now() FROM generate_series(1, 20000)")  # fmt: skip
        conn.execute("VACUUM ANALYZE pgjobs.job")
        plan = "\n".join(line for (line,) in conn.execute(f"EXPLAIN {keda_query()}".encode()))
    assert "Seq Scan on job" not in plan
    assert re.findall(r"using (\w+) on job", plan) == ["job_fetch", "job_running"], plan


def test_the_limit_of_the_query_is_above_what_all_pods_run() -> None:
    def number(pattern: str) -> int:
        (found,) = re.findall(pattern, KEDA)
        return int(found)

    target = number(r'targetQueryValue: "(\d+)"')
    assert number(r"LIMIT (\d+)") > number(r"maxReplicaCount: (\d+)") * target
    (threads,) = re.findall(r"2 processes of (\d+) threads", PAGE.text.split("targetQueryValue` is")[1][:120])
    assert target == 2 * int(threads)


def test_the_pool_of_the_page_has_the_threads_that_it_counts_with(tmp_path: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "shop_jobs"}
    module = PAGE.blocks("python")[0].code
    exec(compile(module, "shop/jobs.py", "exec", dont_inherit=True), namespace)
    pool = namespace["pool"]()
    assert pool.threads == 12
    namespace["client"].close()
