"""The dashboard at an address of another framework's app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def environ_below(environ: Mapping[str, Any], address: str, path: str) -> dict[str, Any]:
    """The environ of a request for the dashboard. `address` is the whole path of the request, and `path` its last part,
    which is for the dashboard; what stands before it is where the dashboard is mounted. Both as text, not as WSGI has
    them. The environ of the framework stays as it is."""
    mounted_at = address[: len(address) - len(path)].rstrip("/")
    return {**environ, "SCRIPT_NAME": _wsgi(mounted_at), "PATH_INFO": _wsgi(f"/{path}")}


def _wsgi(text: str) -> str:
    """A text as WSGI has it: its bytes, one character each."""
    return text.encode("utf-8", "replace").decode("latin-1")
