"""The static files: these, and no others."""

from __future__ import annotations

from functools import cache
from hashlib import sha256
from importlib import resources

from werkzeug.exceptions import NotFound

TYPES = {
    "pgjobs.css": "text/css; charset=utf-8",
    "pgjobs.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@cache
def content(name: str) -> bytes:
    """The content of a static file. Raises NotFound for any other name."""
    if name not in TYPES:
        raise NotFound
    return (resources.files("pgjobs.dashboard") / "static" / name).read_bytes()


@cache
def version(name: str) -> str:
    """A part of the address that changes with the content, so that browsers may keep the file."""
    return sha256(content(name)).hexdigest()[:12]
