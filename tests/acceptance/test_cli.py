"""The command `pgjobs migrate`, as a program and as a function: what it does, says, and exits with."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgjobs import Client, SchemaMissing, cli, migrate, schema_sql

NEWEST = max(migrate.versions())
UP = [f"up {version:04} {name}" for version, name in migrate.versions().items()]
DOWN = [f"down {version:04} {name}" for version, name in sorted(migrate.versions().items(), reverse=True)]


@pytest.fixture(autouse=True)
def _no_database_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)


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
    clean = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
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
    assert done.stderr == "pgjobs: which database? give --dsn, or set DATABASE_URL\n"


def test_wrong_usage_exits_with_2() -> None:
    for arguments in ([], ["migrate", "sideways"], ["migrate", "--to", "one"], ["fly"]):
        done = pgjobs_program(*arguments)
        assert done.returncode == 2, arguments
        assert done.stderr.startswith("usage: pgjobs"), arguments


# --- up and down


def test_up_makes_the_tables_and_a_second_time_has_nothing_to_do(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate() == 0
    assert pgjobs.lines == UP
    default_client.check_schema()
    assert pgjobs.migrate("up") == 0
    assert pgjobs.lines == ["nothing to do"]


def test_down_takes_one_step_and_target_0_the_rest(pgjobs: Command, default_client: Client) -> None:
    pgjobs.migrate()
    assert pgjobs.migrate("down") == 0
    assert pgjobs.lines == DOWN[:1]
    pgjobs.migrate()
    assert pgjobs.migrate("down", "--to", "0") == 0
    assert pgjobs.lines == DOWN
    assert default_client.missing_migrations() == list(migrate.versions())
    assert pgjobs.migrate("down") == 0
    assert pgjobs.lines == ["nothing to do"]


def test_to_stops_at_the_version_and_max_steps_after_so_many(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate("--to", "1") == 0
    assert pgjobs.lines == UP[:1]
    assert pgjobs.migrate("down", "--max-steps", "0") == 0
    assert pgjobs.lines == ["nothing to do"]
    assert pgjobs.migrate("down", "--max-steps", "99") == 0
    assert pgjobs.lines == DOWN[-1:]
    assert pgjobs.migrate("--max-steps", "1") == 0
    assert pgjobs.lines == UP[:1]


def test_an_unknown_version_is_refused(pgjobs: Command, default_client: Client) -> None:
    assert pgjobs.migrate("--to", "77") == 1
    assert pgjobs.errors == f"pgjobs: there is no version 77: this code knows 0 to {NEWEST}\n"
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
    assert pgjobs.errors.startswith("pgjobs: schema 'drop table;'")
    assert pgjobs.migrate("--sql", "--schema", "drop table;") == 1
    assert pgjobs.lines == []


def test_the_dsn_given_wins_over_the_environment(pgjobs: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql:///no_such_database")
    assert pgjobs.migrate() == 0
    assert pgjobs.lines == UP


# --- looking


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
    assert pgjobs.lines == [f"missing: {', '.join(map(str, migrate.versions()))}"]
    with pytest.raises(SchemaMissing):
        default_client.check_schema()
    pgjobs.migrate()
    assert pgjobs.migrate("--check") == 0
    assert pgjobs.lines == ["ok"]


def test_check_fails_on_tables_that_are_newer_than_the_code(pgjobs: Command) -> None:
    pgjobs.migrate()
    with psycopg.connect(pgjobs.dsn) as conn:
        conn.execute("INSERT INTO pgjobs.migration (version, name) VALUES (99, 'from the future')")
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
    assert pgjobs.errors.startswith("pgjobs: ")
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
    assert pgjobs.errors == 'pgjobs: relation "queue" already exists\n'
    assert pgjobs.lines == []


# --- the help


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of the program and those of its commands, by the words that lead to each."""
    parser = cli._parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {"": parser, **commands.choices}


@pytest.mark.parametrize("words", list(parsers()))
def test_the_help_explains_every_option(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parsers()[words]
    with pytest.raises(SystemExit) as ended:
        cli.main([*words.split(), "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action._choices_actions:
                assert f"{command.dest} {command.help}" in text
            continue
        assert action.help, f"{action.dest} is not explained"
        assert action.help % {"default": action.default, "prog": parser.prog} in text
        for option in action.option_strings or action.choices or ():
            assert option in text


def test_the_help_of_migrate_names_what_it_can_do() -> None:
    said = pgjobs_program("migrate", "--help").stdout
    for option in ("--dsn", "--schema", "--to", "--max-steps", "--dry-run", "--check", "--sql", "--from", "up", "down"):
        assert option in said
    assert "DATABASE_URL" in said
