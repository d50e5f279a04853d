"""A storm: worker processes are killed all along, the server crashes, and nothing may be lost or doubled.

    python -m tests.faults.storm                 # five minutes, as `make storm`
    python -m tests.faults.storm --seconds 20 --jobs 1000 --restarts 1
    python -m tests.faults.storm --batch-size 20         # the jobs run in batches
    python -m tests.faults.storm --soak 30       # minutes of mild weather: memory and connections must stay flat

Jobs that each write one effect are enqueued all along. Prints a table; the exit code is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

import pgjobs
from pgjobs.embedded import EmbeddedPostgres
from tests.faults.invariants import TICKS, violations
from tests.faults.ledger import Ledger
from tests.faults.workers import Nursery, Worker
from tests.waiting import wait_until

DRAINED = 60.0  # seconds after the last fault
_SHOWN = 20_000  # characters of the workers' log, if they did not drain the queue


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to happen. Rates are in seconds; None is never."""

    seconds: float = 300.0
    jobs: int = 20_000
    processes: int = 4
    threads: int = 8
    kill_every: float | None = 0.2
    terminate_every: float | None = None
    restarts: int = 3
    schedules: int = 10
    steady: int = 0  # processes more that are never killed, whose memory is looked at
    batch_size: int = 1
    source: str = "own"  # of connections; see child.py
    window: float = 5.0  # seconds in which some job must be completed, while there is a server
    late: float = 2.0  # seconds that a job may wait beyond its own delay, after the last fault
    seed: int = 1


@dataclass
class Events:
    """What did happen."""

    began: float = field(default_factory=time.time)
    running_at_kill: list[int] = field(default_factory=list)
    terminated: int = 0
    down: list[tuple[float, float]] = field(default_factory=list)  # from when to when there was no server
    last_fault: float = 0.0
    memory: list[int] = field(default_factory=list)
    connections: list[int] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)


