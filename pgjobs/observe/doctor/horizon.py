"""What keeps VACUUM from removing dead rows. All queues of this design slow down when it is held back for long."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from pgjobs.observe.doctor.check import Check, Problem, by_age, count, name, notice, size, span, warning
from pgjobs.observe.doctor.queries import Look

# A transaction of minutes does no harm.
OLD_TRANSACTION = timedelta(minutes=10)
_WARNING = timedelta(hours=1)
_CRITICAL = timedelta(hours=12)
OLD_PREPARED = timedelta(minutes=10)

# Of a replication slot or a standby.
HELD_TRANSACTIONS = 1_000_000
RETAINED_WAL = 4 << 30  # bytes

_WHY = "VACUUM cannot remove rows that died after it began, in any table of the database: all queues become slower"
_LONG_JOBS = "make the handler detached, or split the job: `pgjobs guide long-jobs`"


def _transactions(look: Look) -> Iterator[Problem]:
    for pid, role, application, state, seconds, held in look.old_transactions(OLD_TRANSACTION):
        idle = state is not None and state.startswith("idle in transaction")
        keeps = "" if held is None else f", and holds back {count(held, 'transaction')}"
        yield Problem(
            by_age(seconds, warning=_WARNING, critical=_CRITICAL),
            f"a transaction has been open for {span(seconds)}{' and is idle' if idle else ''}: pid {pid}, role "
            f"{name(role)}, application {name(application)}{keeps}",
            "commit it, or let the program that forgot it do so; as a last resort SELECT pg_terminate_backend"
            f"({pid}). If it is a job, {_LONG_JOBS}",
        )
    hidden = look.hidden_sessions()
    if hidden:
        yield notice(
            f"could not look: this role may not see what {count(hidden, 'session')} of other roles do",
            "run it as a superuser, or GRANT pg_read_all_stats to this role",
        )


def _prepared_transactions(look: Look) -> Iterator[Problem]:
    for gid, owner, seconds in look.prepared_transactions(OLD_PREPARED):
        yield Problem(
            by_age(seconds, warning=OLD_PREPARED, critical=_CRITICAL),
            f"the prepared transaction {name(gid)} of role {name(owner)} has been left open for {span(seconds)}",
            "end it with COMMIT PREPARED or ROLLBACK PREPARED, in this database, as that role",
        )


def _slots(look: Look) -> Iterator[Problem]:
    for slot, sort, active, held, retained in look.slots():
        reasons = [f"holds back {count(held, 'transaction')}"] if held > HELD_TRANSACTIONS else []
        reasons += [f"retains {size(retained)} of WAL"] if retained > RETAINED_WAL else []
        if reasons:
            yield warning(
                f"the {sort} replication slot {name(slot)}, which is {'in use' if active else 'not in use'}, "
                f"{' and '.join(reasons)}",
                "let its reader catch up; if it has none any more, SELECT pg_drop_replication_slot(slot_name)",
            )


def _standbys(look: Look) -> Iterator[Problem]:
    for application, address, held in look.standbys(HELD_TRANSACTIONS):
        yield warning(
            f"the standby {name(application)} at {address or 'this host'} holds back {count(held, 'transaction')} by "
            "hot_standby_feedback",
            "end the long queries on the standby, or set hot_standby_feedback = off there",
        )


def _long_jobs(look: Look) -> Iterator[Problem]:
    for id, queue, kind, worker, seconds in look.long_jobs(OLD_TRANSACTION):
        yield Problem(
            by_age(seconds, warning=_WARNING, critical=_CRITICAL),
            f"job {id} of kind {name(kind)} in queue {name(queue)} has run for {span(seconds)} in one transaction, on "
            f"worker {name(worker or 'unknown')}",
            _LONG_JOBS,
        )


CHECKS = (
    Check("transactions", "no transaction is old", _WHY, _transactions, needs_tables=False),
    Check("prepared", "no prepared transaction is left", _WHY, _prepared_transactions, needs_tables=False),
    Check(
        "slots",
        "no replication slot is far behind",
        "a slot that is not read keeps dead rows, which makes all queues slower, and WAL, which fills the disk",
        _slots,
        needs_tables=False,
    ),
    Check("standbys", "no standby holds back VACUUM", _WHY, _standbys, needs_tables=False),
    Check("long-jobs", "no job has run in one transaction for long", _WHY, _long_jobs),
)
