"""Changes jobs and queues by hand: cancel, release, retry, delete and update jobs; pause, resume and update queues."""
