"""The commands as a part of the command line of a framework, which has an application already."""

from __future__ import annotations

from typing import Any

import pytest

from pgjobs import Client, Job, PgjobsError, cli
from pgjobs.cli.app import App, Framework
from tests.acceptance.cli_program import of


def framework(app: App | None) -> Framework:
    def load() -> App:
        if app is None:
            raise PgjobsError("the application was loaded")
        return app

    return Framework(program="web pgjobs", load=load, pool="web.jobs:pool")


@pytest.fixture(autouse=True)
def _other_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGJOBS_APP", "elsewhere:client")


def test_a_command_uses_the_application_of_the_framework(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    job: Job[Any] = client.enqueue(None, {}, kind="mail")
    assert cli.main(["show", str(job.id)], framework=framework(App(client))) == 0
    assert "mail" in capsys.readouterr().out


def test_a_dsn_on_the_command_line_wins(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.enqueue(None, {}, kind="mail")
    assert cli.main(["list", *of(client)], framework=framework(None)) == 0
    assert "mail" in capsys.readouterr().out


def test_an_error_of_the_application_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"], framework=framework(None)) == 1
    assert capsys.readouterr().err == "pgjobs: error: the application was loaded\n"


def test_the_usage_names_the_program_of_the_framework(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["list", "--help"], framework=framework(None))
    assert "usage: web pgjobs list" in capsys.readouterr().out


def test_the_commands_are_those_of_the_program_without_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    commands = cli.commands_in_framework()
    assert {"work", "list", "migrate"} <= commands.keys()
    assert all(commands.values())
    with pytest.raises(SystemExit):
        cli.main(["demo"], framework=framework(None))
    assert "invalid choice: 'demo'" in capsys.readouterr().err


def test_work_without_a_framework_wants_a_pool(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["work"])
    assert end.value.code == 2
    assert "which worker pool? give MODULE:POOL" in capsys.readouterr().err
