"""The values of a claim: what a process asks for, and what it knows of the session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID


class Mark(NamedTuple):
    """A place in the order of a queue, as text: the claim starts its scan behind it."""

    priority: bytes
    time: bytes
    id: bytes


BEGINNING = Mark(b"-32768", b"-infinity", b"-1")


class Session(NamedTuple):
    """A database session as it was at the claim. The handler may change the role; the outcome is written in this
    one."""

    user: str
    role: str
    lacks: tuple[str, ...] = ()  # the settings of a job's transaction that the session does not have by itself
    shared: bool = False  # by other clients, through a pooler: what the handler prepares is dropped


@dataclass(eq=False)
class ClaimSettings:
    """What the claims of a process have in common until its WorkMap changes, with their scripts."""

    worker: str
    kinds: list[str] | None  # kinds to claim; None: all
    detached: list[str]  # kinds that get a lease
    lease: timedelta
    synchronous_commit: bool
    check_interval: str
    bounded_by: str | None  # the setting that bounds the transaction of a job; None: no job has a bound
    bound: str
    bounds: str | None  # by kind, as JSON
    scripts: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.claimed_by = (self.worker,)  # what most jobs have


class ClaimRequest(NamedTuple):
    """The values of one claim."""

    settings: ClaimSettings
    queue: str
    which: str  # the order of the queue, or "id"
    token: UUID
    id: int | None = None
    mark: Mark | None = None
    set_aside: Sequence[int] = ()  # jobs that cannot be claimed now

    @property
    def unquoted(self) -> dict[bytes, bytes]:
        """The parameters that change with each claim."""
        priority, time, id = self.mark or BEGINNING
        values = {
            b"new_token": b"%032x" % self.token.int, b"mark_priority": priority, b"mark_time": time, b"mark_id": id,
        }  # fmt: skip
        if self.id is not None:
            values[b"id"] = b"%d" % self.id
        if self.set_aside:
            values[b"set_aside"] = b"{%b}" % ",".join(map(str, self.set_aside)).encode()
        return values

    @property
    def values(self) -> dict[str, Any]:
        """All parameters, for claims that are tried."""
        settings, (priority, time, id) = self.settings, self.mark or BEGINNING
        return {
            "queue": self.queue, "worker": settings.worker, "kinds": settings.kinds, "detached": settings.detached,
            "lease": settings.lease, "synchronous_commit": settings.synchronous_commit, "new_token": self.token,
            "id": self.id, "set_aside": list(self.set_aside),
            "mark_priority": int(priority), "mark_time": time.decode(), "mark_id": int(id),
        }  # fmt: skip
