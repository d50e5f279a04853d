"""One attempt: claim a job, run its handler, decide what becomes of it, write that."""
