"""LISTEN: one thread per process that wakes idle workers when a notification arrives.

It only makes things faster: the idle workers poll too, so no job is lost when nothing listens.

A connection whose peer has vanished looks like an idle one, and the operating system may never report the difference.
So after some silence the listener sends a query, and connects again if no answer comes.
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
from pgjobs.outages import Outages, kind_of
from pgjobs.wakeup.idle_threads import IdleThreads
from pgjobs.wakeup.queries import WakeupQueries
from pgjobs.wakeup.wakeup_leader import WakeupLeader

log = get_logger("pgjobs.listener")

_FIRST_PAUSE = 0.1  # seconds until the next attempt to connect and LISTEN; doubles
_LONGEST_PAUSE = 10.0
# A peer that has vanished is noticed after the sum of these two, at the latest.
_SILENCE = 10.0  # seconds without a notification until the listener sends a query
_ANSWER = 5.0  # seconds that the server has to answer it
_UPDATE_AFTER = 0.005  # seconds from a first notification to the update of the leader


class Listener:
    """The listening thread. Calls `wake(queue)` for each notification, and `wake(None)` when it may have missed some.

    It also runs this process's WakeupLeader, for the idle threads that `report` to it. `leaves_jobs` says that the
    workers leave jobs of unknown kinds to other processes. `outages` are those of the other users of the same server;
    None if only this thread connects to it.
    """

    def __init__(
        self,
        schema: str,
        connect: Callable[[], AnyConnection],
        *,
        wake: Callable[[str | None], None],
        name: str,
        leaves_jobs: bool = False,
        outages: Outages | None = None,
    ) -> None:
        self._schema = schema
        self._leader = WakeupLeader(WakeupQueries(schema), leaves_jobs=leaves_jobs)
        self._reported: dict[IdleThreads, str] = {}  # since the last update of the leader; with the queue's name
        self._reporting = threading.Lock()
        self._connect = connect
        self._wake = wake
        self._interrupt_read, self._interrupt_write = os.pipe()  # a byte in this pipe ends the wait on the socket
        os.set_blocking(self._interrupt_read, False)
        os.set_blocking(self._interrupt_write, False)
        self._warned = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._conn: AnyConnection | None = None
        self._answers: _AnswerTimer | None = None
        self._notifications: list[tuple[int, str]] = []  # the sender's process id, and the payload
        self._listening = False
        self._direct = False  # connected without a pooler
        self._pause = _FIRST_PAUSE
        self._loss = _Loss(outages)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Ask the thread to stop, without waiting for it."""
        self._stopping.set()
        self._interrupt()

    def stop(self, timeout: float = 2.0) -> None:
        """End the thread and its connection. A thread that hangs in a connect is left behind, and ends after it."""
        self.end()
        if self._thread.is_alive():  # else it was never started
            self._thread.join(timeout)
        if not self._thread.is_alive():
            with self._reporting:
                os.close(self._interrupt_read)
                os.close(self._interrupt_write)
                self._interrupt_write = -1

    def report(self, idle: IdleThreads, queue: str) -> None:
        """The threads of this queue have found it empty, or the pool works it no longer. Any thread may call this."""
        with self._reporting:
            first = not self._reported
            self._reported[idle] = queue
        if first:
            self._interrupt()

    def _interrupt(self) -> None:
        """End the present wait of the thread, or the next."""
        with self._reporting, suppress(BlockingIOError):  # a full pipe interrupts just as well
            if self._interrupt_write >= 0:
                os.write(self._interrupt_write, b"x")

    @property
    def alive(self) -> bool:
        """Whether its thread runs, with or without a connection."""
        return self._thread.is_alive()

    @property
    def listening(self) -> bool:
        """Whether a LISTEN is in force on a connection."""
        return self._listening

    @property
    def receiving(self) -> bool:
        """Whether notifications arrive: none do behind a pooler."""
        return self._listening and self._direct

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._listen()
            except Exception as error:  # any: a connection string may be a callable of the application
                if not self._stopping.is_set():
                    self._loss.failed(error)
                self._disconnect()
                self._stopping.wait(self._pause)
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._disconnect()

    def _listen(self) -> None:
        """Connect, and listen until the thread is to stop. Raises when the connection is lost."""
        self._conn = conn = self._connect()
        self._notifications.clear()
        # for notifications that arrive together with the answer to a query
        conn.add_notify_handler(lambda notify: self._notifications.append((notify.pid, notify.payload)))
        self._answers = answers = _AnswerTimer(conn, f"{self._thread.name}-answers")
        with answers.expected():
            listen(conn, self._schema)
            self._direct = self._leader.connected(conn)
        if not self._direct and not self._warned:
            self._warned = True
            log.warning("connected through a pooler, which passes no notifications on: this process finds jobs by "
                        "polling; give listen_dsn=, a direct connection, or listen=False")  # fmt: skip
        self._listening = True
        self._loss.over()
        self._wake(None)  # jobs may have been enqueued before the LISTEN
        self._pause = _FIRST_PAUSE
        self._listen_on(conn, answers)
        with answers.expected(), suppress(psycopg.Error):
            self._leader.resign_all(conn)

    def _listen_on(self, conn: AnyConnection, answers: _AnswerTimer) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._interrupt_read, selectors.EVENT_READ)
            selector.register(conn.fileno(), selectors.EVENT_READ)
            postponed = False
            while not self._stopping.is_set():
                woken = self._dispatch(conn, answers)
                # A thread that was just woken needs the interpreter's lock at once, and nothing is due so soon. A
                # report that comes from now on interrupts the wait.
                postponed = woken and not postponed and not self._reported
                pause = _UPDATE_AFTER if postponed else self._update_leader(conn, answers)
                silence = answers.silence
                if silence >= _SILENCE:
                    with answers.expected():
                        probe(conn, self._schema)
                    answers.reset_silence()
                    continue  # a notification may have come with the answer
                for key, _ in selector.select(min(pause, _SILENCE - silence)):
                    if key.fd == self._interrupt_read:
                        os.read(self._interrupt_read, 4096)

    def _dispatch(self, conn: AnyConnection, answers: _AnswerTimer) -> bool:
        """Read the notifications, and wake a thread for each. Returns whether one was of a queue that this process
        leads."""
        with conn.lock:  # read directly: the generator of psycopg takes longer than everything else here
            conn.pgconn.consume_input()
            while (read := conn.pgconn.notifies()) is not None:
                self._notifications.append((read.be_pid, read.extra.decode(errors="replace")))
        notifications, self._notifications = self._notifications, []
        of_leader = False
        for pid, payload in notifications:
            answers.reset_silence()
            if pid == conn.pgconn.backend_pid:  # from this WakeupLeader, for the other processes
                continue
            if self._leader.notified(payload):
                of_leader = True
            else:
                self._wake(payload)
        return of_leader

    def _update_leader(self, conn: AnyConnection, answers: _AnswerTimer) -> float:
        """Returns the seconds until the next update, unless there is a report before."""
        with self._reporting:
            reported, self._reported = self._reported, {}
        with answers.expected():
            return self._leader.update(conn, reported)

    def _disconnect(self) -> None:
        self._listening = False
        self._leader.connection_lost()
        if self._answers is not None:
            self._answers.end()
            self._answers = None
        if self._conn is not None:
            with suppress(psycopg.Error):
                self._conn.close()
            self._conn = None


