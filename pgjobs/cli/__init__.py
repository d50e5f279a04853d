"""The command line program `pgjobs`. Each module has a group of its commands, which `add_parser` adds.

0    success
1    an error; or some jobs were skipped, or do not exist; for `migrate --check`: the tables do not fit this code
2    wrong usage
3    `wait`: a job was cancelled or discarded
4    `wait`: a job is not over after the timeout
5    `doctor`: the most urgent finding is a warning
6    `doctor`: a finding is critical
130  interrupted by Ctrl-C
141  the reader of the output is gone, as with `| head`
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Mapping, Sequence

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.cli import (
    change,
    dashboard,
    demo,
    doctor,
    enqueue,
    guide,
    listing,
    migrate,
    queues,
    roles,
    schedules,
    stats,
    version,
    work,
    workers,
)
from pgjobs.cli.app import Framework
from pgjobs.errors import PgjobsError
from pgjobs.version import __version__

_COMMANDS = (
    *(work, enqueue, listing, change, queues, schedules, workers, stats, doctor, dashboard),
    *(migrate, roles, guide, demo, version),
)
_LONGEST_ERROR = 2000


def main(arguments: Sequence[str] | None = None, *, framework: Framework | None = None) -> int:
    """Run a command and return the exit code, which the module's docstring lists. Errors are one line on stderr. With a
    framework the commands use its application, unless `--app` or `--dsn` is given."""
    _prepare_streams()
    given, parser = sys.argv[1:] if arguments is None else list(arguments), _parser(framework)
    if not given:
        parser.print_help(sys.stderr)
        return 2
    options = parser.parse_args(given)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (PgjobsError, psycopg.Error) as error:
        return _fail(_described(error, options))
    except KeyboardInterrupt as interrupt:
        if getattr(options, "changes", False):
            after = f" {interrupt}" if str(interrupt) else ""
            print(f"pgjobs: interrupted{after}; the unfinished step changed nothing", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:  # such as a full disk
        code = _fail(str(error))
        _discard_output()
    return code


def commands_in_framework() -> dict[str, str]:
    """The commands that a framework's command line has, with what each of them does."""
    commands = _add_commands(argparse.ArgumentParser(), in_framework=True)
    return {name: parser.description or "" for name, parser in commands.items()}


def _prepare_streams() -> None:
    """Let a character that the encoding of the terminal lacks be no error. A standard stream that was closed before the
    program started becomes the null device; else a connection would get its number, and be written to by others."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)
            setattr(sys, name, open(null, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  stays open
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(text: str) -> int:
    """Print an error as one line that changes nothing but its own place on a terminal."""
    print(f"pgjobs: error: {one_line(' '.join(text.split()), _LONGEST_ERROR)}", file=sys.stderr)
    return 1


def _described(error: Exception, options: argparse.Namespace) -> str:
    """The error with its advice. An error of the server is shown without its details, which may hold whole rows."""
    is_of_server = isinstance(error, psycopg.Error) and error.diag.message_primary
    parts = [one_line(error, _LONGEST_ERROR) if is_of_server else str(error), *getattr(error, "__notes__", ())]
    rights = getattr(options, "rights", None)
    if isinstance(error, psycopg.errors.InsufficientPrivilege) and rights is not None:
        parts.append(f"this command needs the rights of {rights}")
    return "; ".join(parts)


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails to flush stdout when it exits


def _parser(framework: Framework | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pgjobs" if framework is None else framework.program,
        description="A job queue on Postgres.",
        epilog="`pgjobs guide command-line` explains the commands and the exit codes.",
    )
    parser.add_argument("--version", action="version", version=f"pgjobs {__version__}", help="print the version")
    parser.set_defaults(framework=framework)
    _add_commands(parser, in_framework=framework is not None)
    return parser


def _add_commands(parser: argparse.ArgumentParser, *, in_framework: bool) -> Mapping[str, argparse.ArgumentParser]:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in _COMMANDS:
        if not in_framework or module is not demo:  # the demo is an application of its own
            module.add_parser(commands)
    return commands.choices
