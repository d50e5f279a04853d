"""LISTEN: one thread per process that calls idle workers when a notification arrives.

It only makes things faster. The idle workers poll by themselves, so a connection that does not listen, or a listener
that hangs in one, loses no job.

A peer that has gone silent looks exactly like one that has nothing to say, and neither TCP nor a wait with a timeout
need ever tell them apart. So after a while of silence the listener asks something, and hangs up when no answer comes.
"""

from __future__ import annotations

import logging
import os
import selectors
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg

from pgjobs.clean_text import one_line
from pgjobs.db.channel import listen, probe
from pgjobs.db.checkout import NEVER
from pgjobs.db.connection import shut_down
from pgjobs.db.cursors import AnyConnection
from pgjobs.loggers import get_logger
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.queries import WakeupQueries
from pgjobs.wakeup.wakeup_leader import Posts

log = get_logger("pgjobs.listener")

_FIRST_PAUSE = 0.1  # seconds before LISTEN is tried again; doubles
_LONGEST_PAUSE = 10.0
# A silent peer is noticed after the sum of these, at the latest.
_SILENCE = 10.0  # seconds without a notification before the peer is asked whether it is there
_ANSWER = 5.0  # seconds that it has to answer


class Listener:
    """The listening thread. Calls `wake(queue)` for each notification, `wake(None)` when some may have been missed.

    For the idle threads that say so by `call` it also sees to it that those who enqueue notify; see wakeup_leader.py.
    `leaves_jobs` says that some of the jobs are left to other processes.
    """

    def __init__(
        self,
        schema: str,
        connect: Callable[[], AnyConnection],
        *,
        wake: Callable[[str | None], None],
        name: str,
        leaves_jobs: bool = False,
    ) -> None:
        self._schema = schema
        self._posts = Posts(WakeupQueries(schema), leaves_jobs=leaves_jobs)
        self._called: dict[IdleThreads, str] = {}
        self._calling = threading.Lock()
        self._connect = connect
        self._wake = wake
        self._call_read, self._call_write = os.pipe()  # a wait on a socket can only be ended through a descriptor
        os.set_blocking(self._call_read, False)
        os.set_blocking(self._call_write, False)
        self._warned = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._conn: AnyConnection | None = None
        self._answers: _Answers | None = None
        self._heard: list[tuple[int, str]] = []  # notifications, with who has sent them
        self._listening = False
        self._direct = False  # whether no pooler stands between
        self._pause = _FIRST_PAUSE
        self._lost_at: float | None = None  # since when nobody listens, if that was said

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Stop soon. Waits for nothing."""
        self._stopping.set()
        self._interrupt()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread and its connection. One that hangs in a connect is left behind; it ends when that does."""
        self.end()
        if self._thread.is_alive():  # else it was not even started
            self._thread.join(timeout)
        if not self._thread.is_alive():
            with self._calling:
                os.close(self._call_read)
                os.close(self._call_write)
                self._call_write = -1

    def call(self, idle: IdleThreads, queue: str) -> None:
        """The threads of this queue have found nothing to do, or are to do nothing more. From any thread."""
        with self._calling:
            silent = not self._called
            self._called[idle] = queue
        if silent:
            self._interrupt()

    def _interrupt(self) -> None:
        """End the wait of the thread, now or the next."""
        with self._calling, suppress(BlockingIOError):  # a full pipe will do
            if self._call_write >= 0:
                os.write(self._call_write, b"x")

    @property
    def listening(self) -> bool:
        """Whether it has a connection on which it listens now."""
        return self._listening

    @property
    def hears(self) -> bool:
        """Whether notifications arrive now, as far as is known: behind a pooler none does."""
        return self._listening and self._direct

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:  # also what a callable connection string raises
                if not self._stopping.is_set():
                    self._say_lost(error)
                self._hang_up()
                self._stopping.wait(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._hang_up()

    def _say_lost(self, error: Exception) -> None:
        """Said once, and not at every try."""
        level = logging.WARNING if self._lost_at is None else logging.DEBUG
        log.log(level, "not listening, only polling, until a connection for it can be had: %s", one_line(error))
        if self._lost_at is None:
            self._lost_at = time.monotonic()

    def _say_back(self) -> None:
        if self._lost_at is not None:
            log.info("listening again, after %.0f s", time.monotonic() - self._lost_at)
            self._lost_at = None

    def _listen(self) -> None:
        """Listen until it is time to stop; raises when the connection is lost."""
        self._conn = conn = self._connect()
        self._heard.clear()
        conn.add_notify_handler(lambda came: self._heard.append((came.pid, came.payload)))  # beside an answer
        self._answers = answers = _Answers(conn, f"{self._thread.name}-answers")
        with answers.in_time():
            listen(conn, self._schema)
            self._direct = self._posts.begin(conn)
        if not self._direct and not self._warned:
            self._warned = True
            log.warning("connected through a pooler, so nobody notifies this process: it finds jobs by polling; give "
                        "listen_dsn=, a direct connection, or listen=False")  # fmt: skip
        self._listening = True
        self._say_back()
        self._wake(None)  # for what was enqueued while nobody listened
        self._pause = _FIRST_PAUSE
        with selectors.DefaultSelector() as selector:
            selector.register(self._call_read, selectors.EVENT_READ)
            selector.register(conn.fileno(), selectors.EVENT_READ)
            while not self._stopping.is_set():
                self._hear(conn, answers)
                rest = self._tend(conn, answers)
                silence = answers.silence
                if silence >= _SILENCE:
                    with answers.in_time():
                        probe(conn, self._schema)
                    answers.have_come()
                    continue  # a notification may have come with the answer
                for key, _ in selector.select(min(rest, _SILENCE - silence)):
                    if key.fd == self._call_read:
                        os.read(self._call_read, 4096)
        with answers.in_time(), suppress(psycopg.Error):
            self._posts.leave_all(conn)

    def _hear(self, conn: AnyConnection, answers: _Answers) -> None:
        """Wake those whom the notifications are for."""
        with conn.lock:  # psycopg's own generator takes longer than all the rest
            conn.pgconn.consume_input()
            while (read := conn.pgconn.notifies()) is not None:
                self._heard.append((read.be_pid, read.extra.decode(errors="replace")))
        heard, self._heard = self._heard, []
        for pid, payload in heard:
            answers.have_come()
            if pid == conn.pgconn.backend_pid:  # for the other processes
                continue
            if not self._posts.send(payload):
                self._wake(payload)

    def _tend(self, conn: AnyConnection, answers: _Answers) -> float:
        """What those who have called need, and who was waiting; how long until there is more to do."""
        with self._calling:
            called, self._called = self._called, {}
        with answers.in_time():
            return self._posts.tend(conn, called)

    def _hang_up(self) -> None:
        self._listening = False
        self._posts.lose()
        if self._answers is not None:
            self._answers.end()
            self._answers = None
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None


class _Answers:
    """Sees to it that answers come: when one is late the connection is shut down, and what waits for it raises."""

    def __init__(self, conn: AnyConnection, name: str) -> None:
        self._conn = conn
        self._due = NEVER
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    @property
    def silence(self) -> float:
        """Seconds for which nothing has come."""
        return time.monotonic() - self._last

    def have_come(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def in_time(self) -> Iterator[None]:
        """What is asked in the block is answered by its end."""
        self._due = time.monotonic() + _ANSWER
        yield
        self._due = NEVER

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(_ANSWER, max(0.0, self._due - time.monotonic()))):
            if time.monotonic() >= self._due:
                shut_down(self._conn)
                return
