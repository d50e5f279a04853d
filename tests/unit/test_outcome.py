"""What an attempt leads to, and how its error is put on record."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import Backoff, Cancel, Discard, JobState, RetryAfter, RetryAt, Signal, Snooze, constant, never, river
from pgjobs.clean_text import ERROR_LIMIT, TRACE_LIMIT, clean, error_text, error_trace
from pgjobs.execution.outcome import Outcome, decide
from pgjobs.options import LONGEST_DELAY
from tests.samples import HOUR, SECOND
from tests.unit.samples import NOON, a_job

LATER = NOON + HOUR


def raised(error: BaseException) -> BaseException:
    """The error as it comes out of a handler: with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def at_an_instant(when: datetime) -> Backoff:
    return lambda job, error: when


ENDINGS: dict[str, tuple[int, BaseException | None, Backoff, Outcome]] = {
    # what: (attempt of 3, raised, policy, outcome without error and trace)
    "returned": (1, None, never(), Outcome(JobState.COMPLETED)),
    "returned at last": (3, None, never(), Outcome(JobState.COMPLETED)),
    "failed": (1, ValueError("x"), constant(HOUR), Outcome(JobState.RETRYABLE, delay=HOUR)),
    "failed, due at an instant": (1, ValueError("x"), at_an_instant(LATER), Outcome(JobState.RETRYABLE, at=LATER)),
    "failed, never again": (1, ValueError("x"), never(), Outcome(JobState.DISCARDED)),
    "failed before last": (2, ValueError("x"), constant(HOUR), Outcome(JobState.RETRYABLE, delay=HOUR)),
    "failed at last": (3, ValueError("x"), constant(HOUR), Outcome(JobState.DISCARDED)),
    "failed past the last": (4, ValueError("x"), constant(HOUR), Outcome(JobState.DISCARDED)),
    "exited": (1, SystemExit(0), constant(HOUR), Outcome(JobState.RETRYABLE, delay=HOUR)),
    "exited at last": (3, SystemExit(0), constant(HOUR), Outcome(JobState.DISCARDED)),
    "interrupted": (1, KeyboardInterrupt(), constant(HOUR), Outcome(JobState.RETRYABLE, delay=HOUR)),
    "snoozed": (1, Snooze(HOUR), never(), Outcome(JobState.SCHEDULED, delay=HOUR, refund=True)),
    "snoozed at last": (3, Snooze(HOUR), never(), Outcome(JobState.SCHEDULED, delay=HOUR, refund=True)),
    "retry after": (1, RetryAfter(SECOND), constant(HOUR), Outcome(JobState.RETRYABLE, delay=SECOND)),
    "retry after, never": (1, RetryAfter(SECOND), never(), Outcome(JobState.RETRYABLE, delay=SECOND)),
    "retry after at last": (3, RetryAfter(SECOND), constant(HOUR), Outcome(JobState.DISCARDED)),
    "retry at": (1, RetryAt(LATER), constant(HOUR), Outcome(JobState.RETRYABLE, at=LATER)),
    "retry at, at last": (3, RetryAt(LATER), constant(HOUR), Outcome(JobState.DISCARDED)),
    "discard": (1, Discard("bad"), constant(HOUR), Outcome(JobState.DISCARDED)),
    "cancel": (1, Cancel("unwanted"), constant(HOUR), Outcome(JobState.CANCELLED)),
    "cancel at last": (3, Cancel("unwanted"), constant(HOUR), Outcome(JobState.CANCELLED)),
    "a policy that gives no time at all": (
        1,
        ValueError("x"),
        constant(timedelta(0)),
        Outcome(JobState.RETRYABLE, delay=timedelta(0)),
    ),
    "a policy too far": (
        1,
        ValueError("x"),
        constant(timedelta.max),
        Outcome(JobState.RETRYABLE, delay=LONGEST_DELAY),
    ),
    "a snooze too far": (
        1,
        Snooze(timedelta.max),
        never(),
        Outcome(JobState.SCHEDULED, delay=LONGEST_DELAY, refund=True),
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_outcome_of_an_attempt(ending: str) -> None:
    attempt, error, policy, expected = ENDINGS[ending]
    outcome = decide(a_job(attempt=attempt, max_attempts=3), error and raised(error), policy)
    assert (outcome.state, outcome.delay, outcome.at, outcome.refund) == (
        expected.state,
        expected.delay,
        expected.at,
        expected.refund,
    )
    on_record = error is not None and not isinstance(error, Snooze)
    assert (outcome.error is not None, outcome.trace is not None) == (on_record, on_record)


def test_the_policy_is_asked_with_the_failed_attempt_and_its_error() -> None:
    asked: list[tuple[int, BaseException]] = []

    def policy(job: Any, error: BaseException) -> timedelta:
        asked.append((job.attempt, error))
        return HOUR

    error = raised(ValueError("x"))
    decide(a_job(attempt=7), error, policy)
    assert asked == [(7, error)]


def test_nothing_is_asked_when_the_handler_has_said_it_or_no_attempt_is_left() -> None:
    def policy(job: Any, error: BaseException) -> timedelta:
        raise AssertionError("asked")

    for signal in (Snooze(HOUR), RetryAfter(HOUR), RetryAt(LATER), Discard(), Cancel()):
        assert "asked" not in (decide(a_job(), raised(signal), policy).error or "")
    assert decide(a_job(attempt=25), raised(ValueError("x")), policy).error == "x"


def policy_that_raises(error: BaseException) -> Backoff:
    def policy(job: Any, failed: BaseException) -> timedelta:
        raise error

    return policy


def gives(answer: Any) -> Backoff:
    return lambda job, error: answer


class NotATime(datetime):
    """As is pandas.NaT."""

    def utcoffset(self) -> Any:
        raise ValueError("NaT has no zone")


FAULTY: dict[str, Backoff] = {
    "raises": policy_that_raises(ZeroDivisionError("in the policy")),
    "exits": policy_that_raises(SystemExit("in the policy")),
    "says no": policy_that_raises(Discard("in the policy")),
    "a number": gives(5),
    "a fraction": gives(1.5),
    "not a number": gives(float("nan")),
    "true": gives(True),
    "text": gives("1 hour"),
    "a date": gives(date(2030, 1, 1)),
    "a naive datetime": gives(datetime(2030, 1, 1)),
    "a datetime that is none": gives(NotATime(2030, 1, 1)),
    "a negative delay": gives(-HOUR),
    "nearly no time": gives(timedelta(microseconds=-1)),
    "the longest ago": gives(timedelta.min),
    "an instant before the attempt": gives(NOON - SECOND),
    "the instant of the attempt": gives(NOON),
    "year 1": gives(datetime.min.replace(tzinfo=UTC)),
    "a class": gives(timedelta),
}


@pytest.mark.finding("W8")
@pytest.mark.parametrize("faulty", FAULTY.values(), ids=FAULTY)
def test_a_policy_with_a_fault_leaves_it_to_the_next_one_and_the_error_is_the_handlers(faulty: Backoff) -> None:
    """A backoff with a bug gave the job up at its first attempt, with an error that was not the handler's."""
    complaints: list[tuple[Backoff, BaseException]] = []

    def complain(policy: Backoff, error: BaseException) -> None:
        complaints.append((policy, error))

    job = a_job(attempted_at=NOON)
    outcome = decide(job, raised(ValueError("of the handler")), faulty, constant(HOUR), complain=complain)
    assert (outcome.state, outcome.delay, outcome.error) == (JobState.RETRYABLE, HOUR, "of the handler")
    assert "in the policy" not in (outcome.trace or "")
    assert [policy for policy, _ in complaints] == [faulty]


@pytest.mark.finding("W8")
def test_behind_all_policies_with_a_fault_stands_rivers() -> None:
    """A backoff with a bug gave the job up."""
    outcome = decide(a_job(attempt=2), raised(ValueError("x")), FAULTY["raises"], FAULTY["a number"])
    assert outcome.state is JobState.RETRYABLE
    assert outcome.delay is not None
    assert 14 * SECOND < outcome.delay < 18 * SECOND


@pytest.mark.finding("W8")
def test_after_a_fault_no_retry_is_sooner_than_a_second() -> None:
    """Each of 25 attempts followed the one before at once."""
    job = a_job(attempted_at=NOON)
    soon = decide(job, raised(ValueError("x")), FAULTY["a negative delay"], constant(timedelta(0)))
    assert soon.delay == SECOND
    at = decide(job, raised(ValueError("x")), FAULTY["text"], gives(NOON + SECOND / 10), ran=timedelta(seconds=20))
    assert at.delay is not None, "that is over by now, so it is a fault too"
    later = decide(job, raised(ValueError("x")), FAULTY["text"], gives(NOON + SECOND / 10))
    assert later.at is not None
    assert later.at >= NOON + SECOND


def test_after_a_fault_the_next_policy_may_still_say_never() -> None:
    assert decide(a_job(), raised(ValueError("x")), FAULTY["text"], never()).state is JobState.DISCARDED


@pytest.mark.parametrize("delay", [-HOUR, timedelta.min])
@pytest.mark.parametrize("signal", [RetryAfter(HOUR), Snooze(HOUR)])
def test_a_signal_that_was_made_negative_by_hand_leads_to_no_loop(signal: Any, delay: timedelta) -> None:
    signal.delay = delay
    assert decide(a_job(), raised(signal), never()).delay == SECOND


@pytest.mark.parametrize("year", [1, 9999])
def test_an_instant_that_the_table_cannot_hold_is_bounded(year: int) -> None:
    when = (datetime.min if year == 1 else datetime.max).replace(tzinfo=UTC)
    for error, policy in ((RetryAt(when), never()), (ValueError("x"), at_an_instant(when)))[: 1 if year == 1 else 2]:
        at = decide(a_job(), raised(error), policy).at
        assert at is not None
        assert datetime(1, 1, 3, tzinfo=UTC) <= at <= datetime(9999, 12, 30, tzinfo=UTC)


@given(st.integers(1, 2**31), st.integers(1, 2**31), st.timedeltas())
def test_a_retry_always_has_a_time_that_can_be_stored(attempt: int, max_attempts: int, due: timedelta) -> None:
    for policy in (river(), lambda job, error: due):
        outcome = decide(a_job(attempt=attempt, max_attempts=max_attempts), ValueError("x"), policy)
        if attempt >= max_attempts:
            assert outcome == Outcome(JobState.DISCARDED, error="x")
        else:
            assert outcome.state is JobState.RETRYABLE
            assert outcome.delay is not None
            assert timedelta(0) <= outcome.delay <= LONGEST_DELAY


@pytest.mark.parametrize(
    "make",
    [lambda: Snooze(-SECOND), lambda: RetryAfter(-SECOND), lambda: RetryAt(datetime(2030, 1, 1))],
    ids=["snooze", "retry after", "retry at"],
)
def test_a_signal_with_a_time_that_makes_no_sense_is_an_error_of_its_own(make: Callable[[], Signal]) -> None:
    with pytest.raises(ValueError, match=r"negative|past|time zone"):
        make()


# --- the record of an error


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class NotText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class Quitting(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class OwnAttributes(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise RuntimeError("no notes")


def cyclic() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("world\nended"), "world\nended"),
        (ValueError(), "ValueError"),
        (ValueError(""), "ValueError"),
        (KeyError("name"), "KeyError: 'name'"),
        (SystemExit(0), "SystemExit: 0"),
        (SystemExit(), "SystemExit"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (psycopg.errors.UniqueViolation("duplicate"), "duplicate [23505]"),
        (Discard("bad"), "bad"),
        (Discard(), "Discard"),
        (Discard(ValueError("the reason")), "the reason"),
        (caused(Discard("bad"), ValueError("the cause")), "bad (from ValueError: the cause)"),
        (caused(ValueError("bad"), ValueError("the cause")), "bad"),
        (RetryAfter(10 * SECOND, "R"), "retry in 0:00:10 because R"),
        (RetryAt(NOON, "R"), "retry at 2025-01-02T12:00:00+00:00 because R"),
        (ValueError("nul \0, surrogate \udc80"), "nul �, surrogate �"),
        (ValueError("\x1b[31mred\x1b[0m \x9b31m \r\t\x7f"), "�[31mred�[0m �31m �\t�"),
        (ExceptionGroup("several", [ValueError("one"), KeyError("two")]), "several (2 sub-exceptions)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_text_of_an_error(error: BaseException, text: str) -> None:
    assert error_text(error) == text


AWKWARD: list[BaseException] = [
    ValueError("x" * 10_000_000),
    ValueError("\0" * 100_000),
    ValueError("\ud800\x1b" * 50_000),
    ValueError({"a": "b\0"}, [1]),
    Unprintable(),
    NotText(),
    Quitting(),
    OwnAttributes("own"),
    cyclic(),
    caused(Discard(Unprintable()), Unprintable()),
    ExceptionGroup("many", [ValueError(f"{n}" * 1000) for n in range(500)]),
    ExceptionGroup("deep", [ExceptionGroup("deeper", [cyclic(), Unprintable()])]),
    SyntaxError("bad", ("a\0file", 1, 1, "\ud800code", 1, 2)),
    UnicodeDecodeError("utf-8", b"\xff" * 1000, 0, 1, "\0"),
    RecursionError("deep"),
    MemoryError(),
]


@pytest.mark.parametrize("error", AWKWARD, ids=lambda error: type(error).__name__)
def test_whatever_is_raised_its_record_can_be_stored_and_printed(error: BaseException) -> None:
    outcome = decide(a_job(attempt=3), raised(error), constant(HOUR))
    entry = json.loads(outcome.error_json(3) or "null")
    assert entry["attempt"] == 3
    assert 0 < len(entry["error"]) <= ERROR_LIMIT
    assert 0 < len(entry["trace"]) <= TRACE_LIMIT
    for text in (entry["error"], entry["trace"]):
        text.encode()  # a lone surrogate would raise
        assert all(character in "\n\t" or character.isprintable() or ord(character) > 0x9F for character in text)


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    text = error_text(ValueError("BEGIN" + "x" * 100_000 + "END"))
    assert text.startswith("BEGIN")
    assert text.endswith("END")
    assert "characters cut" in text


def test_a_text_that_just_fits_is_not_touched() -> None:
    assert clean("x" * ERROR_LIMIT, ERROR_LIMIT) == "x" * ERROR_LIMIT


@given(st.text(st.characters(exclude_categories=()), max_size=300), st.integers(100, 200))
def test_cleaned_text_is_short_and_storable(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert "\0" not in cleaned
    assert "\x1b" not in cleaned
    cleaned.encode()


def test_an_error_without_a_traceback_has_no_trace() -> None:
    assert error_trace(ValueError("made, not raised")) is None


def test_the_trace_names_the_line_that_raised_and_shows_no_values() -> None:
    def handler() -> None:
        password = "s3cret-%d" % 42  # noqa: UP031  put together, so that the source line does not show it
        raise ValueError(len(password))

    try:
        handler()
    except ValueError as error:
        trace = error_trace(error) or ""
    assert "in handler" in trace
    assert "raise ValueError(len(password))" in trace
    assert "s3cret-42" not in trace


def test_the_trace_shows_the_chain_of_causes_and_the_members_of_a_group() -> None:
    trace = error_trace(raised(caused(ValueError("effect"), raised(KeyError("cause"))))) or ""
    assert "KeyError: 'cause'" in trace
    assert "direct cause" in trace
    group = error_trace(raised(ExceptionGroup("several", [ValueError("one"), TypeError("two")]))) or ""
    assert "ValueError: one" in group
    assert "TypeError: two" in group


def test_a_deep_recursion_is_recorded_in_short() -> None:
    def down(n: int) -> None:
        if n == 0:
            raise ValueError("the bottom")
        up(n - 1)

    def up(n: int) -> None:
        down(n)

    try:
        down(400)
    except ValueError as error:
        trace = error_trace(error) or ""
    assert "ValueError: the bottom" in trace
    assert trace.count("\n") < 200


def test_the_entry_leaves_its_time_to_the_database() -> None:
    outcome = decide(a_job(), raised(ValueError("x")), constant(HOUR))
    assert json.loads(outcome.error_json(1) or "").keys() == {"attempt", "error", "trace"}
    assert Outcome(JobState.COMPLETED).error_json(1) is None
