"""The worker process: its threads, its signals, and its row in the table of workers."""
