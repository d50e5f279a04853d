"""What is sent to the server by a transport, and in how many messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from pgjobs.execution.script import Script
from pgjobs.execution.transport import Run, Transport


@dataclass
class RoundTrips:
    scripts: list[tuple[str, ...]] = field(default_factory=list)  # the labels of their statements
    messages: int = 0
    prepared: int = 0  # statements, each in a message of its own

    @property
    def finishes(self) -> list[tuple[str, ...]]:
        return [labels for labels in self.scripts if "complete" in labels]

    @property
    def shared(self) -> list[tuple[str, ...]]:
        """The finishes that took the next claim with them."""
        return [labels for labels in self.finishes if {"claim", "lock"} <= set(labels)]


def count_round_trips(monkeypatch: pytest.MonkeyPatch) -> RoundTrips:
    """Count from now on, until the test is over."""
    sent = RoundTrips()
    run, run_many = Transport.run, Transport.run_many
    prepare, receive = Transport._prepare, Transport._receive

    def noted(self: Transport, script: Script, *args: Any, **options: Any) -> Any:
        sent.scripts.append(tuple(script.at))
        return run(self, script, *args, **options)

    def noted_many(self: Transport, runs: Sequence[Run], **options: Any) -> Any:
        sent.scripts.append(tuple(label for script, *_ in runs for label in script.at))
        return run_many(self, runs, **options)

    def noted_prepare(self: Transport, statement: Any) -> bytes:
        sent.prepared += 1
        return prepare(self, statement)

    def counted(self: Transport, *args: Any, **options: Any) -> Any:
        sent.messages += 1
        return receive(self, *args, **options)

    monkeypatch.setattr(Transport, "run", noted)
    monkeypatch.setattr(Transport, "run_many", noted_many)
    monkeypatch.setattr(Transport, "_prepare", noted_prepare)
    monkeypatch.setattr(Transport, "_receive", counted)
    return sent
