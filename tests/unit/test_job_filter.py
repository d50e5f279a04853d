"""A filter and a cursor as values: what they take, what they refuse before any SQL, and what a page says."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass, fields
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs import EmptyFilter, InvalidFilter, Job, JobCounts, JobFilter, JobState
from pgjobs.job_filter import check_limit
from pgjobs.observe.listing import listing

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TIMES = [field.name for field in fields(JobFilter) if field.name.endswith(("_after", "_before"))]
COMPLETED = JobFilter(states=["completed"])


def job(id: int, state: JobState = JobState.COMPLETED, **columns: Any) -> Job[Any]:
    final = {"finalized_at": NOW + timedelta(hours=1)} if state.final else {}
    given = {"queue": "default", "kind": "thing", "priority": 0, "attempt": 1, "max_attempts": 25, "raw_args": "{}"}
    return Job(id=id, state=state, **{**given, "scheduled_at": NOW, "created_at": NOW, **final, **columns})


# --- the filter


@dataclass
class Report:
    kind: ClassVar[str] = "report.build"


def test_an_args_class_among_the_kinds_stands_for_its_kind() -> None:
    assert JobFilter(kinds=[Report, "mail"]) == JobFilter(kinds=["report.build", "mail"])
    for wrong in (int, Report()):
        with pytest.raises(InvalidFilter, match="kinds"):
            JobFilter(kinds=[wrong])  # type: ignore[list-item]


def test_a_filter_is_a_frozen_value_that_keeps_what_it_was_given() -> None:
    kinds = ["a.b", "c"]
    metadata: dict[str, Any] = {"a": [1, {"b": None}]}
    chosen = JobFilter(kinds=kinds, states=["running", JobState.AVAILABLE], ids=range(3, 5), metadata=metadata)
    kinds.append("d")
    metadata["a"].append(2)
    assert chosen == JobFilter(
        kinds=("a.b", "c"), states=[JobState.RUNNING, JobState.AVAILABLE], ids=[3, 4], metadata={"a": [1, {"b": None}]}
    )
    assert chosen.parameters["metadata"] == '{"a":[1,{"b":null}]}'
    with pytest.raises(FrozenInstanceError):
        chosen.kinds = None  # type: ignore[misc]


@pytest.mark.parametrize("name", ["kinds", "queues", "tags_any", "tags_all"])
@pytest.mark.parametrize("value", ["text", b"text", {"a": 1}, 5, [None], [5], ["a\0b"], ["\ud800"]], ids=repr)
def test_texts_are_a_list_of_strings_that_postgres_can_hold(name: str, value: object) -> None:
    with pytest.raises(InvalidFilter, match=name):
        JobFilter(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["kinds", "queues", "tags_any", "tags_all"])
def test_any_text_may_be_looked_for_since_jobs_may_have_been_made_by_hand(name: str) -> None:
    hostile = ["'; DROP TABLE job --", "%s {matches}", "a,b{}", "\n\x1b[31m", "ä€😀", ""]
    assert getattr(JobFilter(**{name: hostile}), name) == tuple(hostile)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [5, "5", [-(2**63) - 1], [2**63], [True], ["5"], [1.0], [None]], ids=repr)
def test_ids_are_a_list_of_ids(value: object) -> None:
    with pytest.raises(InvalidFilter, match="ids"):
        JobFilter(ids=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [5, [-32769], [32768], [False], ["0"]], ids=repr)
def test_priorities_are_a_list_of_smallints(value: object) -> None:
    with pytest.raises(InvalidFilter, match="priorities"):
        JobFilter(priorities=value)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["completed", ["done"], [""], [None], [5]], ids=repr)
def test_states_are_a_list_of_states(value: object) -> None:
    with pytest.raises(InvalidFilter, match="states"):
        JobFilter(states=value)  # type: ignore[arg-type]


def test_a_state_that_there_is_not_is_answered_with_those_there_are() -> None:
    with pytest.raises(InvalidFilter, match=r"'done' is not a state; there are available, .*, discarded"):
        JobFilter(states=["done"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", TIMES)
def test_times_are_aware_datetimes_that_a_table_can_hold(name: str) -> None:
    assert getattr(JobFilter(**{name: NOW}), name) == NOW  # type: ignore[arg-type]
    for value in (NOW.replace(tzinfo=None), "2026-01-01", 5, NOW.date()):
        with pytest.raises(InvalidFilter, match=name):
            JobFilter(**{name: value})  # type: ignore[arg-type]
    for extreme in (datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=timezone(timedelta(hours=14)))):
        with pytest.raises(InvalidFilter, match=f"{name}.* out of range"):
            JobFilter(**{name: extreme})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [[], "a", 5, {"a": float("nan")}, {"a": "\0"}, {"a": {1}}, {"a": "x" * 70_000}])
@pytest.mark.parametrize("name", ["metadata", "args"])
def test_metadata_and_args_are_a_json_object(name: str, value: object) -> None:
    with pytest.raises(InvalidFilter, match=name):
        JobFilter(**{name: value})  # type: ignore[arg-type]


@pytest.mark.conformance(209)
def test_what_would_fit_every_job_does_not_count_as_a_filter() -> None:
    with pytest.raises(InvalidFilter, match="would fit every job"):
        JobFilter(tags_all=[])
    for name in ("metadata", "args"):
        with pytest.raises(InvalidFilter, match="would fit every job"):
            JobFilter(**{name: {}})  # type: ignore[arg-type]
    with pytest.raises(EmptyFilter, match=r"JobFilter\.all\(\) for really all"):
        JobFilter().check_not_empty()
    JobFilter.all().check_not_empty()


def test_everything_but_nothing_is_a_filter() -> None:
    for name in ("ids", "kinds", "queues", "states", "priorities", "tags_any"):
        JobFilter(**{name: []}).check_not_empty()  # type: ignore[arg-type]  # it fits no job
    for name in TIMES:
        JobFilter(**{name: NOW}).check_not_empty()  # type: ignore[arg-type]


def test_really_all_stands_alone() -> None:
    assert JobFilter.all() != JobFilter()
    with pytest.raises(InvalidFilter, match="it takes no other condition"):
        JobFilter(really_all=True, kinds=["a"])


# --- a page and its cursor


@pytest.mark.parametrize("limit", [0, -1, 10_001, True, "5", None, 1.0], ids=repr)
def test_a_page_has_a_limit_of_1_to_10000(limit: object) -> None:
    with pytest.raises(InvalidFilter, match="limit"):
        listing(JobFilter(), "id", False, limit, None)


@pytest.mark.parametrize("limit", [0, -1, True, "5", 1.0], ids=repr)
def test_a_call_for_many_has_a_limit_of_1_or_more_or_none(limit: object) -> None:
    with pytest.raises(InvalidFilter, match="limit"):
        check_limit(limit)
    check_limit(None)
    check_limit(10**9)


@pytest.mark.parametrize("order", ["", "ID", "priority", "id; DROP TABLE", None, 5], ids=repr)
def test_there_are_two_orders(order: Any) -> None:
    with pytest.raises(InvalidFilter, match="order is 'id' or 'time'"):
        listing(COMPLETED, order, False, 10, None)


@pytest.mark.parametrize("states", [None, [], ["completed", "discarded"]], ids=repr)
def test_the_order_of_time_is_that_of_one_state(states: Any) -> None:
    with pytest.raises(InvalidFilter, match="the time of one state"):
        listing(JobFilter(states=states), "time", False, 10, None)


def test_a_page_leads_to_the_next_one_only_if_there_are_more() -> None:
    wanted = listing(JobFilter(), "id", False, 2, None)
    assert wanted.page([]) == wanted.page([]).__class__((), None)
    assert wanted.page([job(1), job(2)]).next is None
    page = wanted.page([job(1), job(2), job(3)])
    assert [job.id for job in page.jobs] == [1, 2]
    assert page.next is not None
    again = listing(JobFilter(), "id", False, 7, page.next)
    assert (again.after_id, again.after_time, again.limit) == (2, None, 7)


@given(
    st.integers(1, 2**63 - 1),
    st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29), timezones=st.just(UTC)),
    st.sampled_from(list(JobState)),
    st.booleans(),
)
def test_a_cursor_comes_back_exactly_and_can_go_into_a_url(
    id: int, time: datetime, state: JobState, descending: bool
) -> None:
    chosen = JobFilter(states=[state])
    column = "finalized_at" if state.final else "attempted_at" if state == "running" else "scheduled_at"
    page = listing(chosen, "time", descending, 1, None).page([job(id, state, **{column: time}), job(1)])
    assert page.next is not None
    assert page.next.replace(".", "").replace("-", "").isalnum()
    again = listing(chosen, "time", descending, 1, page.next)
    assert (again.after_id, again.after_time) == (id, time)


def test_the_time_of_a_running_job_that_was_made_by_hand_is_when_it_was_made() -> None:
    chosen = JobFilter(states=["running"])
    page = listing(chosen, "time", False, 1, None).page([job(7, JobState.RUNNING), job(8)])
    assert listing(chosen, "time", False, 1, page.next).after_time == NOW


@pytest.mark.parametrize(
    "cursor",
    [
        *("", "id", "id.up", "id.up.", "id.up.x", "id.up.--1", "id.up.1.5", "time.up.5", "time.up.5.", "id.up.5\n"),
        *(
            "id.up.9223372036854775808",
            "id.up.-9223372036854775809",
            "id.up.99999999999999999999",
            "time.up.1.999999999999999999",
            "id.up.٥",
        ),
        *("time.up.1.-999999999999999999", "' OR 1=1 --", 5, b"id.up.5", ["id.up.5"], "id.sideways.5"),
    ],
    ids=lambda cursor: repr(cursor)[:40],
)
def test_what_is_no_cursor_is_refused(cursor: Any) -> None:
    for order in ("id", "time"):
        with pytest.raises(InvalidFilter, match="cursor"):
            listing(COMPLETED, order, False, 10, cursor)


@pytest.mark.parametrize("cursor", ["id.down.5", "time.up.5.0", "time.down.5.0"])
def test_a_cursor_of_another_order_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidFilter, match="another order"):
        listing(COMPLETED, "id", False, 10, cursor)


# --- counts


def test_counts_add_up_by_state_and_by_queue() -> None:
    counts = JobCounts({("a", JobState.AVAILABLE): 2, ("b", JobState.AVAILABLE): 3, ("b", JobState.RUNNING): 5})
    assert counts.total == 10
    assert counts.by_queue == {"a": 2, "b": 8}
    assert counts.by_state == {**dict.fromkeys(JobState, 0), JobState.AVAILABLE: 5, JobState.RUNNING: 5}
    assert JobCounts({}).total == 0
