"""Runs the program `pgjobs` as a process of its own, in pipes or on a terminal, with rich or without."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pgjobs import Client

ROOT = Path(__file__).parent.parent.parent
PIPE = subprocess.PIPE
BARE = "import sys; sys.modules['rich'] = None; from pgjobs.cli import main; sys.exit(main())"  # as if not installed
RICH = "import sys, rich; from pgjobs.cli import main; sys.exit(main())"
VARIABLES = ("DATABASE_URL", "PGJOBS_APP", "COLUMNS", "NO_COLOR", "FORCE_COLOR")


class Done(NamedTuple):
    code: int
    out: str  # on a terminal, what was written to it
    err: str = ""

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def environment(**env: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES and name[:2] != "PG"}
    return {**kept, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **env}


def of(client: Client) -> list[str]:
    """The options that name the tables of a client."""
    return ["--dsn", str(client.pool.conninfo), "--schema", client.schema]


def start(*arguments: object, rich: bool = False, cwd: Path | None = None, **pipes: Any) -> Any:
    program = [sys.executable, "-c", RICH if rich else BARE, *map(str, arguments)]
    return subprocess.Popen(program, cwd=cwd, **{"env": environment(), **pipes})


def run(
    *arguments: object, rich: bool = False, stdin: str = "", cwd: Path | None = None, env: dict[str, str] | None = None
) -> Done:
    """Run it in pipes."""
    program = [sys.executable, "-c", RICH if rich else BARE, *map(str, arguments)]
    done = subprocess.run(
        program,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env=environment(**(env or {})),
    )
    return Done(done.returncode, done.stdout, done.stderr)


def run_on_terminal(
    *arguments: object,
    rich: bool,
    width: int = 120,
    answer: Callable[[str], bytes | None] = lambda shown: b"",
    env: dict[str, str] | None = None,
) -> Done:
    """Run it on a pseudo terminal, where all of its output goes.

    `answer` gets all that was shown so far, and returns what is typed then; None closes the terminal. It types once.
    """
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    running = start(
        *arguments,
        rich=rich,
        env=environment(**(env or {})),
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=_take_terminal,
    )
    os.close(terminal)
    deadline = threading.Timer(60, running.kill)
    deadline.start()
    try:
        return Done(*_read(running, controller, answer))
    finally:
        deadline.cancel()
        running.kill()
        running.wait()
        with suppress(OSError):
            os.close(controller)


def _take_terminal() -> None:
    """Begin a session of its own on the terminal, whose Ctrl-C is then a signal."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _read(running: subprocess.Popen[Any], controller: int, answer: Callable[[str], bytes | None]) -> tuple[int, str]:
    shown, answered = b"", False
    with suppress(OSError):  # EIO at the end of the last process of the terminal, on Linux
        while data := os.read(controller, 65536):
            shown += data
            typed = b"" if answered else answer(shown.decode(errors="replace"))
            if typed is None:
                os.close(controller)
                break
            if typed:
                os.write(controller, typed)
                answered = True
    return running.wait(timeout=60), shown.decode(errors="replace").replace("\r\n", "\n")
