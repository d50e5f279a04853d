"""The signals that end a worker process: the first stops it gently, the second cuts off handlers, the third exits."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import FrameType

LOOK_UP = 0.5  # seconds after which a wait on the main thread lets signal handlers run


@contextmanager
def handling(numbers: Iterable[signal.Signals], act: Callable[[int], None]) -> Iterator[None]:
    """Call the function for each of these signals. A child that a handler of a job forks has the handlers of before."""
    process = os.getpid()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        act(number)

    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals() -> Iterator[SimpleQueue[int | None]]:
    """Give a queue that receives each SIGTERM and SIGINT. The third of them exits the process."""
    received: SimpleQueue[int | None] = SimpleQueue()  # its put() is safe in a signal handler, an Event's set() is not
    seen: list[int] = []

    def act(number: int) -> None:
        seen.append(number)
        if len(seen) > 2:
            os._exit(128 + number)
        received.put(number)

    with handling((signal.SIGTERM, signal.SIGINT), act):
        yield received


def next_signal(received: SimpleQueue[int | None]) -> int | None:
    """Wait for the next item of the queue. A signal that arrives just before this thread falls asleep does not end its
    wait, and signal handlers run on no other thread; so the wait ends now and then."""
    while True:
        with suppress(Empty):
            return received.get(timeout=LOOK_UP)
