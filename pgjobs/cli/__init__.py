"""The command line program `pgjobs`. Each module has a group of its commands, which `add_parser` adds."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import psycopg

from pgjobs.cli import demo, guide, migrate, roles, schedules, work
from pgjobs.errors import PgjobsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code: 0 for success, 1 for an error, 2 for wrong usage, 130 after Ctrl-C, 141
    after a broken pipe."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except (PgjobsError, psycopg.Error) as error:
        print(f"pgjobs: {error}", *getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pgjobs: interrupted; the unfinished step changed nothing", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:  # such as a full disk
        print(f"pgjobs: {error}", file=sys.stderr)
        _discard_output()
        return 1
    return code


def _discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python fails to flush stdout when it exits


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pgjobs", description="A job queue on Postgres.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for module in (work, migrate, roles, schedules, guide, demo):
        module.add_parser(commands)
    return parser
