"""Integrations, each imported only by who uses it."""
