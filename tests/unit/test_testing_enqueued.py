"""The assertions of pgjobs.testing: what they accept, and what they say."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgjobs import InvalidArgs, InvalidOption, Job, JobState, NewJob
from pgjobs.testing import Enqueued, MemoryClient
from tests.samples import HOUR, Thing, nothing

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Welcome:
    email: str
    again: bool = False


@pytest.fixture
def client() -> MemoryClient:
    return MemoryClient()


@pytest.fixture
def enqueued(client: MemoryClient) -> Enqueued:
    return client.enqueued


def says(assertion: Callable[[], object]) -> str:
    """What a failing assertion says."""
    with pytest.raises(AssertionError) as raised:
        assertion()
    return str(raised.value)


# --- one job: RequireInserted of rivertest


@pytest.mark.conformance(307)
def test_one_job_is_returned_with_args_of_its_class(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue(None, Welcome("ada"))
    client.enqueue(None, Thing(1))
    job = enqueued.assert_enqueued(Welcome)
    assert (job.id, job.args, job.args.email) == (1, Welcome("ada"), "ada")
    assert enqueued.assert_enqueued("welcome").id == 1


@pytest.mark.conformance(307)
def test_no_job_of_the_kind_is_a_failure_that_names_the_kind_and_shows_what_is_there(
    client: MemoryClient, enqueued: Enqueued
) -> None:
    assert says(lambda: enqueued.assert_enqueued(Welcome)) == (
        "expected one job of kind 'welcome', found none; there are no jobs"
    )
    client.enqueue(None, Thing(7), queue="slow")
    assert says(lambda: enqueued.assert_enqueued(Welcome)) == (
        "expected one job of kind 'welcome', found none; the jobs there are:\n"
        "  job 1 of kind 'thing': available, queue 'slow', args {\"n\": 7}"
    )


@pytest.mark.conformance(307)
def test_two_jobs_of_the_kind_are_a_failure_that_names_the_assertion_for_several(
    client: MemoryClient, enqueued: Enqueued
) -> None:
    client.enqueue_many(None, [Welcome("ada"), Welcome("bob")])
    said = says(lambda: enqueued.assert_enqueued(Welcome))
    assert said.startswith("expected one job of kind 'welcome', found 2 of this kind (assert_many_enqueued expects")
    assert said.count("\n") == 2


def test_an_instance_means_the_job_with_these_args(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue_many(None, [Welcome("ada"), Welcome("bob", again=True), Welcome("bob", again=True)])
    assert enqueued.assert_enqueued(Welcome("ada")).id == 1
    assert "found 2 of this kind (assert" in says(lambda: enqueued.assert_enqueued(Welcome("bob", again=True)))
    assert "found 3 of this kind with other args" in says(lambda: enqueued.assert_enqueued(Welcome("eve")))


def test_other_args_of_the_only_job_are_told_field_by_field(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue(None, Welcome("ada"))
    assert says(lambda: enqueued.assert_enqueued(Welcome("bob", again=True))) == (
        "job 1 of kind 'welcome' differs:\n  args.email 'ada', expected 'bob'\n  args.again False, expected True"
    )
    enqueued.assert_enqueued(Welcome, args={"email": "ada"})
    assert says(lambda: enqueued.assert_enqueued("welcome", args={"email": "bob", "more": [1, 2]})) == (
        "job 1 of kind 'welcome' differs:\n"
        "  args.email 'ada', expected 'bob'\n"
        "  args.more is not there, expected [1, 2]"
    )


# --- its options: InsertOpts of rivertest

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "max_attempts": ({"max_attempts": 78}, {"max_attempts": 77}, "max_attempts 78, expected 77"),
    "priority": ({"priority": 1}, {"priority": 2}, "priority 1, expected 2"),
    "queue": ({"queue": "mail"}, {"queue": "other"}, "queue 'mail', expected 'other'"),
    "scheduled_at": (
        {"scheduled_at": AT},
        {"scheduled_at": AT + HOUR},
        "scheduled_at 2026-01-02T03:04:05+00:00, expected 2026-01-02T04:04:05+00:00",
    ),
    "delay": ({"delay": HOUR}, {"delay": 2 * HOUR}, "delay 1:00:00, expected 2:00:00"),
    "state": ({"pending": True}, {"state": "available"}, "state 'pending', expected 'available'"),
    "tags": ({"tags": ["one", "two"]}, {"tags": ["two"]}, "tags ('one', 'two'), expected ('two',)"),
    "metadata": ({"metadata": {"a": 1}}, {"metadata": {"a": 2}}, "metadata.a 1, expected 2"),
    "attempt": ({}, {"attempt": 3}, "attempt 0, expected 3"),
}


@pytest.mark.conformance(309)
@pytest.mark.parametrize("name", OPTIONS)
def test_one_other_option_is_one_readable_line(name: str, client: MemoryClient, enqueued: Enqueued) -> None:
    given, expected, line = OPTIONS[name]
    client.enqueue(None, Thing(), **given)
    assert says(lambda: enqueued.assert_enqueued(Thing, **expected)) == f"job 1 of kind 'thing' differs:\n  {line}"
    enqueued.assert_not_enqueued(Thing, **expected)


@pytest.mark.conformance(309)
def test_options_as_expected_pass_and_several_differences_are_all_told(
    client: MemoryClient, enqueued: Enqueued
) -> None:
    given: dict[str, Any] = {
        "max_attempts": 78, "priority": 3, "queue": "mail", "scheduled_at": AT, "tags": ["one"], "metadata": {"a": 1},
    }  # fmt: skip
    client.enqueue(None, Thing(), **given)
    enqueued.assert_enqueued(Thing, **given, state=JobState.AVAILABLE)
    said = says(lambda: enqueued.assert_enqueued(Thing, **{**given, "priority": 4, "queue": "other"}))
    assert said.splitlines()[1:] == ["  priority 3, expected 4", "  queue 'mail', expected 'other'"]


def test_what_cannot_be_compared_is_refused(client: MemoryClient, enqueued: Enqueued) -> None:
    unknown: dict[str, Any] = {"max_attempt": 1}
    with pytest.raises(InvalidOption, match="'max_attempt': the names are args, state, queue, "):
        enqueued.assert_enqueued(Thing, **unknown)
    with pytest.raises(InvalidOption, match="option 'pending': only by queue, "):
        enqueued.assert_many_enqueued([NewJob(Thing(), pending=True)])
    with pytest.raises(InvalidArgs, match="or a kind, not 5"):
        enqueued.assert_not_enqueued(5)
    with pytest.raises(InvalidArgs, match=re.escape("('report', args={'month': 5})")):
        enqueued.assert_enqueued({"month": 5})
    wrong: Any
    for wrong in ("thing", [], Thing):
        with pytest.raises(InvalidArgs, match="a list of what is expected, not "):
            enqueued.assert_many_enqueued(wrong)


# --- several jobs, and none


@pytest.mark.conformance(310)
def test_many_jobs_are_compared_in_their_order(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue_many(None, [Welcome("ada"), Thing(1)])
    client.enqueue(None, {"month": 5}, kind="report", queue="slow")
    jobs = enqueued.assert_many_enqueued([Welcome, Thing(1), NewJob({"month": 5}, kind="report", queue="slow")])
    assert [job.args for job in jobs] == [Welcome("ada"), Thing(1), {"month": 5}]
    enqueued.assert_many_enqueued([NewJob(Thing, priority=0)])  # jobs of other kinds do not matter


@pytest.mark.conformance(310)
@pytest.mark.parametrize(
    ("expected", "found"),
    [
        (["thing", "welcome"], "expected jobs of the kinds thing, welcome, found welcome, thing; the jobs"),
        (["welcome", "thing", "thing"], "expected jobs of the kinds welcome, thing, thing, found welcome, thing; the"),
        (["other"], "expected jobs of the kinds other, found none; the jobs there are:\n  job 1 of kind 'welcome'"),
    ],
    ids=["order", "number", "none"],
)
def test_other_kinds_or_another_order_are_told(
    expected: list[str], found: str, client: MemoryClient, enqueued: Enqueued
) -> None:
    client.enqueue_many(None, [Welcome("ada"), Thing(1)])
    assert says(lambda: enqueued.assert_many_enqueued(expected)).startswith(found)


@pytest.mark.conformance(310)
def test_all_differences_of_many_jobs_are_told(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue_many(None, [Welcome("ada"), NewJob(Thing(1), queue="mail", priority=5)])
    expected = [Welcome("bob"), NewJob(Thing(2), queue="slow", priority=5)]
    assert says(lambda: enqueued.assert_many_enqueued(expected)).splitlines() == [
        "the jobs differ:",
        "  job 1 of kind 'welcome': args.email 'ada', expected 'bob'",
        "  job 2 of kind 'thing': args.n 1, expected 2",
        "  job 2 of kind 'thing': queue 'mail', expected 'slow'",
    ]


@pytest.mark.conformance(310)
def test_a_job_that_must_not_be_there_is_told(client: MemoryClient, enqueued: Enqueued) -> None:
    enqueued.assert_not_enqueued(Thing)
    client.enqueue(None, Thing(1), queue="mail", priority=2)
    enqueued.assert_not_enqueued(Welcome)
    enqueued.assert_not_enqueued(Thing(2))
    enqueued.assert_not_enqueued(Thing, queue="mail", priority=3)  # it must be as expected in every way
    assert says(lambda: enqueued.assert_not_enqueued(Thing, queue="mail", priority=2)) == (
        "expected no job of kind 'thing' with queue 'mail', priority 2, found 1; the jobs there are:\n"
        "  job 1 of kind 'thing': available, queue 'mail', args {\"n\": 1}"
    )
    assert says(lambda: enqueued.assert_not_enqueued(Thing(1))).startswith(
        "expected no job of kind 'thing' with args {\"n\": 1}, found 1; "
    )


def test_all_enqueued_selects(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue_many(None, [Welcome("ada"), NewJob(Thing(1), queue="mail"), Thing(2)])
    assert [job.id for job in enqueued.all_enqueued()] == [1, 2, 3]
    assert [job.args for job in enqueued.all_enqueued(Thing)] == [Thing(1), Thing(2)]
    assert [job.id for job in enqueued.all_enqueued("thing", queue="mail")] == [2]
    assert enqueued.all_enqueued("other") == []


# --- arrower's TestQueue and TestAssertions


@pytest.mark.conformance(313)
def test_get_counts_from_one_and_leaves_the_job(client: MemoryClient, enqueued: Enqueued) -> None:
    assert (enqueued.get_first(), enqueued.get(0), enqueued.get(1)) == (None, None, None)
    jobs = client.enqueue_many(None, [Thing(1), Thing(2)])
    assert [enqueued.get(place) for place in (-1, 0, 1, 2, 3)] == [None, None, *jobs, None]
    assert enqueued.get_first() == enqueued.get_first() == jobs[0]


@pytest.mark.conformance(314)
def test_get_of_counts_the_jobs_of_a_kind_among_others(client: MemoryClient, enqueued: Enqueued) -> None:
    assert enqueued.get_first_of(Thing) is None
    client.enqueue_many(None, [Welcome("ada"), Thing(1), Welcome("bob"), Thing(2)])
    assert [shown(enqueued.get_of(Thing, place)) for place in (0, 1, 2, 3)] == [None, 2, 4, None]
    assert shown(enqueued.get_first_of("welcome")) == 1
    assert shown(enqueued.get_of(Welcome("bob"), 2)) == 3
    for absent in (None, "other"):
        assert enqueued.get_first_of(absent) is None
        assert enqueued.get_of(absent, 1) is None


def shown(job: Job[Any] | None) -> int | None:
    return None if job is None else job.id


@pytest.mark.conformance(315)
def test_the_assertions_return_true_or_name_the_count_or_the_kind(client: MemoryClient, enqueued: Enqueued) -> None:
    assert enqueued.empty()
    assert enqueued.total(0)
    assert enqueued.not_contains(Thing)
    assert says(enqueued.not_empty) == "expected jobs, but there are no jobs"
    assert says(lambda: enqueued.contains(Thing)) == "expected a job of kind 'thing', found none; there are no jobs"
    client.enqueue_many(None, [Thing(1), Thing(2)])
    assert enqueued.not_empty()
    assert enqueued.total(2)
    assert enqueued.contains(Thing)
    assert enqueued.contains(Thing(2))
    assert enqueued.not_contains(Welcome)
    assert says(enqueued.empty).startswith("expected no jobs, found 2; the jobs there are:\n  job 1 of kind 'thing'")
    assert says(lambda: enqueued.total(1)).startswith("expected 1 job, found 2; ")
    assert says(lambda: enqueued.contains(Thing(3))).startswith("expected a job of kind 'thing' with args {\"n\": 3}")
    assert says(lambda: enqueued.not_contains(Thing)).startswith("expected no job of kind 'thing', found 2; ")


# --- what is shown


@dataclass
class Login:
    email: str
    password: str = field(metadata={"secret": True})


def test_the_values_of_secret_fields_are_not_shown(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue(None, Login("ada", "hunter2"))
    enqueued.assert_enqueued(Login("ada", "hunter2"))
    enqueued.assert_not_enqueued(Login("ada", "other"))
    for assertion in (
        lambda: enqueued.assert_enqueued(Login("bob", "wrong1")),
        lambda: enqueued.assert_enqueued(Login, args={"password": "wrong1"}),
        lambda: enqueued.assert_many_enqueued([Login("ada", "wrong1")]),
        lambda: enqueued.assert_not_enqueued(Login("ada", "hunter2")),
        lambda: enqueued.contains(Login("ada", "wrong1")),
        lambda: MemoryClient().enqueued.contains(Login("ada", "wrong1")),
        enqueued.empty,
    ):
        said = says(assertion)
        assert "hunter2" not in said
        assert "wrong1" not in said
        assert "[secret]" in said


@pytest.mark.parametrize("known_from", ["the job", "the work map", "an assertion before"])
def test_the_values_of_secret_fields_are_not_shown_of_a_job_that_is_named_by_its_kind(known_from: str) -> None:
    client = MemoryClient(work_map={Login: nothing} if known_from == "the work map" else None)
    given = {"email": "ada", "password": "hunter2"}
    if known_from == "the job":
        client.enqueue(None, Login("ada", "hunter2"))
    else:
        client.enqueue(None, given, kind="login")
    enqueued = client.enqueued
    if known_from == "an assertion before":
        enqueued.assert_enqueued(Login)
    for assertion in (
        lambda: enqueued.assert_enqueued("login", args={"password": "wrong1"}),
        lambda: enqueued.assert_enqueued("login", args={"password": "wrong1"}, queue="mail"),
        lambda: enqueued.assert_enqueued(NewJob({"password": "wrong1"}, kind="login")),
        lambda: enqueued.assert_many_enqueued([NewJob({"password": "wrong1"}, kind="login")]),
        lambda: enqueued.assert_not_enqueued("login", args={"password": "hunter2"}),
        lambda: enqueued.contains("login", args={"password": "wrong1"}),
        lambda: enqueued.total(2),
    ):
        said = says(assertion)
        assert "hunter2" not in said
        assert "wrong1" not in said
        assert "[secret]" in said
    assert "args.email 'ada', expected 'bob'" in says(lambda: enqueued.assert_enqueued("login", args={"email": "bob"}))


def test_many_jobs_and_long_args_are_cut(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue_many(None, [Welcome("x" * 1000), *[Thing(n) for n in range(30)]])
    lines = says(enqueued.empty).splitlines()
    assert len(lines) == 22
    assert len(lines[1]) < 400
    assert lines[1].endswith("...")
    assert lines[-1] == "  and 11 more"


def test_args_that_are_equal_as_python_has_them_are_equal(client: MemoryClient, enqueued: Enqueued) -> None:
    client.enqueue(None, At(datetime(2026, 1, 1, 12, tzinfo=UTC)))
    enqueued.assert_enqueued(At(datetime.fromisoformat("2026-01-01T13:00:00+01:00")))
    enqueued.assert_not_enqueued(At(datetime.fromisoformat("2026-01-01T12:00:00+01:00")))
    assert enqueued.assert_enqueued(At).scheduled_at - timedelta(seconds=10) < datetime.now(UTC)


@dataclass
class At:
    when: datetime
