"""Names, options and their precedence, and a job as a value."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import InvalidKind, InvalidOption, JobOptions, JobState, NewJob, job_options
from pgjobs.options import check_kind, check_queue, kind_of, options_of
from tests.unit.samples import NOON, a_job

MINUTE = timedelta(minutes=1)


# --- kinds


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Welcome", "welcome"),
        ("SendMail", "send_mail"),
        ("HTTPRequest", "http_request"),
        ("ParseHTML", "parse_html"),
        ("Md5Sum", "md5_sum"),
        ("already_snake", "already_snake"),
        ("_Private", "_private"),
    ],
)
def test_the_kind_is_the_name_of_the_class_in_snake_case(name: str, kind: str) -> None:
    assert kind_of(dataclasses.make_dataclass(name, [])) == kind


def test_a_class_may_name_its_kind_itself() -> None:
    @dataclass
    class Welcome:
        kind: ClassVar[str] = "mail.welcome"

    @dataclass
    class Louder(Welcome):
        volume: int = 11

    assert kind_of(Welcome) == "mail.welcome"
    assert kind_of(Louder) == "mail.welcome"


def test_a_field_called_kind_is_payload_and_names_nothing() -> None:
    @dataclass
    class Animal:
        kind: str = "cat"

    assert kind_of(Animal) == "animal"


@pytest.mark.parametrize("name", ["A", "Größe"])
def test_a_class_name_that_makes_no_kind_is_refused(name: str) -> None:
    with pytest.raises(InvalidKind):
        kind_of(dataclasses.make_dataclass(name, []))


def test_a_kind_that_a_class_names_is_checked_too() -> None:
    @dataclass
    class Welcome:
        kind: ClassVar[str] = "with space"

    with pytest.raises(InvalidKind, match="with space"):
        kind_of(Welcome)


@pytest.mark.parametrize("kind", ["ab", "a" * 128, "9lives", "a.b", "a:b", "a/b", "a[b]", "a<b>", "a+b", "a-b", "a·b"])
def test_good_kinds_pass(kind: str) -> None:
    if "·" in kind:  # River's middle dot is the one character beyond ASCII
        assert check_kind(kind) == kind
    assert check_kind(kind) is kind


@pytest.mark.parametrize(
    "kind", [None, "", 5, b"bytes", "a", "a" * 129, "a b", "a,b", ":a", "a\n", "a\0b", "é" * 3, "a%s", "a'b", "a;b"]
)
def test_bad_kinds_are_refused(kind: object) -> None:
    with pytest.raises(InvalidKind) as refused:
        check_kind(kind)
    assert len(str(refused.value)) < 400, "a long kind is cut in the message"


# --- queues


@pytest.mark.parametrize("queue", ["q", "default", "mail.out", "a" * 64, "9", "a/b:c"])
def test_good_queue_names_pass(queue: str) -> None:
    assert check_queue(queue) is queue


@pytest.mark.parametrize("queue", [None, "", 5, "a" * 65, "a b", "-a", "a\n", "é", "a,b", "a;b", "a\0"])
def test_bad_queue_names_are_refused(queue: object) -> None:
    with pytest.raises(
        InvalidOption, match=r"use 1 to 64 ASCII letters.*begin with a letter, a digit or an underscore"
    ):
        check_queue(queue)


# --- options


@pytest.mark.parametrize(
    "option",
    [
        {"priority": -32768},
        {"priority": 32767},
        {"max_attempts": 1},
        {"max_attempts": 32767},
        {"scheduled_at": datetime(1, 1, 3, tzinfo=UTC)},
        {"scheduled_at": datetime(9999, 12, 29, 23, 59, 59, 999999, tzinfo=UTC)},
        {"scheduled_at": datetime(2025, 1, 1, tzinfo=timezone(timedelta(hours=14)))},
        {"delay": timedelta(0)},
        {"delay": timedelta.max},
        {"tags": ()},
        {"tags": ["aaa", "my-tag", "777", "ALL_CAPS", "a" * 255]},
        {"metadata": {}},
    ],
    ids=str,
)
def test_options_at_the_edge_of_their_range_pass(option: dict[str, Any]) -> None:
    JobOptions(**option)


@pytest.mark.parametrize(
    "option",
    [
        {"queue": ""},
        {"queue": "a b"},
        {"priority": -32769},
        {"priority": 32768},
        {"priority": True},
        {"priority": 1.0},
        {"priority": "1"},
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": 32768},
        {"max_attempts": True},
        {"scheduled_at": datetime(2025, 1, 1)},
        {"scheduled_at": datetime.max.replace(tzinfo=UTC)},
        {"scheduled_at": datetime.min.replace(tzinfo=UTC)},
        {"scheduled_at": NOON.date()},
        {"scheduled_at": "2025-01-01T00:00:00Z"},
        {"scheduled_at": 1735689600},
        {"scheduled_at": NOON, "delay": MINUTE},
        {"scheduled_at": NOON, "delay": timedelta(0)},
        {"delay": timedelta(microseconds=-1)},
        {"delay": 60},
        {"tags": "one"},
        {"tags": {"one-tag"}},
        {"tags": [None]},
        {"tags": [5]},
        {"tags": ["a"]},
        {"tags": ["aa"]},
        {"tags": ["-aaa"]},
        {"tags": ["aaa-"]},
        {"tags": ["commas,never"]},
        {"tags": ["special@x$"]},
        {"tags": ["a" * 256]},
        {"tags": ["aaa\n"]},
        {"tags": ["ééé"]},
        {"metadata": [1]},
        {"metadata": "text"},
    ],
    ids=lambda option: str(option)[:60],
)
def test_options_out_of_their_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        JobOptions(**option)


LEVELS = {
    "queue": ("near", "far"),
    "priority": (0, 7),
    "max_attempts": (1, 9),
    "tags": ([], ["tag"]),
    "metadata": ({}, {"a": 1}),
}


@pytest.mark.parametrize("name", LEVELS)
def test_the_nearer_level_wins_also_with_a_value_that_is_false(name: str) -> None:
    near, far = LEVELS[name]
    assert getattr(JobOptions(**{name: near}).over(JobOptions(**{name: far})), name) == near  # type: ignore[arg-type]
    assert getattr(JobOptions().over(JobOptions(**{name: far})), name) == far  # type: ignore[arg-type]
    assert getattr(JobOptions(**{name: near}).over(JobOptions()), name) == near  # type: ignore[arg-type]


@pytest.mark.parametrize("near", [{"delay": MINUTE}, {"delay": timedelta(0)}, {"scheduled_at": NOON}], ids=str)
@pytest.mark.parametrize("far", [{}, {"delay": 2 * MINUTE}, {"scheduled_at": NOON + MINUTE}], ids=str)
def test_a_time_given_near_replaces_one_given_far_whatever_their_forms(
    near: dict[str, Any], far: dict[str, Any]
) -> None:
    chosen = JobOptions(**near).over(JobOptions(**far))
    assert {"delay": chosen.delay, "scheduled_at": chosen.scheduled_at} == {"delay": None, "scheduled_at": None} | near


@pytest.mark.parametrize("far", [{"delay": timedelta(0)}, {"delay": MINUTE}, {"scheduled_at": NOON}], ids=str)
def test_a_time_given_far_holds_when_none_is_given_near(far: dict[str, Any]) -> None:
    assert JobOptions(priority=1).over(JobOptions(**far)) == JobOptions(priority=1, **far)


some_options = st.builds(
    JobOptions,
    queue=st.none() | st.sampled_from(["one", "two"]),
    priority=st.none() | st.integers(-3, 3),
    max_attempts=st.none() | st.integers(1, 3),
    delay=st.none() | st.timedeltas(timedelta(0), MINUTE),
)


@given(some_options, some_options, some_options)
def test_levels_may_be_joined_in_any_order(call: JobOptions, cls: JobOptions, client: JobOptions) -> None:
    assert call.over(cls).over(client) == call.over(cls.over(client))
    assert call.over(JobOptions()) == call == JobOptions().over(call)


def test_a_class_sets_its_options_with_the_decorator() -> None:
    @job_options(queue="mail", priority=3)
    @dataclass
    class Welcome:
        email: str

    @dataclass
    class Louder(Welcome):
        pass

    assert options_of(Welcome("a@b.c")) == JobOptions(queue="mail", priority=3)
    assert options_of(Louder("a@b.c")) == JobOptions(queue="mail", priority=3)


def test_a_class_may_compute_its_options_from_its_args() -> None:
    @dataclass
    class Report:
        rows: int

        def job_options(self) -> JobOptions:
            return JobOptions(queue="large" if self.rows > 100 else "small")

    assert options_of(Report(5)).queue == "small"
    assert options_of(Report(500)).queue == "large"


def test_options_that_are_no_options_are_refused() -> None:
    @dataclass
    class Report:
        def job_options(self) -> Any:
            return {"queue": "large"}

    with pytest.raises(InvalidOption, match="Report"):
        options_of(Report())


def test_wrong_options_of_a_class_are_refused_where_they_are_written() -> None:
    with pytest.raises(InvalidOption):
        job_options(max_attempts=0)


def test_a_class_without_options_and_a_dict_ask_for_nothing() -> None:
    @dataclass
    class Plain:
        pass

    assert options_of(Plain()) == JobOptions()
    assert options_of({"job_options": "payload"}) == JobOptions()


def test_a_new_job_checks_its_options_at_once() -> None:
    assert NewJob({"a": 1}, kind="report", priority=5).options == JobOptions(priority=5)
    with pytest.raises(InvalidOption):
        NewJob({"a": 1}, kind="report", priority=99999)


# --- the value


def test_exactly_the_last_three_states_are_final() -> None:
    assert (
        [state for state in JobState if state.final] == list(JobState)[-3:] == ["completed", "cancelled", "discarded"]
    )


def test_args_are_decoded_once_and_only_when_they_are_asked_for() -> None:
    decoded: list[str] = []

    def decode(raw: str) -> int:
        decoded.append(raw)
        return 42

    job = a_job(raw_args='{"n": 1}', decode=decode)
    assert decoded == []
    assert (job.args, job.args) == (42, 42)
    assert decoded == ['{"n": 1}']


def test_args_without_a_class_are_what_the_json_says() -> None:
    assert a_job(raw_args='{"n": [1, null]}').args == {"n": [1, None]}


def test_a_job_with_unreadable_json_can_be_looked_at_as_long_as_nobody_asks_for_that_part() -> None:
    job = a_job(raw_args="{", raw_metadata="{", raw_errors="[")
    assert "kind='thing'" in repr(job)
    for part in ("args", "metadata"):
        with pytest.raises(ValueError, match="line 1"):
            getattr(job, part)
    assert [error.error for error in job.errors] == ["["]  # a record of failures is shown as far as it can be


def test_metadata_is_decoded() -> None:
    assert a_job(raw_metadata='{"a": {"b": 1}}').metadata == {"a": {"b": 1}}
    assert a_job().metadata == {}


def test_errors_are_read_in_their_order() -> None:
    entries = [
        {"attempt": 1, "at": "2025-01-02T12:00:00+00:00", "error": "first", "trace": "Traceback"},
        {"attempt": 2, "at": "2025-01-02T14:00:00.5+02:00", "error": "second", "trace": None},
    ]
    job = a_job(raw_errors=json.dumps(entries))
    first, second = job.errors
    assert (first.attempt, first.at, first.error, first.trace) == (1, NOON, "first", "Traceback")
    assert (second.attempt, second.at, second.trace) == (2, NOON + timedelta(milliseconds=500), None)
    assert (job.error_count, job.last_error) == (2, "second")


def test_a_job_without_errors_has_no_last_one() -> None:
    job = a_job()
    assert (job.errors, job.error_count, job.last_error) == ((), 0, None)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        5,
        "a text",
        [],
        {},
        {"attempt": 1, "at": "2025-01-02T12:00:00Z"},
        {"attempt": "many", "at": "2025-01-02T12:00:00Z", "error": "no number"},
        {"attempt": 1, "at": "yesterday", "error": "no instant"},
        {"attempt": 1, "at": 1735819200, "error": "no text"},
        {"attempt": None, "at": None, "error": None},
    ],
    ids=json.dumps,
)
def test_an_entry_of_errors_made_by_hand_is_shown_as_it_stands(entry: object) -> None:
    good = {"attempt": 2, "at": "2025-01-02T12:00:00+00:00", "error": "good", "trace": None}
    odd, readable = a_job(raw_errors=json.dumps([entry, good])).errors
    assert json.loads(odd.error) == entry
    assert odd.at.tzinfo is not None
    assert readable.error == "good", "its neighbours are read all the same"


@pytest.mark.parametrize("trace", [["line 1"], {"line": 1}, 5, False], ids=json.dumps)
def test_a_traceback_is_a_text_also_when_it_was_written_by_hand_as_something_else(trace: object) -> None:
    entry = {"attempt": 1, "at": "2025-01-02T12:00:00+00:00", "error": "by hand", "trace": trace}
    assert [error.trace for error in a_job(raw_errors=json.dumps([entry])).errors] == [str(trace)]


@pytest.mark.parametrize("at", ["2025-01-02T12:00:00", "2025-01-02"])
def test_the_instant_of_an_error_is_aware_also_when_it_was_written_by_hand_without_a_zone(at: str) -> None:
    (error,) = a_job(raw_errors=json.dumps([{"attempt": 1, "at": at, "error": "by hand"}])).errors
    assert error.at.tzinfo is not None


def test_the_repr_of_a_job_shows_no_payload() -> None:
    secret = "s3cret"
    job = a_job(
        raw_args=json.dumps({"password": secret}),
        raw_metadata=json.dumps({"note": secret}),
        raw_errors=json.dumps([{"attempt": 1, "at": NOON.isoformat(), "error": secret, "trace": secret}]),
        attempted_by=(secret,),
    )
    assert (job.args["password"], job.metadata["note"], job.last_error) == (secret, secret, secret)
    assert secret not in repr(job)
    assert secret not in str(job)


def test_a_job_is_a_frozen_value() -> None:
    job = a_job(decode=json.loads)
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.state = JobState.COMPLETED  # type: ignore[misc]
    assert job == a_job(decode=lambda raw: raw), "how it is decoded is no part of the value"
    assert job != a_job(attempt=2)
