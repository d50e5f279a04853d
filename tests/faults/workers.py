"""Worker processes that can be stopped at a named point, killed, and looked at."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests import modes
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Worker:
    """A worker process. It is known by a descriptor, so that a signal never reaches another that got its number."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self._log = log
        self._fd = os.pidfd_open(pid)

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        """`kill -9`, and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """SIGSTOP, and wait until it stands still."""
        self.send(signal.SIGSTOP)
        self.wait_stopped()

    def resume(self) -> None:
        self.send(signal.SIGCONT)

    @property
    def alive(self) -> bool:
        return not select.select([self._fd], [], [], 0)[0]

    @property
    def stopped(self) -> bool:
        """Whether it stands at a stop point."""
        with suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def wait_stopped(self, timeout: float = 20) -> None:
        wait_until(lambda: self.stopped, timeout)

    def wait(self, timeout: float = 20) -> None:
        """Wait until it has ended."""
        assert select.select([self._fd], [], [], timeout)[0], f"worker {self.pid} still runs:\n{self.log}"

    @property
    def log(self) -> str:
        """What all workers of its nursery have logged."""
        return _read(self._log)

    @property
    def memory(self) -> int:
        """Resident, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def close(self) -> None:
        self.kill()
        os.close(self._fd)


class Nursery:
    """The process that workers are forked from: once for each way to run them. What it started ends with it."""

    def __init__(
        self, directory: Path, *, prefix: Sequence[str] = (), env: Mapping[str, str] | None = None, root: Path = ROOT
    ) -> None:
        self._log = directory / "workers.log"
        self._workers: list[Worker] = []
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.faults.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,  # is the first place where Python looks for the library
            env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(env or {}),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What all its workers of this test have logged."""
        return _read(self._log)

    def start(self, *, dsn: str, queues: Mapping[str, int] | None = None, **config: Any) -> Worker:
        """A worker; see child.py for what it can be told. `ledger` is where it writes its starts, if not at `dsn`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"dsn": dsn, "ledger": dsn, "schema": "pgjobs", "queues": queues or {"default": 1}}
        mode = {"batch_size": modes.BATCH_SIZE, "source": "plain" if modes.PLAIN else "own"}
        config = wanted | mode | {"log": str(self._log)} | config
        print(json.dumps(config), file=self._process.stdin, flush=True)
        worker = Worker(int(self._process.stdout.readline()), self._log)
        self._workers.append(worker)
        return worker

    def close_workers(self) -> None:
        """The next test has a log of its own."""
        while self._workers:
            self._workers.pop().close()
        self._log.unlink(missing_ok=True)

    def forget(self, worker: Worker) -> None:
        """It is dead; nothing is kept of it."""
        self._workers.remove(worker)
        worker.close()

    def close(self) -> None:
        self.close_workers()
        with self._process:
            self._process.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""
