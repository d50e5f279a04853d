"""What Postgres alone could do: the bare statements, run by pgbench on the same tables.

Each floor is a script beside this file. It stands there for the prepared protocol, with a pipeline, and is rewritten
to one message with `\\;` between the statements for the simple one; which is faster depends on the machine.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.ground import Table, WrongResult
from benchmarks.workload import DEADLINE
from pgjobs.embedded import EmbeddedPostgresError, find_bindir

PROTOCOLS = ("prepared", "simple")
CHAIN = Path(__file__).with_name("floor.sql")  # claim, lock, savepoint, finish
ENQUEUE = Path(__file__).with_name("floor_enqueue.sql")  # a plain INSERT
_SAVEPOINT = "SAVEPOINT pgjobs;\n"
_EFFECT = "INSERT INTO pgjobs.effect (job) VALUES (:token);\n"


def script(path: Path, protocol: str, schema: str, *, effect: bool = False) -> str:
    """The text of a floor; with an `effect`, one more INSERT stands between savepoint and release."""
    text = path.read_text()
    if effect:
        text = text.replace(_SAVEPOINT, _SAVEPOINT + _EFFECT, 1)
    text = re.sub(r"\bpgjobs\.(?=[a-z])", f'"{schema}".', text)
    if protocol == "prepared":
        return text
    head, _, rest = text.partition("\\startpipeline\n")
    statements = rest.partition("\\endpipeline")[0].strip().removesuffix(";")
    return head + statements.replace(";", " \\;") + ";\n"


class Pgbench:
    """One floor; called, it runs once and says how many a second. What a run does is checked by the caller."""

    def __init__(
        self, dsn: str, table: Table, clients: int, protocol: str, path: Path = CHAIN, *, effect: bool = False
    ) -> None:
        self._table, self._effect, self._enqueues = table, effect, path == ENQUEUE
        self._script = script(path, protocol, table.schema, effect=effect)
        each, rest = divmod(table.jobs, clients)
        if rest:
            raise SystemExit(f"--jobs must be a multiple of every number of threads, so of {clients}")
        self._command = [pgbench(), "--no-vacuum", f"--protocol={protocol}", f"--client={clients}"]
        self._command += [f"--jobs={min(clients, os.cpu_count() or 1)}", f"--transactions={each}"]
        self._dsn = dsn

    def __call__(self) -> float:
        if self._enqueues:
            self._table.empty()
        else:
            self._table.load()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "floor.sql")
            path.write_text(self._script)
            command = [*self._command, f"--file={path}", self._dsn]
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        if done.returncode != 0:
            raise WrongResult(f"pgbench failed:\n{done.stderr}")
        if self._enqueues:
            return self._table.insert_rate()
        if self._effect:
            self._table.check_effects(self._table.jobs)
        return self._table.rate()


def pgbench() -> str:
    """The program beside the server's, if there is one, else that of the PATH."""
    try:
        beside = shutil.which(find_bindir() / "pgbench")
    except EmbeddedPostgresError:
        beside = None
    program = beside or shutil.which("pgbench")
    if program is None:
        raise SystemExit("no pgbench found: it comes with Postgres's client programs; put it on the PATH")
    return program
