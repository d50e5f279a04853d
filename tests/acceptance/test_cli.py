"""The command `pgjobs migrate`, as a program and as a function: what it does, says, and exits with."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlencode

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgjobs import Client, Job, SchemaMissing, WorkerPool, cli, roles_sql, schema_sql
from pgjobs.db import migration_plan
from tests.waiting import wait_until

NEWEST = max(migration_plan.versions())
UP = [f"up {version:04} {name}" for version, name in migration_plan.versions().items()]
DOWN = [f"down {version:04} {name}" for version, name in sorted(migration_plan.versions().items(), reverse=True)]


@pytest.fixture(autouse=True)
def _no_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGSERVICE", "PGJOBS_APP"):
        monkeypatch.delenv(name, raising=False)


class Command:
    """Runs `pgjobs` in this process, and keeps what it said."""

    def __init__(self, dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
        self.dsn = dsn
        self._capsys = capsys
        self.lines: list[str] = []
        self.errors = ""

    def migrate(self, *arguments: str) -> int:
        return self.run("migrate", "--dsn", self.dsn, *arguments)

    def run(self, *arguments: str) -> int:
        code = cli.main(arguments)
        out, self.errors = self._capsys.readouterr()
        self.lines = out.splitlines()
        return code


@pytest.fixture
def pgjobs(fresh_database: str, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(fresh_database, capsys)


@pytest.fixture
def default_client(fresh_database: str) -> Iterator[Client]:
    with Client(fresh_database) as client:
        yield client


def pgjobs_program(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the installed program."""
    program = Path(sys.executable).with_name("pgjobs")
    clean = {name: value for name, value in os.environ.items() if name != "DATABASE_URL" and name[:2] != "PG"}
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=60, env=clean | env
    )


# --- the program


def test_the_installed_program_migrates_the_database_of_the_environment(
    fresh_database: str, default_client: Client
) -> None:
    done = pgjobs_program("migrate", DATABASE_URL=fresh_database)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, UP, "")
    default_client.check_schema()


def test_the_installed_program_fails_with_one_line_and_no_traceback() -> None:
    done = pgjobs_program("migrate")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(
        "pgjobs: error: which database? give --dsn or --app, or set DATABASE_URL, PGJOBS_APP or "
    )
    assert done.stderr.count("\n") == 1


