"""How the threads of a queue wait: who is called first, and who watches the clock."""

from __future__ import annotations

import threading
from queue import SimpleQueue

import pytest

from pgjobs.wakeup.idle_threads import IdleThreads
from tests.waiting import wait_until

HOUR = 3600.0


class Waiting:
    """Threads that wait, one after the other; who comes back says so, and whether it has polled."""

    def __init__(self) -> None:
        self.idle = IdleThreads(10)
        self.back: SimpleQueue[tuple[str, bool]] = SimpleQueue()
        self.added = 0
        self.returned: list[str] = []

    def add(self, name: str, poll_interval: float = HOUR) -> None:
        """Start a thread that waits; others, whose poll interval is over, may return meanwhile."""
        seen = self.idle.wake_count

        def wait() -> None:
            woken = self.idle.wait(seen, poll_interval)
            self.returned.append(name)
            self.back.put((name, woken))

        self.added += 1
        threading.Thread(target=wait, daemon=True).start()
        wait_until(lambda: self.idle._idle + len(self.returned) == self.added)


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


def test_who_came_last_is_called_first(waiting: Waiting) -> None:
    for name in "abc":
        waiting.add(name)
    for name in "cba":
        assert waiting.idle.wake()
        assert waiting.back.get(timeout=5) == (name, False)
    assert not waiting.idle.wake(), "there is nobody left who will look"


def test_a_call_that_was_missed_is_not_waited_for(waiting: Waiting) -> None:
    seen = waiting.idle.wake_count
    waiting.idle.wake()
    assert waiting.idle.wait(seen, HOUR) is False


def test_each_call_is_for_another_thread(waiting: Waiting) -> None:
    for name in "abc":
        waiting.add(name)
    for _ in range(3):
        waiting.idle.wake()
    assert {waiting.back.get(timeout=5)[0] for _ in range(3)} == {"a", "b", "c"}


def test_one_watches_the_clock_and_another_when_that_has_gone(waiting: Waiting) -> None:
    for name in "abc":
        waiting.add(name, 0.01)
    assert [waiting.back.get(timeout=5) for _ in range(3)] == [("a", True), ("b", True), ("c", True)]


def test_all_are_called_at_the_end(waiting: Waiting) -> None:
    for name in "abc":
        waiting.add(name)
    waiting.idle.close()
    assert {waiting.back.get(timeout=5) for _ in range(3)} == {("a", False), ("b", False), ("c", False)}
    assert waiting.idle._idle == 0
