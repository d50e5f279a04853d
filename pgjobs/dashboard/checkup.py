"""What the doctor finds, for all who look at it: it opens connections of its own, so it does not run for each view."""

from __future__ import annotations

import threading
import time

from pgjobs.client import Client
from pgjobs.observe.doctor.finding import Finding

_KEPT = 10.0  # seconds


class Checkup:
    """The findings of the doctor. It runs once at a time, and its findings are kept for some seconds. If it fails, all
    who waited for it get the error: one after the other they would wait for a database that does not answer."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._found: tuple[float, list[Finding]] | None = None  # until when they are kept
        self._failed: tuple[float, Exception] | None = None  # when the last run failed

    def findings(self) -> list[Finding]:
        asked_at = time.monotonic()
        with self._lock:
            if self._failed is not None and self._failed[0] >= asked_at:
                raise self._failed[1]
            if self._found is None or time.monotonic() >= self._found[0]:
                self._found = self._look()
            return self._found[1]

    def _look(self) -> tuple[float, list[Finding]]:
        try:
            findings = list(self._client.doctor(include_ok=True))
        except Exception as error:
            self._failed = time.monotonic(), error
            raise
        self._failed = None
        return time.monotonic() + _KEPT, findings
