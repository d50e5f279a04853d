"""System checks."""

from __future__ import annotations


def register() -> None:
    """Register the checks of the app."""
