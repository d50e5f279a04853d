"""A detached handler completes its job together with what it found out, in one transaction of its own. Retells River's
CompleteJobWithinTx."""

import os
from dataclasses import dataclass

from psycopg import Connection

from pgjobs import Client, Handler, Job, WorkerPool, WorkMap


@dataclass
class CountWords:
    text: str


client = Client(os.environ["DATABASE_URL"], schema="examples")


def count_words(tx: None, job: Job[CountWords]) -> None:
    words = len(job.args.text.split())  # imagine an hour of work: no transaction is open meanwhile
    with client.pool.connection() as own:
        own.execute("INSERT INTO examples.word_count VALUES (%s, %s)", [job.args.text, words])
        completed = job.complete(own)
        print("In its transaction the job is", completed.state)
        print("Others still see it", state_of(completed))
    print("Now all see it", state_of(completed))


def state_of(job: Job[CountWords]) -> str:
    found = client.get(job.id)  # on another connection
    assert found
    return found.state


def counted(tx: Connection) -> list[tuple[str, int]]:
    return tx.execute("SELECT text, words FROM examples.word_count").fetchall()


with client:
    client.migrate()
    with client.pool.connection() as tx:
        tx.execute("CREATE TABLE IF NOT EXISTS examples.word_count (text text, words integer)")
        tx.execute("DELETE FROM examples.word_count")

    client.enqueue(None, CountWords("the more the merrier"))
    WorkerPool(client, WorkMap({CountWords: Handler(count_words, detached=True)})).work_one()

    with client.pool.connection() as tx:
        print("The result:", counted(tx))

# Output:
# In its transaction the job is completed
# Others still see it running
# Now all see it completed
# The result: [('the more the merrier', 4)]
