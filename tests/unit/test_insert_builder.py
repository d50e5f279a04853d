"""The inserts without a database: which requests the builder yields, and what it makes of the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgjobs import Job, JobOptions, JobState, NewJob, UndecodableArgs, Unique
from pgjobs.enqueuing.builder import COPY_FROM, InsertBuilder
from pgjobs.enqueuing.copy_buffer import CopyBuffer
from pgjobs.enqueuing.copy_rows import HEADER, TRAILER
from pgjobs.enqueuing.encoded_jobs import EncodedJobs
from pgjobs.enqueuing.encoder import Encoder
from pgjobs.enqueuing.queries import EnqueueQueries, Request, Requests, Rows
from pgjobs.options import EncodedJob

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
BY_N = Unique(by_args=["n"])
BY_ALL = Unique(by_args=True)


@dataclass
class Thing:
    n: int = 0


def encoder() -> Encoder:
    return Encoder(defaults=JobOptions(queue="default", priority=0, max_attempts=25), max_args_bytes=1000)


def builder(encode: Encoder | None = None) -> InsertBuilder:
    return InsertBuilder(EnqueueQueries("pgjobs"), encode or encoder())


class Script:
    """Runs an insert: the rows for each statement by its name, of several times in a row one after the other. It reads
    the blocks of each COPY when it is sent."""

    def __init__(self, **rows: Sequence[Rows]) -> None:
        self._rows = {name: list(each) for name, each in rows.items()}
        self.sent: list[Request] = []
        self.copied: list[bytes] = []

    def run(self, requests: Requests[Any]) -> Any:
        try:
            request = next(requests)
            while True:
                self.sent.append(request)
                if request.blocks is not None:
                    self.copied.append(b"".join(request.blocks))
                request = requests.send(self._rows[name_of(request)].pop(0))
        except StopIteration as end:
            assert not any(self._rows.values()), "a row that nothing asked for"
            return end.value

    @property
    def names(self) -> list[str]:
        return [name_of(request) for request in self.sent]


def name_of(request: Request) -> str:
    found = re.match(rb"-- name: (\w+)\n", request.statement)
    assert found is not None
    return found[1].decode()


def insert(script: Script, *new: object, notify: bool = True, may_copy: bool = True) -> list[Job[Any]]:
    encode = encoder()
    jobs: list[Job[Any]] = script.run(
        builder(encode).insert(EncodedJobs(encode.encode_all(new)), notify=notify, may_copy=may_copy)
    )
    return jobs


def row(id: int | None, n: int, *behind: object, state: str = "available", args: str | None = None) -> list[Any]:
    """The columns of a job, and what a statement gives behind them."""
    text = json.dumps({"n": n}) if args is None else args
    return [
        *(id, state, "default", "thing", 0, 0, 25, text, "{}", "[]", [], NOW, NOW, None, None, [], None, None, None),
        *behind,
    ]


def not_inserted(n: int, key: bytes, *, may_read: bool = True) -> list[Any]:
    return row(None, n, key, may_read)


def test_a_plain_job_is_one_statement_and_comes_back_with_its_own_args() -> None:
    args = Thing(7)
    script = Script(insert_plain_job=[[(5, "available", '{"n": 7}', "{}", NOW, NOW, "mail", "thing", 3, 25, 99)]])
    (job,) = insert(script, args)
    assert script.names == ["insert_plain_job"]
    assert {name: script.sent[0].parameters[name] for name in ("kind", "queue", "args")} == {
        "kind": "thing", "queue": "default", "args": '{"n":7}',
    }  # fmt: skip
    assert (job.id, job.state, job.queue, job.priority, job.created_at) == (5, JobState.AVAILABLE, "mail", 3, NOW)
    assert job.args is args


@pytest.mark.parametrize(
    "options",
    [{"delay": HOUR}, {"scheduled_at": NOW}, {"tags": ["red"]}, {"pending": True}],
    ids=lambda options: next(iter(options)),
)
def test_a_job_with_anything_more_is_inserted_by_the_statement_for_all_options(options: Any) -> None:
    script = Script(insert_job=[[row(5, 7, None)]])
    (job,) = insert(script, NewJob(Thing(7), **options))
    assert job.id == 5
    for name, value in options.items():
        assert script.sent[0].parameters[name] == value


def test_so_is_a_job_that_notifies_no_worker() -> None:
    script = Script(insert_job=[[row(5, 7, None)]])
    insert(script, Thing(7), notify=False)
    assert script.sent[0].parameters["notify"] is False


@pytest.mark.parametrize("new", [Thing(1), NewJob(Thing(1), delay=HOUR)], ids=["plain", "delay"])
def test_no_row_is_an_error(new: object) -> None:
    with pytest.raises(psycopg.DataError, match="gave no row"):
        insert(Script(insert_plain_job=[[]], insert_job=[[]]), new)


# --- unique jobs


def test_a_unique_job_without_a_duplicate_is_one_statement() -> None:
    script = Script(insert_unique_job=[[row(5, 7, b"k", True, None)]])
    (job,) = insert(script, NewJob(Thing(7), unique=BY_N))
    assert (job.id, job.duplicate) == (5, False)
    assert json.loads(script.sent[0].parameters["uniqueness"])["by_args"] == ["n"]


def test_a_duplicate_is_looked_up_and_comes_back_with_its_own_args() -> None:
    script = Script(insert_unique_job=[[not_inserted(7, b"k")]], duplicates=[[row(3, 70, b"k")]])
    (job,) = insert(script, NewJob(Thing(7), unique=BY_N))
    assert script.sent[1].parameters == {"keys": [b"k"]}
    assert (job.id, job.duplicate, job.args) == (3, True, Thing(70))


def test_a_job_whose_duplicate_is_gone_takes_another_turn() -> None:
    script = Script(
        insert_unique_job=[[not_inserted(7, b"k")], [row(8, 7, b"k", True, None)]],
        duplicates=[[]],
    )
    (job,) = insert(script, NewJob(Thing(7), unique=BY_N))
    assert script.names == ["insert_unique_job", "duplicates", "insert_unique_job"]
    assert (job.id, job.duplicate) == (8, False)


def test_the_turns_come_to_an_end() -> None:
    script = Script(insert_unique_job=[[not_inserted(7, b"k")]] * 100, duplicates=[[]] * 100)
    with pytest.raises(psycopg.DataError, match="job 0 of 1: its key is taken"):
        insert(script, NewJob(Thing(7), unique=BY_N))


def test_of_a_batch_only_the_jobs_that_are_left_take_another_turn_and_all_come_back_in_order() -> None:
    script = Script(
        insert_jobs=[
            [row(1, 0, b"a", True), not_inserted(1, b"b"), not_inserted(2, b"c"), row(4, 3, None, True)],
        ],
        duplicates=[[row(90, 2, b"c")]],
        insert_unique_job=[[row(5, 1, b"b", True)]],
    )
    jobs = insert(script, *(NewJob(Thing(n), unique=BY_N) for n in range(3)), Thing(3))
    assert [(job.id, job.duplicate, job.args.n) for job in jobs] == [
        (1, False, 0), (5, False, 1), (90, True, 2), (4, False, 3),
    ]  # fmt: skip
    assert sorted(script.sent[1].parameters["keys"]) == [b"b", b"c"]
    assert script.sent[2].parameters["args"] == '{"n":1}'
    assert script.sent[0].parameters["uniqueness"][3] == ""


def test_a_waiting_duplicate_is_changed_where_the_job_says_so() -> None:
    script = Script(
        insert_unique_job=[[not_inserted(7, b"k")]],
        replace_duplicate=[[row(3, 0, None, args="null")]],
        read_replaced=[[('{"n": 7}', '{"x": 1}', "[]", None, None)]],
    )
    (job,) = insert(script, NewJob(Thing(7), unique=BY_N, replace=["args", "priority"], priority=4))
    changes = script.sent[1].statement.decode().split(" SET\n")[1].split("FROM moment")[0]
    assert re.findall(r"^\s*(\w+) = ", changes, re.MULTILINE) == ["args", "priority"]
    assert (script.sent[1].parameters["key"], script.sent[1].parameters["priority"]) == (b"k", 4)
    assert script.sent[2].parameters == {"id": 3, "queue": "default"}
    assert (job.id, job.duplicate, job.args, job.metadata) == (3, True, Thing(7), {"x": 1})


def test_a_duplicate_that_does_not_wait_is_looked_up_instead() -> None:
    script = Script(
        insert_unique_job=[[not_inserted(7, b"k")]],
        replace_duplicate=[[]],
        duplicates=[[row(3, 7, b"k", state="running")]],
    )
    (job,) = insert(script, NewJob(Thing(7), unique=BY_N, replace=True))
    assert (job.id, job.state, job.duplicate) == (3, JobState.RUNNING, True)


def test_duplicates_are_changed_in_the_order_of_their_keys() -> None:
    script = Script(
        insert_jobs=[[not_inserted(n, key) for n, key in enumerate([b"c", b"a", b"b"])]],
        replace_duplicate=[[row(id, 0, None)] for id in (1, 2, 3)],
        read_replaced=[[]] * 3,
    )
    jobs = insert(script, *(NewJob(Thing(n), unique=BY_N, replace=True) for n in range(3)))
    keys = [request.parameters["key"] for request in script.sent if name_of(request) == "replace_duplicate"]
    assert keys == [b"a", b"b", b"c"]
    assert [job.id for job in jobs] == [3, 1, 2]


@pytest.mark.parametrize(("unique", "known"), [(BY_ALL, True), (BY_N, False)], ids=["all args", "a field"])
def test_a_role_that_may_not_read_gets_the_args_that_the_key_covers(unique: Unique, known: bool) -> None:
    script = Script(
        insert_unique_job=[[not_inserted(7, b"k", may_read=False)]],
        duplicates_unread=[[row(3, 0, b"k", args="null")]],
    )
    (job,) = insert(script, NewJob(Thing(7), unique=unique))
    assert (job.id, job.duplicate) == (3, True)
    if known:
        assert job.args == Thing(7)
    else:
        with pytest.raises(UndecodableArgs, match="may not read"):
            job.args  # noqa: B018


# --- many


def test_a_few_jobs_are_one_insert() -> None:
    script = Script(insert_jobs=[[row(n, n, None, True) for n in range(COPY_FROM - 1)]])
    jobs = insert(script, *(NewJob(Thing(n), delay=n % 2 * HOUR) for n in range(COPY_FROM - 1)))
    assert [job.args.n for job in jobs] == list(range(COPY_FROM - 1))
    assert script.sent[0].parameters["delays"][:2] == [timedelta(0), HOUR]


def test_many_jobs_are_copied_with_ids_that_were_drawn_before() -> None:
    ids = list(range(100, 100 + COPY_FROM))
    script = Script(prepare_copy=[[(NOW, False, ids)]], copy_with_ids=[()], notify_copied=[()])
    jobs = insert(script, *(Thing(n) for n in range(COPY_FROM)))
    assert [(job.id, job.args.n, job.created_at) for job in jobs] == [(100 + n, n, NOW) for n in range(COPY_FROM)]
    assert script.sent[0].parameters == {"jobs": COPY_FROM}
    (sent,) = script.copied
    assert sent.startswith(HEADER)
    assert sent.endswith(TRAILER)
    assert sent.count(b'{"n":') == COPY_FROM


@dataclass
class Empty:
    pass


def test_copied_jobs_have_their_own_options_and_the_args_that_were_passed() -> None:
    """Jobs of equal options share what they have in common, whatever comes between them."""
    given = [Empty(), Thing(1), NewJob(Thing(2), queue="mail", tags=["red"]), NewJob(Thing(3), queue="mail")] * 6
    script = Script(prepare_copy=[[(NOW, False, range(len(given)))]], copy_with_ids=[()], notify_copied=[()])
    jobs = insert(script, *given)
    assert [(job.queue, job.kind, job.tags) for job in jobs[4:8]] == [
        ("default", "empty", ()), ("default", "thing", ()), ("mail", "thing", ("red",)), ("mail", "thing", ()),
    ]  # fmt: skip
    for new, job in zip(given, jobs, strict=True):
        assert job.args is (new.args if isinstance(new, NewJob) else new)
    assert jobs[0].raw_args == "{}"
    assert [script.copied[0].count(text) for text in (b'{"n":1}', b"red", b"mail")] == [6, 6, 12]
    assert waking(script.sent[2]) == [("default", "available"), ("mail", "available")]


def test_copied_jobs_that_middleware_has_changed_have_the_changed_args() -> None:
    encode = encoder()
    jobs = list(EncodedJobs(encode.encode_all([Thing(n) for n in range(COPY_FROM)])))
    jobs[0] = replace(jobs[0], args='{"n":70}')
    jobs[1] = replace(jobs[1], kind="other")
    script = Script(prepare_copy=[[(NOW, False, range(COPY_FROM))]], copy_with_ids=[()], notify_copied=[()])
    inserted = script.run(builder(encode).insert(jobs, notify=True, may_copy=True))
    assert [job.args for job in inserted[:3]] == [Thing(70), {"n": 1}, Thing(2)]
    assert inserted[2].args is jobs[2].original_args


def test_jobs_of_the_same_options_share_their_template() -> None:
    encode, metadata = encoder(), {"a": 1}
    given = [NewJob(Thing(n), queue="mail") for n in range(2)] + [NewJob(Thing(), metadata=metadata)]
    first, second, third = (template for template, _, _ in encode.encode_all(given))
    assert first is second
    metadata["a"] = 2
    assert json.loads(third.metadata)["a"] == 1
    assert json.loads(encode.encode(given[2]).metadata)["a"] == 2, "a mapping may change, so it is read each time"


@pytest.mark.parametrize(("may_copy", "before"), [(False, []), (True, ["prepare_copy"])], ids=["pipeline", "security"])
def test_where_a_copy_is_not_possible_they_are_one_insert(may_copy: bool, before: list[str]) -> None:
    script = Script(
        prepare_copy=[[(NOW, True, [])]] * may_copy, insert_jobs=[[row(n, n, None, True) for n in range(COPY_FROM)]]
    )
    assert len(insert(script, *(Thing(n) for n in range(COPY_FROM)), may_copy=may_copy)) == COPY_FROM
    assert script.names == [*before, "insert_jobs"]


MIXED = [
    NewJob(Thing(), queue="now"),
    NewJob(Thing(), queue="past", scheduled_at=NOW - HOUR),
    NewJob(Thing(), queue="later", delay=2 * HOUR),
    NewJob(Thing(), queue="later", scheduled_at=NOW + HOUR),
    NewJob(Thing(), queue="pending", pending=True),
]
STATES = ["available", "available", "scheduled", "scheduled", "pending"]


def waking(request: Request) -> list[tuple[str, str]]:
    return list(zip(request.parameters["queues"], request.parameters["states"], strict=True))


def test_the_state_of_a_copied_job_depends_on_the_time_of_the_database() -> None:
    script = Script(prepare_copy=[[(NOW, False, range(20))]], copy_with_ids=[()], notify_copied=[()])
    jobs = insert(script, *MIXED * 4)
    assert [job.state for job in jobs] == STATES * 4
    assert [job.scheduled_at for job in jobs[:5]] == [NOW, NOW - HOUR, NOW + 2 * HOUR, NOW + HOUR, NOW]
    assert waking(script.sent[2]) == [("now", "available"), ("past", "available"), ("", "scheduled")]
    assert script.sent[2].parameters["times"][-1] == NOW + HOUR, "of the job that is due first"


def buffered(*new: object) -> tuple[CopyBuffer, list[EncodedJob]]:
    jobs, buffer = list(encoder().encode_all(new)), CopyBuffer()
    for template, text, _ in jobs:
        buffer.add(template, text)
    return buffer, [template for template, _, _ in jobs]


def test_jobs_of_a_buffer_come_to_the_same_states_and_notifications() -> None:
    script = Script(copy_due_now=[()], prepare_copy=[[(NOW, False, [])]], copy_timed=[()], notify_copied=[()])
    buffer, _ = buffered(*MIXED * 4)
    with buffer:
        script.run(builder().insert_buffer(buffer, notify=True))
    due_now, timed = script.copied
    assert due_now.count(b'{"n":') == 4
    assert [timed.count(state.encode()) for state in ("available", "scheduled")] == [4, 8]
    assert timed.count(b"pending") == 2 * 4, "the state and the queue"
    assert waking(script.sent[3]) == [("now", "available"), ("past", "available"), ("", "scheduled")]
    assert script.sent[3].parameters["times"][-1] == NOW + HOUR


def test_a_buffer_without_times_asks_for_none() -> None:
    script = Script(copy_due_now=[()], notify_copied=[()])
    buffer, _ = buffered(*(Thing(n) for n in range(5)))
    with buffer:
        script.run(builder().insert_buffer(buffer, notify=True))
    assert waking(script.sent[1]) == [("default", "available")]


@pytest.mark.parametrize(
    ("new", "notify"), [(MIXED[4], True), (MIXED[0], False)], ids=["nothing to wake for", "notify=False"]
)
def test_a_notification_is_sent_only_where_it_is_of_use(new: object, notify: bool) -> None:
    script = Script(prepare_copy=[[(NOW, False, range(COPY_FROM))]], copy_with_ids=[()])
    insert(script, *[new] * COPY_FROM, notify=notify)
    assert script.names == ["prepare_copy", "copy_with_ids"]
