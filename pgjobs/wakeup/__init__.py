"""Waking idle worker threads when a job arrives."""
