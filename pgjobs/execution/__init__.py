"""One attempt: claim a job, run its handler, decide what becomes of it, write that.

Who calls whom when a worker thread (workers/worker_threads.py) runs one job after the other:

    Executor.claim                   executor.py
      Claimer.claim                  claimer.py: from the low-water mark; what to do about a claim that fails is decided
                                     in lost_claims.py, failed_claims.py and unworkable.py
        ExecutionQueries.claim       queries.py: values go in, a Job comes out
          Scripts.claim              scripts.py: the statements of the message, of sql/execution.sql
          Transport.run              transport.py: sends the script; the answers are the claimed job, and its lock
    Executor.run
      Watchdog.add                   watchdog.py: from now on the attempt is stopped when its time is up
      Executor.start
        Checkout.start_tx            db/checkout.py: the handler's `tx`, in the transaction that has the lock
        Attempt.run                  attempt.py: calls the handler
      Checkout.end_tx                what the handler has kept of `tx` sends nothing any more
      Claimer.next_claim             the claim that goes in the message of the finish, if there may be one
      Finisher.finish                finisher.py
        ExecutionQueries.complete    it returned: completion, COMMIT, and the next claim and lock, in one message
        Decider.decide               it raised: decider.py, by the rules of outcome.py
        ExecutionQueries.fail        rolls its writes back, writes the outcome, COMMIT
        LateFinish.finish            late_finish.py: the same in a new transaction, when the old one is gone
        Reporter.report              report.py: the figures, the log, the hooks and the subscribers
      returns the next job, which is claimed and locked already

In batches, `Batches.run_next` (batch.py) does this for many jobs in one transaction: with the same Claimer, the same
start of a handler and the same decision, and with statements and savepoints of its own (batch_queries.py,
savepoints.py). In `client.lock_job` (lock_job.py) a block of the caller's takes the place of the handler.
"""
