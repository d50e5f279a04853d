"""What changes jobs and queues by hand: cancel, retry, delete, update, pause."""
