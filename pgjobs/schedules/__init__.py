"""Cron schedules: those in code, those in the table, and the tick that enqueues their jobs."""