def test_wrong_usage_exits_with_2() -> None:
    for arguments in ([], ["migrate", "sideways"], ["migrate", "--to", "one"], ["fly"], ["roles"]):
        done = pgjobs_program(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith("usage: pgjobs"), arguments


def test_the_package_is_a_program_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pgjobs", "roles"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("usage: pgjobs roles")


# --- up and down


def test_up_makes_the_tables_and_a_second_time_has_nothing_to_do(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate() == 0
    assert pgjobs.lines == UP
    default_client.check_schema()
    assert pgjobs.migrate("up") == 0
    assert pgjobs.lines == ["nothing to do"]


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
def test_down_takes_one_step_and_target_0_the_rest(pgjobs: Command, default_client: Client) -> None:
    pgjobs.migrate()
    assert pgjobs.migrate("down", "--yes") == 0
    assert pgjobs.lines == DOWN[:1]
    pgjobs.migrate()
    assert pgjobs.migrate("down", "--to", "0", "--yes") == 0
    assert pgjobs.lines == DOWN
    assert default_client.missing_migrations() == list(migration_plan.versions())
    assert pgjobs.migrate("down") == 0
    assert pgjobs.lines == ["nothing to do"]


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
def test_to_stops_at_the_version_and_max_steps_after_so_many(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate("--to", "1") == 0
    assert pgjobs.lines == UP[:1]
    assert pgjobs.migrate("down", "--max-steps", "0") == 0
    assert pgjobs.lines == ["nothing to do"]
    assert pgjobs.migrate("down", "--max-steps", "99", "--yes") == 0
    assert pgjobs.lines == DOWN[-1:]
    assert pgjobs.migrate("--max-steps", "1") == 0
    assert pgjobs.lines == UP[:1]


def test_an_unknown_version_is_refused(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate("--to", "77") == 1
    assert pgjobs.errors == f"pgjobs: error: target: there is no version 77: this code knows 0 to {NEWEST}\n"
    assert pgjobs.migrate("--sql", "--to", "77") == 1
    assert pgjobs.lines == []
    with pytest.raises(SchemaMissing):
        default_client.check_schema()


def test_another_schema_is_made_beside_the_default_one(
    pgjobs: Command, default_client: Client, fresh_database: str
) -> None:
    assert pgjobs.migrate("--schema", "jobs") == 0
    with Client(fresh_database, schema="jobs") as client:
        client.check_schema()
    with pytest.raises(SchemaMissing):
        default_client.check_schema()


def test_a_schema_that_is_no_name_is_refused(pgjobs: Command) -> None:
    assert pgjobs.migrate("--schema", "drop table;") == 1
    assert pgjobs.errors.startswith("pgjobs: error: schema 'drop table;'")
    assert pgjobs.migrate("--sql", "--schema", "drop table;") == 1
    assert pgjobs.lines == []


def test_the_dsn_given_wins_over_the_environment(pgjobs: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///no_such_database")
    assert pgjobs.migrate() == 0
    assert pgjobs.lines == UP


# --- looking


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
def test_a_dry_run_says_what_would_be_done_and_does_nothing(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate("--dry-run") == 0
    assert pgjobs.lines == [f"would apply: {step}" for step in UP]
    with pytest.raises(SchemaMissing):
        default_client.check_schema()

    pgjobs.migrate()
    assert pgjobs.migrate("down", "--dry-run") == 0
    assert pgjobs.lines == [f"would apply: {step}" for step in DOWN[:1]]
    assert pgjobs.migrate("--dry-run") == 0
    assert pgjobs.lines == ["nothing to do"]
    default_client.check_schema()


@pytest.mark.conformance(300)
def test_check_fails_and_lists_what_is_missing_until_the_tables_fit(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate("--check") == 1
    assert pgjobs.lines == [f"missing: {', '.join(map(str, migration_plan.versions()))}"]
    assert "run `pgjobs migrate` or client.migrate()" in pgjobs.errors
    with pytest.raises(SchemaMissing):
        default_client.check_schema()
    pgjobs.migrate()
    assert pgjobs.migrate("--check") == 0
    assert pgjobs.lines == ["ok"]


def test_check_fails_on_tables_that_are_newer_than_the_code(pgjobs: Command) -> None:
    pgjobs.migrate()
    with psycopg.connect(pgjobs.dsn) as conn:
        conn.execute("INSERT INTO pgjobs.migration (version, name, digest) VALUES (99, 'from the future', 'unknown')")
    assert pgjobs.migrate("--check") == 1
    assert pgjobs.lines == []
    assert "version 99" in pgjobs.errors
    assert pgjobs.migrate() == 1
    assert "version 99" in pgjobs.errors


# --- as SQL


def test_sql_prints_what_makes_the_tables_and_needs_no_database(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.run("migrate", "--sql") == 0
    assert "\n".join(pgjobs.lines) + "\n" == schema_sql()
    with psycopg.connect(pgjobs.dsn, autocommit=True) as conn:
        conn.execute("\n".join(pgjobs.lines).encode())
    default_client.check_schema()


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
def test_sql_of_the_way_down_takes_one_step_unless_told_otherwise(pgjobs: Command, default_client: Client) -> None:
    pgjobs.migrate()
    assert pgjobs.run("migrate", "--sql", "down") == 0
    assert "\n".join(pgjobs.lines) + "\n" == schema_sql(start=NEWEST, target=NEWEST - 1)
    with psycopg.connect(pgjobs.dsn, autocommit=True) as conn:
        conn.execute("\n".join(pgjobs.lines).encode())
    assert default_client.missing_migrations() == [NEWEST]

    assert pgjobs.run("migrate", "--sql", "--from", str(NEWEST), "--to", "0", "--schema", "jobs") == 0
    assert "\n".join(pgjobs.lines) + "\n" == schema_sql("jobs", start=NEWEST, target=0)
    assert 'DROP TABLE "jobs".' in "\n".join(pgjobs.lines)


# --- what goes wrong


def test_a_database_that_does_not_exist_is_named_at_once(pgjobs: Command, fresh_database: str) -> None:
    with psycopg.connect(fresh_database) as conn:
        missing = f"{conn.info.dbname}_missing"
    assert pgjobs.run("migrate", "--dsn", make_conninfo(fresh_database, dbname=missing)) == 1
    assert pgjobs.errors.startswith("pgjobs: error: ")
    assert f'database "{missing}" does not exist' in pgjobs.errors
    assert pgjobs.errors.count("does not exist") == 1


def test_a_dsn_that_is_none_is_refused_without_repeating_its_password(pgjobs: Command) -> None:
    assert pgjobs.run("migrate", "--dsn", "postgresql+driver://me:hunter2@localhost/app") == 1
    assert "connection string" in pgjobs.errors
    assert "hunter2" not in pgjobs.errors


def test_an_error_of_the_database_is_one_message_and_exit_code_1(pgjobs: Command) -> None:
    with psycopg.connect(pgjobs.dsn) as conn:
        conn.execute("CREATE SCHEMA pgjobs")
        conn.execute(sql.SQL("CREATE VIEW {} AS SELECT 1").format(sql.Identifier("pgjobs", "queue")))
    assert pgjobs.migrate() == 1
    assert pgjobs.errors == 'pgjobs: error: relation "queue" already exists\n'
    assert pgjobs.lines == []


# --- the help


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of the program and those of its commands, by the words that lead to each."""
    found = {"": cli._parser()}
    left = [""]
    for words in left:
        for action in found[words]._actions:
            if isinstance(action, argparse._SubParsersAction):
                below = {f"{words} {name}".strip(): parser for name, parser in action.choices.items()}
                found |= below
                left += below
    return found


@pytest.mark.parametrize("words", list(parsers()))
def test_the_help_explains_every_option(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parsers()[words]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words.split(), "--help"])
    assert ended.value.code == 0
    text = " ".join(re.sub(r"(?<=\w-)\n +", "", capsys.readouterr().out).split())  # argparse breaks lines at hyphens
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action._choices_actions:
                assert f"{command.dest} {command.help}" in text
            continue
        assert action.help, f"{action.dest} is not explained"
        assert action.help % {"default": action.default, "prog": parser.prog} in text
        for option in action.option_strings or action.choices or ():
            assert option in text


# --- what is not meant


@pytest.mark.finding("E13")
@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["--sql", "--check"],
            ["--sql", "--dry-run"],
            ["--check", "--dry-run"],
            ["--from", "1"],
            ["--no-transaction"],
        ),
        *(
            ["--sql", "--max-steps", "1"],
            ["--check", "--to", "3"],
            ["--check", "--max-steps", "1"],
            ["down", "--check"],
        ),
    ],
    ids=" ".join,
)
def test_options_that_cannot_go_together_are_refused(
    pgjobs: Command, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """`--sql` with `--check` printed the SQL and checked nothing."""
    with pytest.raises(SystemExit) as ended:
        pgjobs.migrate(*arguments)
    assert ended.value.code == 2
    assert "usage: pgjobs migrate" in capsys.readouterr().err


@pytest.mark.no_decoys("drops the tables, and decoys depend on their type")
@pytest.mark.finding("E13")
@pytest.mark.parametrize("how", [["--to", "0"], ["--max-steps", "99"]], ids=" ".join)
def test_all_jobs_are_deleted_only_when_that_is_meant(
    pgjobs: Command, default_client: Client, monkeypatch: pytest.MonkeyPatch, how: list[str]
) -> None:
    """`down --to 0` dropped the tables with all jobs and did not ask."""
    pgjobs.migrate()
    job: Job[Any] = default_client.enqueue(None, {}, kind="test")
    assert pgjobs.migrate("down", *how) == 1
    assert "all jobs and schedules: add --yes to do that" in pgjobs.errors
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in ("", "n", "no", "yep"):
        monkeypatch.setattr("builtins.input", lambda answer=answer: answer)
        assert pgjobs.migrate("down", *how) == 1
        assert pgjobs.errors.endswith("Go on? [y/N] pgjobs: error: nothing was changed\n")
    assert default_client.get(job.id) is not None
    assert pgjobs.migrate("down", *how, "--dry-run") == 0
    monkeypatch.setattr("builtins.input", lambda: "Y")
    assert pgjobs.migrate("down", *how) == 0
    assert pgjobs.lines == DOWN


@pytest.mark.finding("E13")
def test_the_end_of_the_input_is_no_yes(
    pgjobs: Command, default_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-D at the question whether all jobs are to be deleted was a traceback."""
    pgjobs.migrate()

    def end() -> str:
        raise EOFError

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", end)
    assert pgjobs.migrate("down", "--to", "0") == 1
    assert pgjobs.errors.endswith("Go on? [y/N] pgjobs: error: nothing was changed\n")


@pytest.mark.finding("E13")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_output_that_cannot_be_written_is_one_line() -> None:
    """Output to a full disk ended in a traceback."""
    program = Path(sys.executable).with_name("pgjobs")
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [program, "roles", "--sql"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    assert (ended.returncode, ended.stderr) == (1, "pgjobs: error: [Errno 28] No space left on device\n")


@pytest.mark.finding("E13")
@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--from", "0001-01-01", "--zone", "Asia/Tokyo"], "--from must be a date or a time"),
        (["--from", "9999-12-31T23:00", "--zone", "America/New_York"], "--from must be a date or a time"),
        (["--count", "-1"], "--count: must be a whole number, 0 or more"),
        (["--count", "many"], "--count: must be a whole number, 0 or more"),
    ],
)
def test_simulate_refuses_what_it_cannot_count(arguments: list[str], problem: str) -> None:
    """A time outside of the calendar in its zone was a traceback; less than no ticks were none."""
    ended = pgjobs_program("schedules", "simulate", "0 2 * * *", *arguments)
    assert ended.returncode in (1, 2)
    assert problem in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.finding("E13")
def test_a_right_that_is_lacking_is_said_with_what_to_do(pgjobs: Command, fresh_database: str) -> None:
    """`--check` as a role without rights quoted a statement, and did not say what to do."""
    pgjobs.migrate()
    role = f"nobody_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(fresh_database, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        try:
            assert pgjobs.migrate("--check", "--dsn", make_conninfo(fresh_database, user=role)) == 1
        finally:
            admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
    assert "`pgjobs roles --sql --schema pgjobs` prints what a role needs" in pgjobs.errors


@pytest.mark.finding("E13")
def test_an_interrupt_is_one_line(pgjobs: Command, fresh_database: str) -> None:
    """Ctrl-C in migrate was a traceback."""
    pgjobs.migrate()
    with psycopg.connect(fresh_database) as holder:
        holder.execute("LOCK TABLE pgjobs.migration")
        program = Path(sys.executable).with_name("pgjobs")
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
        running = subprocess.Popen(
            [program, "migrate", "down", "--yes", "--dsn", fresh_database],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        signal.signal(signal.SIGINT, before)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = (SELECT oid FROM pg_database WHERE "
        wait_until(lambda: _value(fresh_database, waiting + "datname = current_database())") == 1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (130, "")
    assert err == "pgjobs: interrupted; the unfinished step changed nothing\n"
    assert pgjobs.migrate("--dry-run") == 0
    assert pgjobs.lines == ["nothing to do"]


def _value(dsn: str, query: LiteralString) -> object:
    with psycopg.connect(dsn) as conn:
        row = conn.execute(query).fetchone()
        return row and row[0]


@pytest.mark.finding("E13")
@pytest.mark.parametrize("command", [["schedules", "simulate", "@hourly", "--count", "20000"], ["roles", "--sql"]])
def test_a_reader_that_has_had_enough_is_no_error(command: list[str]) -> None:
    """`pgjobs schedules simulate ... | head` ended in a BrokenPipeError's traceback."""
    program = Path(sys.executable).with_name("pgjobs")
    running = subprocess.Popen([program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    assert running.stderr is not None
    if command[0] == "schedule":
        running.stdout.readline()
    running.stdout.close()
    assert (running.stderr.read(), running.wait(timeout=60)) == ("", 141)
    running.stderr.close()


@pytest.mark.finding("E13")
def test_the_environment_of_libpq_is_enough(fresh_database: str, tmp_path: Path, default_client: Client) -> None:
    """PGHOST alone was refused: \"which database?\" although psql knew."""
    parts = conninfo_to_dict(fresh_database)
    names = {"host": "PGHOST", "port": "PGPORT", "dbname": "PGDATABASE", "user": "PGUSER", "password": "PGPASSWORD"}
    env = {names[name]: str(value) for name, value in parts.items() if name in names}
    done = pgjobs_program("migrate", **env)
    assert (done.returncode, done.stderr) == (0, "")
    default_client.check_schema()
    service = tmp_path / "services"
    service.write_text("[app]\n" + "\n".join(f"{name}={value}" for name, value in parts.items()) + "\n")
    done = pgjobs_program("migrate", "--check", PGSERVICE="app", PGSERVICEFILE=str(service))
    assert (done.stdout, done.stderr) == ("ok\n", "")


@pytest.mark.finding("E7")
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_url_of_sqlalchemy_is_understood(pgjobs: Command, fresh_database: str, driver: str) -> None:
    """`postgresql+psycopg://` was refused by the client and the command."""
    parts = {name: str(value) for name, value in conninfo_to_dict(fresh_database).items()}
    url = f"postgresql+{driver}:///{parts.pop('dbname')}?{urlencode(parts)}"
    assert pgjobs.run("migrate", "--dsn", url) == 0
    with Client(url) as client:
        client.check_schema()
        with WorkerPool(client, {"test": lambda tx, job: None}, listen_dsn=url):
            client.wait(client.enqueue(None, {}, kind="test"))


# --- roles


@pytest.mark.finding("S6")
def test_the_command_prints_the_grants(pgjobs: Command) -> None:
    """There was no list of what a role needs."""
    assert pgjobs.run("roles", "--sql") == 0
    assert "\n".join(pgjobs.lines) + "\n" == roles_sql()
    assert pgjobs.run("roles", "--sql", "--schema", "jobs", "--worker", "w", "--without", "viewer", "--no-replace") == 0
    assert "\n".join(pgjobs.lines) + "\n" == roles_sql("jobs", worker="w", viewer=None, replace=False)
    assert pgjobs.run("roles", "--sql", "--no-enqueue-many", "--hide-args", "--no-transaction") == 0
    assert "\n".join(pgjobs.lines) + "\n" == roles_sql(enqueue_many=False, view_args=False, transaction=False)
    assert pgjobs.run("roles", "--sql", "--worker", 'a"b') == 1
    assert "role 'a\"b'" in pgjobs.errors


def test_the_help_of_migrate_names_what_it_can_do() -> None:
    said = pgjobs_program("migrate", "--help").stdout
    for option in ("--dsn", "--schema", "--to", "--max-steps", "--dry-run", "--check", "--sql", "--from", "up", "down"):
        assert option in said
    assert "DATABASE_URL" in said
