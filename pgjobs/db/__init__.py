"""Postgres: where connections come from, how statements are found and sent, and the tables themselves."""
