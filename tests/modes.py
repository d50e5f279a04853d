"""The other ways to run the tests that start worker pools, chosen by the environment: see `make modes`.

PGJOBS_TEST_BATCH=20    pools run batches of that many jobs, where a test says nothing of them
PGJOBS_TEST_PLAIN=1     no pool has a hot path: nothing is prepared, as behind a pooler

A test of what cannot be in such a mode says so with a mark, and why: `one_by_one("...")`, `prepared("...")`.
"""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

from pgjobs import Client, WorkerPool
from pgjobs.checkout import Checkout
from pgjobs.claim import Claimer
from pgjobs.hot_path import HotPath
from pgjobs.store import ServerFacts

BATCH, PLAIN = "PGJOBS_TEST_BATCH", "PGJOBS_TEST_PLAIN"
MARKS = {"one_by_one": BATCH, "prepared": PLAIN}


def batch_size() -> int:
    return int(os.environ.get(BATCH) or 1)


def plain() -> bool:
    return bool(os.environ.get(PLAIN))


def install() -> None:
    """For this process. A mode that is taken out of the environment later is over, for what starts then."""
    if batch_size() > 1:
        init = WorkerPool.__init__

        @wraps(init)
        def batched(self: WorkerPool, client: Client, *args: Any, **options: Any) -> None:
            if client.source.batches:
                options.setdefault("batch_size", batch_size())
            init(self, client, *args, **options)

        WorkerPool.__init__ = batched  # type: ignore[method-assign]
    if plain():
        hot_path = Claimer._hot_path

        @wraps(hot_path)
        def none(self: Claimer, held: Checkout, facts: ServerFacts) -> HotPath | None:
            return None if plain() else hot_path(self, held, facts)

        Claimer._hot_path = none  # type: ignore[method-assign]
