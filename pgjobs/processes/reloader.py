"""Notices that source files have changed."""

from __future__ import annotations

import os
from collections.abc import Iterable


class Reloader:
    """Compares the times of files with those of the last look."""

    def __init__(self) -> None:
        self._times: dict[str, int | None] = {}
        self._changed: dict[str, None] = {}  # since when the files kept still; in the order in which they changed

    def watch(self, files: Iterable[str]) -> None:
        """Watch these files too."""
        for file in files:
            self._times.setdefault(file, _time_of(file))

    def changed(self) -> list[str]:
        """The files that have changed, once they keep still from one call to the next: an editor or a checkout may be
        writing more of them."""
        now = {file: _time_of(file) for file in self._times}
        fresh = [file for file, time in now.items() if time != self._times[file]]
        self._times = now
        if fresh or not self._changed:
            self._changed |= dict.fromkeys(fresh)
            return []
        changed, self._changed = list(self._changed), {}
        return changed


def _time_of(file: str) -> int | None:
    try:
        return os.stat(file).st_mtime_ns
    except OSError:  # it may be there again in a moment
        return None
