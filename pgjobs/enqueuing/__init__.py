"""Inserts jobs: checks and encodes them, then writes them in the caller's transaction."""
