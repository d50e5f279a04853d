"""How to run the jobs of each kind, looked up once until the WorkMap changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pgjobs.execution.claimer import Claimer
from pgjobs.hooks import Middleware
from pgjobs.work_map import Handler, HandlerFunction


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How to run the jobs of one kind."""

    handler: Handler
    function: HandlerFunction
    decode: Callable[[str], Any]
    middleware: Sequence[Middleware]
    timeout: timedelta | None  # of each attempt, unless it depends on the job
    asks_timeout: bool  # whether it does


class Plans:
    """The plans of one process, each made at its first use."""

    def __init__(self, claimer: Claimer, middleware: Sequence[Middleware]) -> None:
        self._claimer = claimer
        self._middleware = tuple(middleware)
        self._plans: dict[str, Plan] = {}
        self._made_at = -1  # `changes` of the WorkMap when the plans were made

    def of(self, kind: str) -> Plan | None:
        """How to run this kind; None if it has no handler."""
        changes = self._claimer.work_map.changes
        if self._made_at != changes:
            self._made_at, self._plans = changes, {}
        return self._plans.get(kind) or self._make(kind)

    def _make(self, kind: str) -> Plan | None:
        handler = self._claimer.handler_of(kind)
        if handler is None:
            return None
        fixed = handler.timeout if isinstance(handler.timeout, timedelta) else None
        plan = self._plans[kind] = Plan(
            handler,
            handler.function,
            handler.decode,
            (*self._middleware, *handler.middleware),
            self._claimer.timeout if handler.timeout == "inherit" else fixed,
            callable(handler.timeout),
        )
        return plan
