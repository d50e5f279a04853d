"""What the doctor finds, for all who look at it: it opens connections of its own, so it does not run for each view."""

from __future__ import annotations

import threading
import time

from pgjobs.client import Client
from pgjobs.observe.doctor.finding import Finding

_KEPT = 10.0  # seconds


class Checkup:
    """The findings of the doctor. It runs once at a time, and its findings are kept for some seconds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._found: tuple[float, list[Finding]] | None = None  # until when they are kept

    def findings(self) -> list[Finding]:
        with self._lock:
            if self._found is None or time.monotonic() >= self._found[0]:
                findings = list(self._client.doctor(include_ok=True))
                self._found = time.monotonic() + _KEPT, findings
            return self._found[1]
