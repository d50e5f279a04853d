"""The metrics of a process in the text format of Prometheus, without a dependency.

`pgjobs work --health HOST:PORT` serves them at /metrics, summed over its processes. An application that runs worker
pools itself, or wants the numbers of the queues alone, serves `metrics_text` at a path of its own.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from pgjobs.client import Client
from pgjobs.errors import InvalidSetting, shown
from pgjobs.forking import PerProcess
from pgjobs.observe.gauges import WAIT, Gauges
from pgjobs.observe.metrics import (
    CONTENT_TYPE,
    METRICS,
    Metric,
    Samples,
    add,
    as_text,
    label,
    samples_of_figures,
    total,
)
from pgjobs.observe.queries import ObserveQueries
from pgjobs.worker_pool import WorkerPool

__all__ = ["CONTENT_TYPE", "METRICS", "Metric", "gauges_of", "metrics_text", "samples_of_pool"]

_gauges: PerProcess[WeakKeyDictionary[Client, Gauges]] = PerProcess(WeakKeyDictionary)


def metrics_text(client: Client, *pools: WorkerPool) -> str:
    """The metrics of a client's queues, and of worker pools of this process, as the body of an answer to Prometheus;
    its Content-Type is CONTENT_TYPE.

    The numbers of queues are read at most every ten seconds, and waited for one second at most. If the database does
    not answer, they are left out and `pgjobs_database_up` is 0. Raises InvalidSetting for other values.
    """
    if not isinstance(client, Client):
        raise InvalidSetting(f"client is a Client, not a {type(client).__name__}")
    for pool in pools:
        if not isinstance(pool, WorkerPool):
            raise InvalidSetting(f"pools are worker pools, not {shown(pool)}")
    return as_text(total([*map(samples_of_pool, pools), gauges_of(client).samples(WAIT)]))


def gauges_of(client: Client) -> Gauges:
    """The gauges of a client's queues, which all of its readers in this process share."""
    known = _gauges.get()
    found = known.get(client)
    if found is None:
        found = known.setdefault(client, Gauges(ObserveQueries(client.schema), client.source.transaction))
    return found


def samples_of_pool(pool: WorkerPool) -> Samples:
    """What a worker pool has counted in this process since it was made, and what its threads do now. Sends no SQL."""
    samples = samples_of_figures(pool.figures.snapshot())
    for state, threads in (("busy", pool.busy_threads), ("idle", pool.idle_threads)):
        for queue, number in threads.items():
            add(samples, "pgjobs_worker_threads", (label(queue), state), [number])
    add(samples, "pgjobs_stuck_threads", (), [pool.stuck_threads])
    return samples
