"""Asks before something is destroyed."""

from __future__ import annotations

import sys

from pgjobs.errors import PgjobsError


def confirm(warning: str, *, yes: bool) -> None:
    """Go on with `--yes`, or if the user says so on the terminal; else raise PgjobsError."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise PgjobsError(f"{warning}: add --yes to do that")
    try:
        print(f"{warning}. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        answer = input()
    except EOFError:  # Ctrl-D
        answer = ""
    except KeyboardInterrupt:
        print(file=sys.stderr)  # what follows begins a line of its own
        raise
    if answer.strip().lower() not in ("y", "yes"):
        raise PgjobsError("nothing was changed")