class Storm:
    """One run of a plan on an empty queue."""

    def __init__(self, plan: Plan, server: EmbeddedPostgres, ledger: Ledger, nursery: Nursery) -> None:
        self.plan = plan
        self.events = Events()
        self.ledger = ledger
        self._server = server
        self._nursery = nursery
        self._random = random.Random(plan.seed)
        self._over = threading.Event()
        self._workers = [self._start_worker() for _ in range(plan.processes)]
        self._steady = [self._start_worker() for _ in range(plan.steady)]

    def run(self) -> None:
        """The weather, then the calm in which the queue drains."""
        parts: list[Callable[[], None]] = [self._enqueue, self._restart]
        parts += [self._keep_alive] if self.plan.kill_every is None else [self._kill]
        parts += [] if self.plan.terminate_every is None else [self._terminate]
        parts += [self._measure] if self.plan.steady else []
        threads = [threading.Thread(target=self._guarded, args=(part,)) for part in parts]
        for thread in threads:
            thread.start()
        threads[0].join(self.plan.seconds * 2 + 30)
        self._over.set()
        for thread in threads:
            thread.join()
        if self.events.errors:
            raise self.events.errors[0]
        self.events.last_fault = time.time()
        self._revive()

    def drain(self) -> float:
        """Seconds from the last fault until no job is left to do. Ends the workers then."""
        left = "SELECT count(*) FROM {schema}.job WHERE finalized_at IS NULL AND kind = 'job'"
        try:
            wait_until(lambda: self.ledger.sql(left) == [(0,)], timeout=DRAINED)
        except AssertionError as error:
            states = [(worker.pid, "alive" if worker.alive else "dead") for worker in self._workers]
            log = self._nursery.log[-_SHOWN:]
            raise AssertionError(f"{error}\n{self.ledger.situation()}\n{states}\n{log}") from None
        seconds = time.time() - self.events.last_fault
        for worker in (*self._workers, *self._steady):
            worker.send(signal.SIGTERM)
        for worker in (*self._workers, *self._steady):
            worker.wait()
        return seconds

    def _start_worker(self) -> Worker:
        return self._nursery.start(
            dsn=self.ledger.dsn,
            queues={"default": self.plan.threads},
            schedules=self.plan.schedules,
            batch_size=self.plan.batch_size,
            source=self.plan.source,
        )

    def _guarded(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:
            self.events.errors.append(error)
            self._over.set()

    # --- the parts, each a thread

    def _enqueue(self) -> None:
        """Each in a transaction of its own; one that fails is tried again."""
        pause = self.plan.seconds / self.plan.jobs
        tx: psycopg.Connection[object] | None = None
        due = time.monotonic()
        for _ in range(self.plan.jobs):
            due += pause
            command = f"sleep {self._random.uniform(0.005, 0.3):.3f}"
            while not self._over.is_set():
                try:
                    tx = tx or psycopg.connect(self.ledger.dsn)
                    with tx.transaction():
                        self.ledger.enqueue_in(tx, command)
                    break
                except psycopg.OperationalError:
                    if tx is not None:
                        tx.close()
                    tx = None
                    self._over.wait(0.05)
            self._over.wait(max(0.0, due - time.monotonic()))
        if tx is not None:
            tx.close()

    def _kill(self) -> None:
        """One process after the other, in any order and while jobs run; another takes its place at once."""
        assert self.plan.kill_every is not None
        running = """
            SELECT count(*) FROM pg_stat_activity
            WHERE application_name = 'pgjobs' AND datname = current_database() AND state = 'idle in transaction'
        """  # handlers that sleep; those of the dead are no sessions any more
        due = time.monotonic() + self.plan.kill_every
        while not self._over.wait(max(0.0, due - time.monotonic())):
            due = max(due, time.monotonic() - 1) + self.plan.kill_every
            self._revive()
            number = self.ledger.sql(running)[0][0]
            if number:
                self.events.running_at_kill.append(number)
                self._random.choice(self._workers).kill()
                self._revive()

    def _keep_alive(self) -> None:
        while not self._over.wait(0.5):
            self._revive()

    def _revive(self) -> None:
        """A new worker for each that is dead, or that could not start while there was no server."""
        for number, worker in enumerate(self._workers):
            if not worker.alive:
                self._nursery.forget(worker)
                self._workers[number] = self._start_worker()

    def _terminate(self) -> None:
        victim = """
            SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE application_name = 'pgjobs' AND datname = current_database() ORDER BY random() LIMIT 1
        """
        while not self._over.wait(self.plan.terminate_every):
            self.events.terminated += len(self.ledger.sql(victim))

    def _restart(self) -> None:
        """Crash the server, at even distances."""
        for _ in range(self.plan.restarts):
            if self._over.wait(self.plan.seconds / (self.plan.restarts + 1)):
                return
            began = time.time()
            self._server.restart("immediate")
            self.events.down.append((began, time.time()))

    def _measure(self) -> None:
        connections = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        while not self._over.wait(max(0.5, self.plan.seconds / 200)):
            self.events.memory.append(max(worker.memory for worker in self._steady))
            self.events.connections.append(self.ledger.sql(connections)[0][0])


# --- what it has come to


@dataclass
class Verdict:
    """The table, and what is wrong in it."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def add(self, name: str, value: object, fine: bool = True) -> None:
        self.rows.append((name, f"{value:,}" if isinstance(value, int) else str(value)))
        if not fine:
            self.broken.append(f"{name}: {value}")

    def __str__(self) -> str:
        wide = max(len(name) for name, _ in self.rows)
        lines = [f"{name:<{wide}}  {value:>14}" for name, value in self.rows]
        return "\n".join([*lines, *(f"BROKEN  {each}" for each in self.broken)])


def judge(storm: Storm, drained: float) -> Verdict:
    """Look at everything that is on record."""
    plan, events, sql = storm.plan, storm.events, storm.ledger.sql
    verdict = Verdict()
    add = verdict.add
    sql("ANALYZE {schema}.job, {schema}.effect, {schema}.start")  # an hour's jobs are too many to look at by a bad plan
    promised = sql("SELECT count(*) FROM {schema}.promised")[0][0]
    effects, jobs_with_effects = sql("SELECT count(*), count(DISTINCT job) FROM {schema}.effect")[0]
    starts = sql("SELECT count(*) FROM {schema}.start")[0][0]
    add("seconds of storm", round(events.last_fault - events.began))
    add("jobs enqueued", promised, promised >= plan.jobs)  # more, when a COMMIT went through without its answer
    add("processes killed, each while jobs ran", len(events.running_at_kill), bool(events.running_at_kill))
    if events.running_at_kill:
        add("jobs running at a kill, median", int(statistics.median(events.running_at_kill)))
    add("connections ended by hand", events.terminated)
    add("server crashes", len(events.down), len(events.down) == plan.restarts)
    add("handlers started more than once", starts - promised)
    add("effects lost", promised - jobs_with_effects, jobs_with_effects == promised)
    add("effects doubled", effects - jobs_with_effects, effects == jobs_with_effects)
    if plan.schedules:
        _judge_ticks(storm, verdict)
    add("drained after the last fault, s", f"{drained:.1f}", drained <= DRAINED)
    late = sql(_LATEST, events.last_fault)[0][0]
    add("longest wait after it beyond its delay, s", f"{late:.2f}", late <= plan.late)
    finished = [
        at
        for (at,) in sql(
            "SELECT EXTRACT(epoch FROM finalized_at)::float8 FROM {schema}.job WHERE finalized_at IS NOT NULL"
        )
    ]
    windows = list(_throughput(finished, events, plan.window))
    if windows:
        add(f"fewest jobs completed in {plan.window:g} s with a server", min(windows), min(windows) > 0)
    if events.memory:
        _judge_growth(events, verdict)
    for name, rows in violations(sql).items():
        add(name, rows, False)
    return verdict


_LATEST = """
    SELECT COALESCE(EXTRACT(epoch FROM max(at - GREATEST(due, last_fault))), 0)::float8
    FROM {schema}.start, to_timestamp(%s) AS last_fault WHERE at > last_fault
"""


def _throughput(finished: Sequence[float], events: Events, window: float) -> Iterator[int]:
    """Jobs completed in each window of the storm in which there was a server all along."""
    begin = events.began + 1  # the first workers start
    while begin + window <= events.last_fault:
        end = begin + window
        down = next((until for since, until in events.down if since < end and until > begin), None)
        if down is None:
            yield sum(begin <= at < end for at in finished)
            begin += 1
        else:
            begin = down


def _judge_ticks(storm: Storm, verdict: Verdict) -> None:
    """Every schedule ticks each second from its first tick to its last, and every tick had its job run once."""
    sql = storm.ledger.sql
    ticks, effects, jobs = sql(
        "SELECT count(tick), (SELECT count(*) FROM {schema}.tick_effect),"
        " (SELECT count(DISTINCT job) FROM {schema}.tick_effect) FROM {schema}.job WHERE schedule IS NOT NULL"
    )[0]
    waiting = sql("SELECT count(*) FROM {schema}.job WHERE schedule IS NOT NULL AND finalized_at IS NULL")[0][0]
    wanted = storm.plan.schedules * int(storm.events.last_fault - storm.events.began - 5)
    verdict.add("ticks", ticks, ticks >= wanted)
    verdict.add("ticks lost", len(sql(TICKS)), not sql(TICKS))
    verdict.add(
        "ticks without effect, or doubled", ticks - waiting - jobs + effects - jobs, effects == jobs == ticks - waiting
    )


def _judge_growth(events: Events, verdict: Verdict) -> None:
    """The last quarter of the time beside the second one."""
    for name, samples, unit, slack in (
        ("memory of a process, MB", events.memory, 2**20, 5.0),
        ("connections", events.connections, 1, 8.0),
    ):
        quarter = max(1, len(samples) // 4)
        early, late = (statistics.median(part) / unit for part in (samples[quarter : 2 * quarter], samples[-quarter:]))
        verdict.add(f"{name}, early and late", f"{early:.1f} {late:.1f}", late <= early + slack)


# --- to run one


@contextmanager
def weather(plan: Plan) -> Iterator[Storm]:
    """A server, a database and a nursery of its own for one storm."""
    with ExitStack() as opened:
        server = opened.enter_context(EmbeddedPostgres(tcp=True, settings={"max_connections": "300"}))
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        nursery = opened.enter_context(Nursery(directory))
        ledger = Ledger(server.dsn)
        opened.callback(ledger.close)
        yield Storm(plan, server, ledger, nursery)


def run(plan: Plan) -> Verdict:
    with weather(plan) as storm:
        storm.run()
        return judge(storm, storm.drain())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("seconds", float), ("jobs", int), ("processes", int), ("threads", int), ("restarts", int)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(Plan, name), help="default: %(default)s")
    parser.add_argument("--kill-every", type=float, default=Plan.kill_every, help="seconds; default: %(default)s")
    sources = ("own", "plain", "sqlalchemy", "django")
    parser.add_argument("--source", choices=sources, default=Plan.source, help="of connections; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=Plan.batch_size, help="default: %(default)s")
    parser.add_argument("--schedules", type=int, default=Plan.schedules if hasattr(pgjobs, "Schedule") else 0)
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="mild weather for so long")
    given = vars(parser.parse_args())
    minutes = given.pop("soak")
    plan = Plan(**given) if minutes is None else soak(minutes, given["schedules"])
    verdict = run(plan)
    print(verdict)
    sys.exit(bool(verdict.broken))


def soak(minutes: float, schedules: int) -> Plan:
    """Mild weather: now and then a process is killed or a connection ended, and one process lives all along."""
    seconds = minutes * 60
    return Plan(
        seconds=seconds,
        jobs=int(seconds * 40),
        kill_every=10.0,
        terminate_every=5.0,
        restarts=0,
        schedules=schedules,
        processes=2,
        steady=1,
    )


if __name__ == "__main__":
    main()
