"""The server, its settings, and the way to it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from secrets import token_hex

from pgjobs.db.channel import channel, listen
from pgjobs.db.source import SPARE_CONNECTIONS
from pgjobs.errors import PoolTooSmall
from pgjobs.observe.doctor.check import Check, Problem, count, critical, notice, warning
from pgjobs.observe.doctor.finding import Severity
from pgjobs.observe.doctor.queries import Look

OLDEST_VERSION = 14
_LARGE_SHARE = 0.9  # of the connections that there may be
_SKEW_NOTICE, _SKEW_WARNING = 2.0, 60.0  # seconds
_LISTEN_WAIT = 5.0  # seconds until a notification must have come
_SHORT_STATEMENT = 60_000  # milliseconds
_SHORT_IDLE = 10_000
_CONNECTIONS_OF_A_PROCESS = 3  # besides those of its threads: the listener, and those to spare

now = time.time  # the clock of this machine

_AS_SUPERUSER = "ALTER SYSTEM SET {} = on as a superuser, then SELECT pg_reload_conf()"
_ROLE = "ALTER ROLE ... (or ALTER DATABASE ...) SET {}, or change postgresql.conf"


def _server(look: Look) -> Iterator[Problem]:
    standby, version, *_ = look.server_state()
    if standby:
        yield critical(
            "the server is a standby, which accepts no writes",
            "connect to the primary: target_session_attrs=read-write in the connection string finds it",
        )
    if version // 10000 < OLDEST_VERSION:
        yield critical(
            f"the server is Postgres {version // 10000}",
            f"upgrade it to Postgres {OLDEST_VERSION} or newer",
        )


# What each setting does when it has a value that harms.
_SWITCHES = {
    "fsync": (Severity.CRITICAL, "a crash of the machine can destroy the database"),
    "full_page_writes": (Severity.CRITICAL, "a crash of the machine can destroy the database"),
    "autovacuum": (Severity.WARNING, "dead rows stay, and all queues become slower"),
    "track_counts": (Severity.WARNING, "autovacuum does not work without it: dead rows stay"),
}
_ISOLATION = "default_transaction_isolation"
_OTHERS = (
    *("synchronous_commit", "default_transaction_read_only", _ISOLATION, "statement_timeout", "lock_timeout"),
    "idle_in_transaction_session_timeout",
)


def _settings(look: Look) -> Iterator[Problem]:
    values = look.settings([*_SWITCHES, *_OTHERS])
    for setting, (severity, harm) in _SWITCHES.items():
        if values[setting] == "off":
            yield Problem(severity, f"{setting} is off: {harm}", _AS_SUPERUSER.format(setting))
    if values["synchronous_commit"] == "off":
        yield warning(
            "synchronous_commit is off: a crash of the server undoes what was committed in the last fraction of a "
            "second, enqueued jobs among it",
            f"{_ROLE.format('synchronous_commit = on')}. For queues that may lose that, durability='relaxed' does the "
            "same for their jobs alone: `pgjobs guide batches`",
        )
    if values["default_transaction_read_only"] == "on":
        yield critical(
            "default_transaction_read_only is on: this role can neither enqueue nor work",
            _ROLE.format("default_transaction_read_only = off"),
        )
    if values[_ISOLATION] not in ("read committed", "read uncommitted"):
        yield notice(
            f"{_ISOLATION} is {values[_ISOLATION]!r}: an enqueue of a unique job may fail with SQLSTATE 40001, while "
            "handlers always run in READ COMMITTED",
            "let the application repeat such transactions; handlers that rely on more must lock their rows",
        )
    yield from _timeouts({name: int(values[name]) for name in _OTHERS if name.endswith("_timeout")})


def _timeouts(values: dict[str, int]) -> Iterator[Problem]:
    for setting in ("statement_timeout", "lock_timeout"):
        if 0 < values[setting] < _SHORT_STATEMENT:
            yield notice(
                f"{setting} is {values[setting]} ms for this role: it cuts off the statements of handlers too, and "
                "their attempts fail",
                f"{_ROLE.format(f'{setting} = 0')} for the role of the workers, if that is not meant",
            )
    idle = values["idle_in_transaction_session_timeout"]
    if 0 < idle < _SHORT_IDLE:
        yield notice(
            f"idle_in_transaction_session_timeout is {idle} ms: a transaction of the application that enqueues, and "
            "then waits for something else for so long, is lost with its jobs. Transactions of handlers are not",
            "end transactions before calls to other systems, or raise it to 10 s or more",
        )


def _connections(look: Look) -> Iterator[Problem]:
    on_server, most, here, most_here, of_role, most_of_role = look.connections()
    limits = [
        (on_server, most, "the server", "max_connections"),
        (here, most_here, "this database", "ALTER DATABASE ... CONNECTION LIMIT"),
        (of_role, most_of_role, "this role", "ALTER ROLE ... CONNECTION LIMIT"),
    ]
    for used, limit, where, setting in limits:
        if used is not None and limit is not None and used >= _LARGE_SHARE * limit:
            yield Problem(
                Severity.CRITICAL if used >= limit else Severity.WARNING,
                f"{used} of the {limit} connections that {where} allows are in use",
                f"raise the limit ({setting}), use fewer threads and smaller pools, or put PgBouncer in between",
            )


def _worker_connections(look: Look) -> Iterator[Problem]:
    most = look.connections()[1] or 0
    processes, threads = look.living()
    needed = threads + _CONNECTIONS_OF_A_PROCESS * processes
    if needed > most:
        yield warning(
            f"the {processes} worker processes need {needed} connections when all their {threads} threads run jobs, "
            f"and the server allows {most}",
            "use fewer threads, raise max_connections, or put PgBouncer in between",
        )


def _pool(look: Look) -> Iterator[Problem]:
    try:
        if look.threads:
            look.source.ensure_size(look.threads, grow=False)
    except PoolTooSmall as error:
        yield warning(str(error), "give the pool more connections, or the worker pool fewer threads")
    failed = look.source.pool.get_stats().get("requests_errors", 0)
    if failed:
        yield warning(
            f"{count(failed, 'call')} in this process got no connection of the pool in time (max_size="
            f"{look.source.pool.max_size})",
            f"let the pool have a connection for each thread and {SPARE_CONNECTIONS} to spare, and return them soon",
        )


def _is_direct(look: Look) -> bool:
    """Whether no pooler stands in between: a pooler sends the client another number."""
    return look.server_state()[2] == look.conn.pgconn.backend_pid


def _pooler(look: Look) -> Iterator[Problem]:
    if not _is_direct(look):
        yield notice(
            "this connection leads through a pooler: no notification arrives, and nothing is prepared",
            "give worker pools listen_dsn=, a direct connection, or listen=False if polling is enough: "
            "`pgjobs guide production`",
        )


def _listen(look: Look) -> Iterator[Problem]:
    """LISTEN on a channel that nothing else uses, and send a notification there from another connection."""
    if not _is_direct(look):  # there it would stay in force on a connection of others
        return
    throw_away = f"doctor_{token_hex(8)}"
    with look.source.connect() as listening, look.source.connect() as sending:
        listen(listening, throw_away)
        Look(sending, look.schema, look.source, 0).notify(channel(throw_away))
        heard = list(listening.notifies(timeout=_LISTEN_WAIT, stop_after=1))
    if not heard:
        yield warning(
            f"a notification that was sent on one connection did not arrive on another within {_LISTEN_WAIT:g} s",
            "look whether the connection string leads to one server alone, and directly; until then jobs are found by "
            "polling",
        )


def _clock(look: Look) -> Iterator[Problem]:
    before = now()
    server = look.server_state()[3]
    after = now()
    skew = max(before - server, server - after, 0.0)  # the answer was made at some time in between
    if skew > _SKEW_NOTICE:
        ahead = "behind" if server > after else "ahead of"
        yield Problem(
            Severity.WARNING if skew > _SKEW_WARNING else Severity.NOTICE,
            f"the clock of this machine is {skew:.0f} s {ahead} that of the server",
            "synchronise both by NTP; delay= is counted by the server's clock, a scheduled_at made here by this one",
        )


CHECKS = (
    Check("server", "the server can be written to", "nothing can be enqueued or worked there", _server,
          needs_tables=False),
    Check("settings", "no setting of the server, database or role does harm",
          "settings of the server, the database and the role act on every transaction", _settings, needs_tables=False),
    Check("connections", "there are connections left",
          "a process that gets no connection can neither enqueue nor work", _connections, needs_tables=False),
    Check("worker-connections", "the server has a connection for each worker thread",
          "a thread without a connection does not run its job", _worker_connections),
    Check("pool", "the pool of this process is large enough",
          "a thread without a connection waits, and fails after the timeout of the pool", _pool, needs_tables=False),
    Check("pooler", "no pooler stands in between", "jobs are found by polling, and each job costs more", _pooler,
          needs_tables=False),
    Check("listen", "notifications arrive", "workers start new jobs only when they poll, each second by default",
          _listen, needs_tables=False),
    Check("clock", "this machine and the server have the same time",
          "the server's clock decides when jobs are due; times that this machine computes are off by the difference",
          _clock, needs_tables=False),
)  # fmt: skip
