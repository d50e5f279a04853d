"""The threads of a worker pool that run no jobs: maintenance, the listener, and those that look after indexes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import time as TimeOfDay
from datetime import timedelta
from functools import partial
from typing import Any

from pgjobs.db.cursors import AnyConnection
from pgjobs.execution.executor import Executor
from pgjobs.execution.report import how_it_was_lost
from pgjobs.job import Job, JobState
from pgjobs.maintenance.duties import Maintenance
from pgjobs.maintenance.reindexer import Reindex
from pgjobs.maintenance.thread import MaintenanceThread
from pgjobs.maintenance.time_index import TimeIndex
from pgjobs.observe.figures import AttemptFigures
from pgjobs.options import EncodedJob, NewJob
from pgjobs.schedules.args_supplier import ArgsSupplier
from pgjobs.schedules.queries import ScheduleQueries
from pgjobs.schedules.registered import CodeSchedules
from pgjobs.schedules.ticker import Ticker
from pgjobs.wakeup.idle_threads import WakeupState
from pgjobs.wakeup.listener import Listener
from pgjobs.work_map import Handler, decoding
from pgjobs.workers.context import PoolContext
from pgjobs.workers.heartbeat import Heartbeat


class BackgroundThreads:
    """They are made anew at each start of the pool; `context.maintenance` and `context.listener` are two of them.
    `encode` makes the row of a job; the settings are those of WorkerPool."""

    def __init__(
        self,
        context: PoolContext,
        executor: Executor,
        heartbeat: Heartbeat,
        schedules: CodeSchedules,
        figures: AttemptFigures,
        *,
        encode: Callable[[NewJob[Any]], EncodedJob],
        keep: Mapping[JobState, timedelta | None],
        reindex_at: TimeOfDay | None,
        listen: bool,
        listen_dsn: str | None,
    ) -> None:
        self._context = context
        self._executor = executor
        self._claimer = executor.claimer
        self._heartbeat = heartbeat
        self._schedules = schedules
        self._figures = figures
        self._encode = encode
        self._keep = keep
        self._reindex_at = reindex_at
        self._listen = listen
        self._listen_dsn = listen_dsn
        self._reindex: Reindex | None = None
        self.time_index: TimeIndex | None = None

    def start(self) -> None:
        """Start them, except the listener: `start_listener` is called when the worker threads have started."""
        context = self._context
        schema, connect = context.schema, context.source.connect
        if self._reindex_at is not None:
            self._reindex = Reindex(schema, connect, at=self._reindex_at, name=f"{context.name}/reindex")
        if self._claimer.order == "scheduled_at":
            self.time_index = TimeIndex(schema, connect, name=f"{context.name}/time-index")
            self.time_index.start()
        maintenance = self._build_maintenance()
        self._heartbeat.register()
        maintenance.start()
        context.maintenance = maintenance
        if self._listen:
            for workers in context.queue_workers.values():
                workers.idle.wakeup = WakeupState()
            context.listener = self._build_listener()

    def start_listener(self) -> None:
        if self._context.listener is not None:
            self._context.listener.start()

    def stop(self, within: float) -> None:
        """Wait so many seconds for the end of each of them but maintenance, which the pool has ended."""
        context = self._context
        for part in (self._reindex, self.time_index, context.listener):
            if part is not None:
                part.stop(within)
        context.maintenance = self._reindex = self.time_index = context.listener = None

    # --- its parts

    def _build_maintenance(self) -> MaintenanceThread:
        context, hooks, ticker = self._context, self._executor.hooks, self._build_ticker()

        def tick(conn: AnyConnection) -> timedelta:
            self._schedules.heartbeat(conn)
            return ticker.tick(conn)

        return MaintenanceThread(
            Maintenance(
                context.schema,
                keep=self._keep,
                wake=context.wake,
                rescued=self._on_rescued,
                reads_rescued=lambda: bool(hooks),
                kinds=self._known_kinds,
                reindex=self._reindex,
            ),
            context.source,
            housekeeping=self._heartbeat.beat,
            at_end=partial(self._sign_off, self._schedules.deregistration()),
            tick=tick,
            guard=self._executor.watchdog.guard,
            listening=context.listening,
            outages=context.outages,
            on_closed=context.client_closed,
            each_round=self._executor.job_log.refresh,
            name=f"{context.name}/maintenance",
        )

    def _build_ticker(self) -> Ticker:
        context = self._context
        supplier = ArgsSupplier(self._encode, context.tick_soon, name=context.name)
        queries = ScheduleQueries(context.schema)
        return Ticker(queries, lambda: self._schedules.by_name, supplier, enqueued=self._on_scheduled)

    def _build_listener(self) -> Listener:
        context = self._context
        return Listener(
            context.schema,
            lambda: context.source.connect(self._listen_dsn),
            wake=context.notified,
            name=f"{context.name}/listener",
            leaves_jobs=self._claimer.unknown_kinds == "leave",
            outages=context.outages if self._listen_dsn is None else None,
        )

    # --- what the maintenance thread calls

    def _on_rescued(self, job: Job[Any]) -> None:
        if job.state is JobState.RETRYABLE:
            self._context.promote_soon()
        self._figures.record_lost(job.queue, job.kind, how_it_was_lost(job))
        self._executor.hooks("on_rescue", decoding(self._claimer.work_map, job))

    def _on_scheduled(self, conn: AnyConnection, id: int, queue: str) -> None:
        """A schedule has enqueued a job."""
        self._context.wake(queue)
        hooks = self._executor.hooks
        job = self._claimer.queries.get_job(conn, id, queue) if hooks else None
        if job is not None:
            hooks("on_enqueue", decoding(self._claimer.work_map, job))

    def _known_kinds(self) -> list[str] | None:
        """The kinds that this pool has handlers for; None for every kind."""
        return None if isinstance(self._claimer.unknown_kinds, Handler) else list(self._claimer.work_map)

    def _sign_off(self, deregister_schedules: Callable[[], None]) -> None:
        """Delete the rows of this pool, from which other processes see that it runs. If this fails, they notice later
        that it has stopped."""
        deregister_schedules()
        self._heartbeat.deregister()
