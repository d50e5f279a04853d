"""Which jobs are the same: the options of a unique job, and their checks. The database computes the key."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, get_args

from pgjobs.errors import InvalidOption, shown
from pgjobs.interval import interval_text
from pgjobs.states import JobState, StateName

STATES: tuple[StateName, ...] = get_args(StateName)
# Every job can pass through these states, so its key must count in all of them.
REQUIRED: tuple[StateName, ...] = ("available", "pending", "running", "scheduled")
#: The parts of a duplicate that `replace=True` changes to those of the newer call.
Replaceable = Literal["args", "scheduled_at", "priority", "max_attempts", "tags", "metadata"]
REPLACEABLE: tuple[Replaceable, ...] = get_args(Replaceable)

_DEFAULT_STATES: tuple[StateName, ...] = ("available", "completed", "pending", "retryable", "running", "scheduled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unique:
    """At most one job of a kind at a time; with these options, one job for each of their values:

    - `by_args`: True for all args, or the names of some fields: jobs that differ in these are different
    - `by_queue`: one job per queue
    - `by_period`: one job per period, counted from midnight UTC of a Monday. A job belongs to the period of its time
      (`scheduled_at` or `delay`); without one, to the present period of the database's clock. The key also ends when
      the job leaves the states of `by_state`
    - `by_state`: the states in which an earlier job counts. Without `completed` a job may be enqueued again as soon as
      the earlier one is completed. `available`, `pending`, `running` and `scheduled` must be among them
    - `exclude_kind`: jobs of other kinds count too, for several kinds that do the same. Needs `by_args` or `by_queue`
    """

    by_args: bool | Sequence[str] = False
    by_period: timedelta | None = None
    by_queue: bool = False
    by_state: Collection[JobState | StateName] = _DEFAULT_STATES
    exclude_kind: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_args", _checked_args(self.by_args))
        object.__setattr__(self, "by_state", _checked_states(self.by_state))
        for name in ("by_queue", "exclude_kind"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidOption(f"{name} is True or False, not {shown(getattr(self, name))}")
        if self.by_period is not None:
            _check_period(self.by_period)
        if self.exclude_kind and not self.by_args and not self.by_queue:
            raise InvalidOption(
                "exclude_kind without by_args or by_queue would make all jobs the same: set one of them too"
            )

    def to_json(self) -> str:
        """The JSON that the SQL functions `unique_key` and `enqueue` take."""
        return json.dumps(
            {
                "by_args": self.by_args,
                "by_period": self.by_period and interval_text(self.by_period),
                "by_queue": self.by_queue,
                "by_state": self.by_state,
                "exclude_kind": self.exclude_kind,
            }
        )


def checked_replace(replace: object) -> tuple[Replaceable, ...]:
    """The parts of a waiting duplicate that a new job replaces, in a fixed order; () for none."""
    if isinstance(replace, bool):
        return REPLACEABLE if replace else ()
    if (
        isinstance(replace, str | bytes)
        or not isinstance(replace, Collection)
        or not all(isinstance(name, str) and name in REPLACEABLE for name in replace)
    ):
        raise InvalidOption(f"replace is True or some of {', '.join(REPLACEABLE)}; not {shown(replace)}")
    return tuple(name for name in REPLACEABLE if name in replace)


def _checked_args(by_args: object) -> bool | tuple[str, ...]:
    if isinstance(by_args, bool):
        return by_args
    fields = () if isinstance(by_args, str | bytes) or not isinstance(by_args, Sequence) else tuple(by_args)
    if not fields or not all(isinstance(field, str) for field in fields):
        raise InvalidOption(f"by_args is True, False, or a list of the names of fields; not {shown(by_args)}")
    return tuple(sorted(set(fields)))


def _checked_states(by_state: object) -> tuple[str, ...]:
    if isinstance(by_state, str | bytes) or not isinstance(by_state, Collection):
        raise InvalidOption(f"by_state is a list of states, not {shown(by_state)}")
    for state in by_state:
        if state not in STATES:
            raise InvalidOption(f"by_state: {shown(state, 40)} is not a state; the states are {', '.join(STATES)}")
    missing = [state for state in REQUIRED if state not in by_state]
    if missing:
        raise InvalidOption(
            f"by_state lacks {', '.join(missing)}: every job can pass through these states, so its key must count there"
        )
    return tuple(sorted(str(state) for state in set(by_state)))


def _check_period(period: object) -> None:
    if not isinstance(period, timedelta):
        raise InvalidOption(f"by_period is a timedelta, not {shown(period)}")
    if not timedelta(seconds=1) <= period <= timedelta(days=365_000):
        raise InvalidOption(f"by_period is 1 second to 1000 years, not {period!r}")
