"""`manage.py pgjobs work`, and the other commands of pgjobs."""

from __future__ import annotations

import os
import re
import sys
import sysconfig
from argparse import REMAINDER
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from pgjobs.cli import main
from pgjobs.cli.app import App, Framework
from pgjobs.contrib.django.shortcuts import config

_FLAGS = ("--traceback", "--no-color", "--force-color", "--skip-checks")
_WITH_VALUE = ("--settings", "--pythonpath", "--verbosity", "-v")
_POOL = "pgjobs.contrib.django.worker:pool"
_LOG_LEVELS = ("warning", "info", "debug", "debug")  # by Django's verbosity


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types
    """Hands its arguments to the command line of pgjobs, which parses them. Django's own options may stand anywhere."""

    help = "Run workers, and list and change jobs: `manage.py pgjobs --help` names the commands."
    _program = "manage.py pgjobs"
    _is_program = False  # else it was called by call_command

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        if prog_name:
            self._program = f"{os.path.basename(prog_name)} {subcommand}"
        return super().create_parser(prog_name, subcommand, add_help=False, **kwargs)  # the help is that of pgjobs

    def print_help(self, prog_name: str, subcommand: str) -> None:
        self.create_parser(prog_name, subcommand)
        self._main(["--help"])

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("arguments", nargs=REMAINDER)

    def run_from_argv(self, argv: list[str]) -> None:
        self._is_program = True
        own, others = _split(argv[2:])
        super().run_from_argv([*argv[:2], *own, "--", *others])

    def handle(self, *args: object, arguments: list[str], **options: Any) -> None:
        given = arguments[1:] if arguments[:1] == ["--"] else arguments
        if given[:1] == ["work"]:
            given += _log_level(given, options["verbosity"])
        if not self._is_program:
            self._call(given, options)
            return
        _prepare_children(options)
        try:
            code = self._main(given)
        finally:
            config().close()
        sys.exit(code)

    def _call(self, given: Sequence[str], options: dict[str, Any]) -> None:
        out, err = options.get("stdout") or sys.stdout, options.get("stderr") or sys.stderr
        with redirect_stdout(out), redirect_stderr(err):
            code = self._main(given)
        if code:
            raise CommandError(f"pgjobs {' '.join(given)} has failed with code {code}", returncode=code)

    def _main(self, given: Sequence[str]) -> int:
        def load() -> App:
            return App(config().client(), config().work_map)

        return main(given, framework=Framework(program=self._program, load=load, pool=_POOL))


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of every command of Django, and all the others."""
    own: list[str] = []
    others: list[str] = []
    left = iter(arguments)
    for argument in left:
        name = argument.partition("=")[0]
        if argument == "--":
            others += [argument, *left]
        elif name in _FLAGS or (name in _WITH_VALUE and name[:2] == "--") or re.fullmatch("-v[0-3]?", argument):
            own += [argument, *_value(argument, left)]
        else:
            others.append(argument)
    return own, others


def _value(argument: str, left: Iterator[str]) -> Iterator[str]:
    """The value of an option, if it stands in an argument of its own."""
    return islice(left, 1) if argument in _WITH_VALUE else iter(())


def _log_level(arguments: Sequence[str], verbosity: int) -> list[str]:
    """The option for the log of a worker that `-v` stands for, unless the log level is given."""
    if verbosity == 1 or any(each.startswith("--log-level") for each in arguments):
        return []
    return ["--log-level", _LOG_LEVELS[verbosity]]


def _prepare_children(options: dict[str, Any]) -> None:
    """Let the processes of `work` find what this one has found. They have DJANGO_SETTINGS_MODULE already."""
    standard = sysconfig.get_path("stdlib")
    others = [
        path
        for path in sys.path
        if path and not path.startswith(standard) and not path.endswith(".zip") and "-packages" not in Path(path).name
    ]
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*others, *filter(None, before)]))
    for name in ("no_color", "force_color"):
        if options.get(name):
            os.environ[name.upper()] = "1"
