"""How idle worker threads learn that a job has come."""
