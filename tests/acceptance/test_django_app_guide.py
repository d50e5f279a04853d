"""The page "In a Django app", from an empty directory: its files, its commands, and what they print."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.django_project import django_database, project
from tests.documents import PAGES

(PAGE,) = [page for page in PAGES if page.name == "django"]


@pytest.fixture
def directory(tmp_path: Path, fresh_database: str) -> Path:
    """What `django-admin startproject shop .` makes, and the files of the page."""
    subprocess.run([sys.executable, "-m", "django", "startproject", "shop", "."], cwd=tmp_path, check=True)
    for name, code in PAGE.files.items():
        with (tmp_path / name).open("a") as file:
            file.write(f"\n\n{code}")
    with (tmp_path / "shop/settings.py").open("a") as file:
        file.write(f"DATABASES = {{'default': {django_database(fresh_database)!r}}}\n")
    return tmp_path


def test_its_commands_print_what_it_says(directory: Path, fresh_database: str) -> None:
    with project(directory / "not used", fresh_database) as looking:
        looking.directory = directory
        printed = ""
        for line in (line for block in PAGE.blocks("sh") for line in block.code.splitlines()):
            program, file, *arguments = shlex.split(line)
            assert (program, file) == ("python", "manage.py")
            done = looking.call(file, *arguments)
            assert done.code == 0, done.err
            printed += done.out
        assert printed == PAGE.output_after("sh")
        assert looking.query("SELECT email, greeted FROM shop_customer") == [("ada@example.com", True)]
        assert looking.jobs == [("welcome", "completed", 1)]


def test_type_checkers_have_nothing_to_say_about_it(directory: Path) -> None:
    """Django itself has no types; what is ours has."""
    wrong = directory / "shop/wrong.py"
    wrong.write_text(
        "from shop.jobs import Welcome, welcome\n"
        "from dataclasses import dataclass\n"
        "from typing import Any\n"
        "from pgjobs import Job\n"
        "from pgjobs.contrib.django import enqueue, handles\n\n"
        "@dataclass\nclass Other:\n    n: int\n\n"
        "@handles(Other)\ndef other(tx: Any, job: Job[Welcome]) -> None: ...\n\n"  # line 11
        "reveal_type(enqueue(Other(1)))\n"  # line 14
        "enqueue(Other(1), prio=1)\n"  # line 15
    )
    config = directory / "mypy.ini"
    config.write_text(
        "[mypy]\nstrict = true\n[mypy-django.*]\nignore_missing_imports = true\n"
        "[mypy-shop.models]\ndisallow_subclassing_any = false\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config)]
    command += ["shop/jobs.py", "shop/accounts.py", "shop/wrong.py"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if ": error:" in line or "Revealed" in line]
    places = list(dict.fromkeys(tuple(line.split(":")[:2]) for line in lines))
    assert places == [("shop/wrong.py", number) for number in ("11", "14", "15")], done.stdout
    assert 'Revealed type is "pgjobs.job.Job[shop.wrong.Other]"' in lines[1]
