"""The worker threads of a process, its signals, and its row in the table of workers."""
