"""For the tests of applications: what was enqueued, and jobs that run inside the transaction of a test.

    Jobs(client, tx, work_map)      assertions about the jobs in the database; perform, drain, travel
    make_job(args)                  a job for a handler that is called by hand
    MemoryClient, InlineClient, NoopClient      clients without a database
    pytest_plugins = ["pgjobs.testing.fixtures"]    in a conftest.py: the fixtures `jobs`, `pgjobs_client`, `pgjobs_dsn`

The guide has a page about it: `pgjobs guide testing`.
"""

from pgjobs.testing.clients import InlineClient, MemoryClient, NoopClient, make_job
from pgjobs.testing.enqueued import Enqueued
from pgjobs.testing.jobs import Jobs
from pgjobs.testing.made_job import MadeJob, Recorded
from pgjobs.testing.performed import Drained, Performed
from pgjobs.testing.wanted import Expected

__all__ = [
    "Drained",
    "Enqueued",
    "Expected",
    "InlineClient",
    "Jobs",
    "MadeJob",
    "MemoryClient",
    "NoopClient",
    "Performed",
    "Recorded",
    "make_job",
]
