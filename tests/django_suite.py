"""Django's own tests of its tasks, run against PgjobsBackend: `make django-tasks-tests` fetches them and calls this.

    python -m tests.django_suite DIRECTORY        # `tests` of a source distribution of Django 6

A copy of them is changed where they name one of Django's two backends: the one that only keeps tasks, and the one that
runs a task at once. In their place come the two of django_suite_backends.py, which keep all tasks in the table and run
them with a worker pool. Lists what passes, what fails, and what does not apply and why. Exits with 1 if anything fails,
and if something is said not to apply that passes.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import unittest
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from psycopg.conninfo import conninfo_to_dict

from pgjobs import Client
from pgjobs.embedded import EmbeddedPostgres

NO_LACK = "asserts that the backend lacks a feature, which this one has"
IN_MEMORY = "changes a list of results in memory, while these are rows of a table"

#: Why it does not apply, whether it passes or not.
OF_ANOTHER = {"CustomBackendTestCase": "tests a backend that is defined beside it"}

#: By class and test, why it does not apply.
DO_NOT_APPLY: Mapping[str, str] = {
    "ImmediateBackendTestCase.test_cannot_get_result": NO_LACK,
    "ImmediateBackendTestCase.test_cannot_refresh_result": NO_LACK,
    "ImmediateBackendTestCase.test_cannot_pass_run_after": NO_LACK,
    "DummyBackendTestCase.test_refresh_result": IN_MEMORY,
    "DummyBackendTestCase.test_refresh_result_async": IN_MEMORY,
}

_OURS = "tests.django_suite_backends"
REPLACED: Mapping[str, str] = {
    "django.tasks.backends.dummy.DummyBackend": f"{_OURS}.StoringBackend",
    "django.tasks.backends.immediate.ImmediateBackend": f"{_OURS}.RunningBackend",
    "from django.tasks.backends.dummy import DummyBackend": f"from {_OURS} import StoringBackend as DummyBackend",
    "from django.tasks.backends.immediate import ImmediateBackend": (
        f"from {_OURS} import RunningBackend as ImmediateBackend"
    ),
    # Django's SimpleTestCase refuses every query
    "from . import tasks as test_tasks": (
        f"from {_OURS} import Case as SimpleTestCase, Case as TransactionTestCase\nfrom . import tasks as test_tasks"
    ),
    "available_apps = []": "available_apps = None",  # the app of pgjobs is needed
}


class Outcomes(unittest.TestResult):
    """What became of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: list[str] = []
        self.failed: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:
        self.passed.append(_name(test))

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.failed[_name(test)] = self._exc_info_to_string(err, test)  # type: ignore[attr-defined]

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.addFailure(test, err)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.failed[_name(test)] = f"skipped: {reason}\n"


def _name(test: unittest.TestCase) -> str:
    return ".".join(test.id().split(".")[-2:])


def copy_changed(tests: Path, target: Path) -> None:
    """Copy the package `tasks` of Django's tests, with the backends replaced."""
    package = target / "tasks"
    package.mkdir()
    for path in (tests / "tasks").glob("*.py"):
        text = path.read_text()
        for old, new in REPLACED.items():
            text = text.replace(old, new)
        (package / path.name).write_text(text)


def set_up(dsn: str) -> None:
    where: dict[str, Any] = dict(conninfo_to_dict(dsn))
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": where.pop("dbname"), "OPTIONS": where}
    logging.getLogger("pgjobs").addHandler(logging.NullHandler())
    logging.getLogger("pgjobs").propagate = False
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"  # coroutines of the tests call methods that now use the database
    settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["pgjobs.contrib.django"], USE_TZ=True)
    django.setup()
    with Client(dsn) as client:
        client.migrate()


def run(directory: Path) -> Outcomes:
    outcomes = Outcomes()
    suite = unittest.defaultTestLoader.discover(str(directory / "tasks"), "test_*.py", str(directory))
    suite.run(outcomes)
    return outcomes


def report(outcomes: Outcomes) -> bool:
    """Print what became of each test. Whether all is well."""
    counts: Counter[str] = Counter()

    def line(result: str, name: str, why: str = "") -> None:
        counts[result] += 1
        print(f"{result:<16}{name}{why and ': '}{why}")

    for name in sorted([*outcomes.passed, *outcomes.failed]):
        why = OF_ANOTHER.get(name.partition(".")[0]) or DO_NOT_APPLY.get(name, "")
        if why and (name in outcomes.failed or name not in DO_NOT_APPLY):
            line("does not apply", name, why)
        elif why:
            line("APPLIES NOW", name)
        else:
            line("FAILS" if name in outcomes.failed else "passes", name)
            print(outcomes.failed.get(name, ""), end="")
    print(f"Django {django.get_version()}:", ", ".join(f"{count} {result}" for result, count in counts.items()))
    return bool(counts["passes"]) and not counts["FAILS"] and not counts["APPLIES NOW"]


def main() -> int:
    (tests,) = sys.argv[1:]
    server = EmbeddedPostgres(fsync=False)
    server.start()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            set_up(server.dsn)
            copy_changed(Path(tests), Path(scratch))
            return 0 if report(run(Path(scratch))) else 1
    finally:
        server.stop()


if __name__ == "__main__":
    sys.exit(main())
