"""Cron: the schedules of the code and of the table, and the tick that enqueues their jobs."""