class _Loss:
    """Logs that the connection is lost, and that it is back. A loss that the first try to connect ends is not logged.

    A server that is down is logged once by all parts of a worker pool, and that line may be this thread's. If this
    thread fails alone, it logs that once, with a line of its own.
    """

    def __init__(self, outages: Outages | None) -> None:
        self._outages = outages
        self._over()

    def _over(self) -> None:
        self._since: float | None = None
        self._failures = 0  # since the loss, or since the others have worked again
        self._shared = False  # logged as a failure of all parts
        self._logged = False  # logged as a failure of this thread

    def failed(self, error: Exception) -> None:
        if self._since is None:
            self._since = time.monotonic()
        text = "not listening, only polling, until it can connect again"
        outages = self._outages
        if outages is not None and outages.database_is_down:
            self._shared, self._failures = True, 0
        else:
            self._failures += 1
        if self._failures < 2 or self._logged:
            log.debug("%s: %s", text, one_line(error))
        elif outages is not None and not self._shared and kind_of(error) is not None:
            self._shared, self._failures = True, 0
            outages.failed(log, "listening", error, text)
        else:
            self._logged = True
            log.warning("%s: %s", text, one_line(error))

    def over(self) -> None:
        if self._since is None:
            return
        level = logging.INFO if self._logged else logging.DEBUG
        log.log(level, "listening again, after %.0f s", time.monotonic() - self._since)
        if self._outages is not None and self._shared:
            self._outages.worked(log, "listening")
        self._over()


class _AnswerTimer:
    """Shuts the connection down when an answer is late, so that the thread that waits for it gets an error."""

    def __init__(self, conn: AnyConnection, name: str) -> None:
        self._conn = conn
        self._due = NEVER
        self._last = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self._thread.start()

    @property
    def silence(self) -> float:
        """Seconds since the server last sent something."""
        return time.monotonic() - self._last

    def reset_silence(self) -> None:
        self._last = time.monotonic()

    @contextmanager
    def expected(self) -> Iterator[None]:
        """The queries of the block must be answered in time."""
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
