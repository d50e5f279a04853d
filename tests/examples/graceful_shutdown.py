"""After SIGTERM or SIGINT no job begins, and those that run come to their end. Retells River's GracefulShutdown."""

import os
import signal
from dataclasses import dataclass
from threading import Event, Thread

from psycopg import Connection

from pgjobs import Client, Job, WorkerPool, WorkMap


@dataclass
class Backup:
    of: str


working, signalled = Event(), Event()


def backup(tx: Connection, job: Job[Backup]) -> None:
    print("Working on the backup of", job.args.of)
    working.set()
    signalled.wait(timeout=10)
    print("The backup is done, undisturbed")


def shut_down() -> None:
    """What systemd, Docker or Kubernetes do to a process they want to end."""
    working.wait(timeout=10)
    print("SIGTERM arrives")
    os.kill(os.getpid(), signal.SIGTERM)
    signalled.set()


with Client(os.environ["DATABASE_URL"], schema="examples") as client:
    client.migrate()
    job = client.enqueue(None, Backup("the database"))
    Thread(target=shut_down).start()

    WorkerPool(client, WorkMap({Backup: backup})).run()  # returns when the running jobs have ended
    print("The pool has stopped")

    after = client.get(job.id)
    assert after
    print("The job is", after.state)

# Output:
# Working on the backup of the database
# SIGTERM arrives
# The backup is done, undisturbed
# The pool has stopped
# The job is completed
