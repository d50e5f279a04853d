"""What the table must say of one job, as a value that the state machine moves along beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid4

from pgjobs import JobState
from tests.samples import HOUR

NOTHING = timedelta(0)


@dataclass
class Model:
    """One job. Its methods are what may happen to it; each says what the row is then."""

    id: int
    queue: str
    kind: str
    max_attempts: int
    state: JobState = JobState.AVAILABLE
    attempt: int = 0
    token: UUID | None = None
    successor: UUID = field(default_factory=uuid4)  # of whoever takes it over from the attempt that runs
    errors: list[int] = field(default_factory=list)  # the attempts that have an entry
    starts: int = 0  # of its handler
    refunded: int = 0  # of these, by a snooze or a stop
    settled: int = 0  # effects that are not this completion's: an earlier one's, or committed by the handler itself
    vanished: int = 0  # entries of the rescue
    asked: bool = False  # somebody wants the attempt that runs cancelled
    due: bool = True  # scheduled_at is past
    old: bool = False  # attempted_at, or the lease, is long past
    delay: timedelta | None = None  # from the last error to scheduled_at, where that can be told
    mark: int | None = None  # what the last handler to end left in metadata and output
    marking: int | None = None  # what the one that runs will leave

    @property
    def effects(self) -> int:
        return self.settled + (self.state is JobState.COMPLETED)

    @property
    def waits(self) -> bool:
        return self.state in (JobState.AVAILABLE, JobState.SCHEDULED, JobState.RETRYABLE)

    # --- an attempt

    def claimed(self, token: UUID, mark: int | None = None) -> None:
        self.state, self.token, self.marking = JobState.RUNNING, token, mark
        self.attempt += 1
        self.asked = self.old = False

    def completes(self) -> None:
        self._ends(JobState.COMPLETED)

    def fails(self, delay: timedelta = HOUR) -> None:
        self.errors.append(self.attempt)
        if self.attempt >= self.max_attempts:
            self._ends(JobState.DISCARDED)
        else:
            self._ends(JobState.RETRYABLE if delay else JobState.AVAILABLE, delay)

    def retries_at_once(self) -> None:
        self.fails(NOTHING)

    def discards(self) -> None:
        self.errors.append(self.attempt)
        self._ends(JobState.DISCARDED)

    def cancels(self) -> None:
        self.errors.append(self.attempt)
        self._ends(JobState.CANCELLED)

    def snoozes(self, delay: timedelta = HOUR) -> None:
        self._gives_back()
        self._ends(JobState.SCHEDULED if delay else JobState.AVAILABLE, delay)

    def snoozes_for_nothing(self) -> None:
        self.snoozes(NOTHING)

    def is_stopped(self) -> None:
        self._gives_back()
        self._ends(JobState.AVAILABLE)

    def _gives_back(self) -> None:
        self.attempt -= 1
        self.refunded += 1

    def _ends(self, state: JobState, delay: timedelta | None = None) -> None:
        self.mark = self.marking if self.marking is not None else self.mark
        if self.asked and state is not JobState.COMPLETED:
            state, self.asked = JobState.CANCELLED, False
        self.state = state
        if delay is not None:
            self.due = not delay
        self.delay = delay

    # --- the upkeep

    def rescued(self) -> None:
        """And then moved an hour ahead by the machine, which lets no time pass by itself."""
        self.errors.append(self.attempt)
        if self.asked:
            self.state, self.asked = JobState.CANCELLED, False
        elif self.attempt >= self.max_attempts:
            self.state = JobState.DISCARDED
        else:
            self.state, self.due = JobState.RETRYABLE, False
            self.delay = HOUR + timedelta(seconds=min(2**self.vanished, 60))
        self.vanished += 1

    def promoted(self) -> None:
        if self.due and self.state in (JobState.SCHEDULED, JobState.RETRYABLE):
            self.state = JobState.AVAILABLE

    def ages(self, by: timedelta) -> None:
        self.due = self.old = True
        self.delay = None if self.delay is None else self.delay - by

    def is_unclaimed(self) -> None:
        """The claim of a worker that never got to start the handler, whether or not it was rescued meanwhile."""
        if self.state is not JobState.RUNNING:
            self.errors.pop()
            self.vanished -= 1
        self.state, self.token, self.due = JobState.AVAILABLE, None, True
        self.attempt -= 1
        if self.asked:
            self.state, self.asked = JobState.CANCELLED, False

    # --- control by hand

    def is_cancelled(self) -> None:
        if self.state is JobState.RUNNING:
            self.asked = True
        elif self.waits:
            self.state = JobState.CANCELLED

    def is_retried(self) -> None:
        if self.state is JobState.RUNNING:
            return
        self.settled = self.effects
        self.state, self.token, self.due = JobState.AVAILABLE, None, True
        self.max_attempts = max(self.max_attempts, self.attempt + 1)

    def is_moved(self, *, ahead: bool) -> None:
        """To an hour from now, or to an hour ago."""
        if self.state is JobState.AVAILABLE and ahead:
            self.state = JobState.SCHEDULED
        elif self.state in (JobState.SCHEDULED, JobState.RETRYABLE) and not ahead:
            self.state = JobState.AVAILABLE
        self.due, self.delay = not ahead, None

    def can_have(self, max_attempts: int) -> bool:
        return max_attempts >= self.attempt + (not self.state.final)
