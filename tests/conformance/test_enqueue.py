"""What a job is after it was enqueued, and what cannot be enqueued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgjobs import (
    Client,
    InvalidArgs,
    InvalidJob,
    InvalidKind,
    InvalidOption,
    Job,
    JobOptions,
    JobState,
    NewJob,
    NoJobs,
    UnknownKind,
    WorkerPool,
    WorkMap,
    decode_args,
    job_options,
)
from tests.conformance.conftest import Rows, Stored
from tests.samples import shown

MINUTES = timedelta(minutes=1)


@dataclass
class Greet:
    name: str = "Ada"
    times: int = 1


@dataclass
class Report:
    rows: int = 5


@job_options(max_attempts=42, priority=2, queue="other", delay=5 * MINUTES, tags=["one-tag", "two-tag"])
@dataclass
class Demanding:
    n: int = 0


@pytest.fixture
def refuses(conn: psycopg.Connection[Any], sql: Rows) -> Callable[..., None]:
    """Checks that a call with a connection is refused, and that nothing was sent over it."""

    def check(error: type[Exception], call: Callable[[psycopg.Connection[Any]], object]) -> None:
        with pytest.raises(error):
            call(conn)
        assert conn.info.transaction_status == TransactionStatus.IDLE, "no statement opened a transaction"
        assert sql("SELECT count(*) FROM pgjobs.job") == [(0,)]

    return check


def do_nothing(tx: psycopg.Connection[Any], job: Job[Any]) -> None: ...


@pytest.mark.conformance(1, 23)
def test_a_job_without_options_gets_the_defaults(client: Client, sql: Rows, stored: Stored) -> None:
    given = client.enqueue(None, Greet("Grace", 3))
    (now,) = sql("SELECT clock_timestamp()")[0]
    for job in (given, stored(given)):
        assert (job.state, job.queue, job.kind, job.priority) == (JobState.AVAILABLE, "default", "greet", 0)
        assert (job.attempt, job.max_attempts, job.attempted_at, job.attempted_by) == (0, 25, None, ())
        assert (job.tags, job.errors, job.finalized_at) == ((), (), None)
        assert timedelta(0) <= now - job.scheduled_at < timedelta(seconds=2)
        assert job.scheduled_at.utcoffset() == timedelta(0)
        assert decode_args(Greet, job.raw_args) == Greet("Grace", 3)
    assert given == stored(given), "what enqueue returns is what the table has"


@pytest.mark.conformance(23)
def test_the_handler_gets_the_args_as_they_were_given(client: Client) -> None:
    seen: list[Any] = []
    client.enqueue(None, Greet("Grace", 3))
    assert WorkerPool(client, {Greet: lambda tx, job: seen.append(job.args)}).work_one()
    assert seen == [Greet("Grace", 3)]


@pytest.mark.conformance(4)
@pytest.mark.parametrize("options", [{"scheduled_at": None}, {"delay": None}, {"delay": timedelta(0)}], ids=str)
def test_no_time_means_now(client: Client, sql: Rows, options: dict[str, Any]) -> None:
    job = client.enqueue(None, Greet(), **options)
    (late,) = sql("SELECT clock_timestamp() - scheduled_at FROM pgjobs.job WHERE id = %s", job.id)[0]
    assert job.state == JobState.AVAILABLE
    assert timedelta(0) <= late < timedelta(seconds=2)


@pytest.mark.conformance(4)
def test_a_time_in_the_past_is_kept_and_the_job_is_available(client: Client, stored: Stored) -> None:
    then = datetime(2009, 11, 10, 23, tzinfo=UTC)
    job = stored(client.enqueue(None, Greet(), scheduled_at=then))
    assert (job.state, job.scheduled_at) == (JobState.AVAILABLE, then)


@pytest.mark.conformance(5)
def test_the_options_of_the_args_class_hold_when_the_call_gives_none(client: Client, sql: Rows, stored: Stored) -> None:
    job = stored(client.enqueue(None, Demanding()))
    assert (job.max_attempts, job.priority, job.queue, job.tags) == (42, 2, "other", ("one-tag", "two-tag"))
    assert job.state == JobState.SCHEDULED
    (wait,) = sql("SELECT scheduled_at - clock_timestamp() FROM pgjobs.job")[0]
    assert 5 * MINUTES - timedelta(seconds=2) < wait <= 5 * MINUTES


@pytest.mark.conformance(5)
def test_an_option_of_the_call_wins_over_that_of_the_class(client: Client, stored: Stored) -> None:
    when = datetime(2031, 5, 4, 3, 2, 1, tzinfo=UTC)
    job = stored(
        client.enqueue(
            None, Demanding(), max_attempts=43, priority=0, queue="mine", scheduled_at=when, tags=["three-tag"]
        )
    )
    assert (job.max_attempts, job.priority, job.queue, job.tags) == (43, 0, "mine", ("three-tag",))
    assert job.scheduled_at == when, "a time in either form replaces the class's delay"


@pytest.mark.conformance(5)
def test_options_that_the_class_computes_from_the_args_count_as_the_class_s(client: Client, stored: Stored) -> None:
    @dataclass
    class Sized:
        rows: int

        def job_options(self) -> JobOptions:
            return JobOptions(queue="large" if self.rows > 100 else "small", priority=7)

    assert stored(client.enqueue(None, Sized(500))).queue == "large"
    assert stored(client.enqueue(None, Sized(5))).queue == "small"
    assert stored(client.enqueue(None, Sized(5), queue="mine")).queue == "mine"


@pytest.mark.conformance(5)
def test_a_subclass_overrides_the_options_of_its_base_class_one_by_one(client: Client, stored: Stored) -> None:
    @dataclass
    class Plain(Demanding):
        m: int = 0

    @job_options(priority=60, scheduled_at=datetime(2100, 1, 1, tzinfo=UTC))
    @dataclass
    class Urgent(Demanding):
        m: int = 0

    @job_options(max_attempts=3)
    @dataclass
    class MoreUrgent(Urgent):
        k: int = 0

    assert stored(client.enqueue(None, Plain())).queue == "other"
    job = stored(client.enqueue(None, Urgent()))
    assert (job.priority, job.queue, job.max_attempts, job.tags) == (60, "other", 42, ("one-tag", "two-tag"))
    assert job.scheduled_at == datetime(2100, 1, 1, tzinfo=UTC), "in place of the delay of the base class"
    job = stored(client.enqueue(None, MoreUrgent()))
    assert (job.priority, job.queue, job.max_attempts) == (60, "other", 3)
    assert stored(client.enqueue(None, Demanding())).priority == 2, "the base class keeps its own"


@pytest.mark.conformance(5)
def test_a_subclass_overrides_options_that_its_base_class_computes(client: Client, stored: Stored) -> None:
    @dataclass
    class Sized:
        rows: int

        def job_options(self) -> JobOptions:
            return JobOptions(queue="large" if self.rows > 100 else "small", priority=7)

    @job_options(priority=8)
    @dataclass
    class Sheet(Sized):
        pass

    jobs = [stored(client.enqueue(None, Sheet(rows))) for rows in (500, 5)]
    assert [(job.queue, job.priority) for job in jobs] == [("large", 8), ("small", 8)]


@pytest.mark.conformance(4, 5)
def test_no_delay_in_the_call_replaces_an_instant_of_the_class(client: Client, stored: Stored) -> None:
    @job_options(scheduled_at=datetime(2100, 1, 1, tzinfo=UTC))
    @dataclass
    class NextCentury:
        n: int = 0

    assert stored(client.enqueue(None, NextCentury())).state == JobState.SCHEDULED
    assert stored(client.enqueue(None, NextCentury(), delay=timedelta(0))).state == JobState.AVAILABLE


@pytest.mark.conformance(5, 6)
def test_the_defaults_of_the_client_come_last(client: Client) -> None:
    own = Client(client.pool, schema=client.schema, max_attempts=34, priority=9, queue="clients")
    job: Job[Any] = own.enqueue(None, Greet())
    assert (job.max_attempts, job.priority, job.queue) == (34, 9, "clients")
    job = own.enqueue(None, Demanding())
    assert (job.max_attempts, job.priority, job.queue) == (42, 2, "other")
    job = own.enqueue(None, Greet(), max_attempts=1, priority=0, queue="default")
    assert (job.max_attempts, job.priority, job.queue) == (1, 0, "default")


@pytest.mark.conformance(5)
def test_options_beside_a_new_job_are_not_lost(client: Client) -> None:
    """They are used or refused, but never dropped without a word."""
    new: Any = NewJob(Greet(), queue="mine")
    try:
        job = client.enqueue(None, new, priority=5)
    except (TypeError, InvalidJob):
        return
    assert (job.queue, job.priority) == ("mine", 5)


@pytest.mark.conformance(7)
@pytest.mark.parametrize("tag", ["aaa", "my-tag", "777", "ALL_CAPS", "a" * 255])
def test_a_good_tag_is_stored(client: Client, stored: Stored, tag: str) -> None:
    assert stored(client.enqueue(None, Greet(), tags=[tag, "other"])).tags == (tag, "other")


@pytest.mark.conformance(7)
@pytest.mark.parametrize("tag", ["a", "aa", "-aaa", "aaa-", "commas,never", "special@x$", "a" * 256, ""])
def test_a_bad_tag_is_refused_before_anything_is_sent(client: Client, refuses: Callable[..., None], tag: str) -> None:
    refuses(InvalidOption, lambda tx: client.enqueue(tx, Greet(), tags=["fine", tag]))


@pytest.mark.conformance(10)
def test_a_client_with_handlers_refuses_kinds_that_it_has_none_for(
    client: Client, refuses: Callable[..., None]
) -> None:
    knowing = Client(client.pool, schema=client.schema, work_map=WorkMap({Greet: do_nothing}))
    refuses(UnknownKind, lambda tx: knowing.enqueue(tx, Report()))
    refuses(UnknownKind, lambda tx: knowing.enqueue_many(tx, [Greet(), Report()]))
    assert knowing.enqueue(None, Greet()).kind == "greet"


@pytest.mark.conformance(10)
def test_a_client_without_handlers_enqueues_any_kind(client: Client) -> None:
    assert client.enqueue(None, Report()).kind == "report"
    assert client.enqueue(None, {"n": 1}, kind="made.up").kind == "made.up"


@pytest.mark.conformance(11)
def test_many_jobs_come_back_in_their_order_with_rising_ids_and_options_of_their_own(
    client: Client, stored: Stored
) -> None:
    when = datetime(2031, 1, 1, tzinfo=UTC)
    jobs = client.enqueue_many(
        None,
        [
            Greet("first"),
            NewJob(Greet("second"), priority=4, queue="mine", tags=["tagged"]),
            NewJob(Report(3), scheduled_at=when, max_attempts=2),
            NewJob({"n": 4}, kind="made.up"),
            Demanding(),
        ],
    )
    assert [job.kind for job in jobs] == ["greet", "greet", "report", "made.up", "demanding"]
    assert [job.id for job in jobs] == sorted({job.id for job in jobs})
    assert [job.priority for job in jobs] == [0, 4, 0, 0, 2]
    assert [job.queue for job in jobs] == ["default", "mine", "default", "default", "other"]
    assert [job.max_attempts for job in jobs] == [25, 25, 2, 25, 42]
    assert (jobs[1].tags, jobs[2].scheduled_at, jobs[3].args) == (("tagged",), when, {"n": 4})
    assert decode_args(Greet, jobs[0].raw_args) == Greet("first")
    assert [stored(job) for job in jobs] == jobs


@pytest.mark.conformance(11)
@pytest.mark.parametrize("nothing", [[], (), iter([])], ids=["list", "tuple", "iterator"])
def test_an_empty_list_of_jobs_is_an_error(client: Client, refuses: Callable[..., None], nothing: Any) -> None:
    refuses(NoJobs, lambda tx: client.enqueue_many(tx, nothing))


@pytest.mark.conformance(11)
def test_one_bad_job_of_many_refuses_them_all_and_is_named(client: Client, refuses: Callable[..., None]) -> None:
    refuses(InvalidArgs, lambda tx: client.enqueue_many(tx, [Greet(), Greet(), "no job", Greet()]))
    with pytest.raises(InvalidArgs) as refused:
        client.enqueue_many(None, [Greet(), Greet(), "no job", Greet()])
    assert any("position 2" in note for note in refused.value.__notes__)


@pytest.mark.conformance(15)
@pytest.mark.parametrize("kind", ["with.dot", "with:colon", "with/slash", "with[brackets]", "with<angles>", "a+b-c_d"])
def test_a_good_kind_is_stored(client: Client, stored: Stored, kind: str) -> None:
    assert stored(client.enqueue(None, {}, kind=kind)).kind == kind


@pytest.mark.conformance(15)
@pytest.mark.parametrize("kind", ["with space", "with,comma", ":leading", "trailing\n", "a" * 129, "a"])
def test_a_bad_kind_is_refused_before_anything_is_sent(client: Client, refuses: Callable[..., None], kind: str) -> None:
    refuses(InvalidKind, lambda tx: client.enqueue(tx, {}, kind=kind))
    refuses(InvalidKind, lambda tx: client.enqueue(tx, Greet(), kind=kind))


@pytest.mark.conformance(21)
@pytest.mark.parametrize("kind", ["", None])
def test_a_job_without_a_kind_is_refused_with_an_error_of_its_own(
    client: Client, refuses: Callable[..., None], kind: Any
) -> None:
    refuses(InvalidKind, lambda tx: client.enqueue(tx, {"n": 1}, kind=kind))
    assert issubclass(InvalidKind, ValueError)


@pytest.mark.conformance(17, 24)
@pytest.mark.parametrize("priority", [99, -5, -32768, 32767])
def test_any_smallint_is_a_priority(client: Client, stored: Stored, priority: int) -> None:
    assert stored(client.enqueue(None, Greet(), priority=priority)).priority == priority


@pytest.mark.conformance(18, 24)
def test_an_instant_is_kept_to_the_microsecond(client: Client, sql: Rows, stored: Stored) -> None:
    when = datetime.now(UTC).replace(microsecond=123457) + 2 * MINUTES
    job = client.enqueue(None, Greet(), scheduled_at=when)
    assert job.scheduled_at == stored(job).scheduled_at == when
    assert sql("SELECT scheduled_at FROM pgjobs.job") == [(when,)]
    assert job.state == JobState.SCHEDULED


@pytest.mark.conformance(20)
def test_a_queue_is_kept_by_its_name(client: Client, stored: Stored) -> None:
    assert stored(client.enqueue(None, Greet(), queue="emails/eu:west.1")).queue == "emails/eu:west.1"


@pytest.mark.conformance(24)
def test_all_options_of_one_call_come_back_as_set(client: Client, stored: Stored) -> None:
    when = datetime.now(UTC) + 60 * MINUTES
    job = stored(
        client.enqueue(
            None,
            Greet(),
            queue="emails",
            priority=-5,
            scheduled_at=when,
            max_attempts=10,
            tags=["one-tag"],
            metadata={"trace": ["a", 1]},
        )
    )
    assert (job.queue, job.priority, job.scheduled_at, job.max_attempts) == ("emails", -5, when, 10)
    assert (job.tags, job.metadata["trace"]) == (("one-tag",), ["a", 1])


@pytest.mark.conformance(26)
@pytest.mark.parametrize("max_attempts", [0, -1, 32768])
def test_a_number_of_attempts_that_makes_no_sense_is_refused_before_anything_is_sent(
    client: Client, refuses: Callable[..., None], max_attempts: int
) -> None:
    refuses(InvalidOption, lambda tx: client.enqueue(tx, Greet(), max_attempts=max_attempts))


@pytest.mark.conformance(27)
def test_a_job_in_place_of_its_args_is_refused_and_the_message_says_what_to_give(client: Client) -> None:
    """It was refused for a field of Job that JSON cannot hold."""
    done: Any = client.enqueue(None, Greet("again"))
    for again in (done, NewJob(done)):
        with pytest.raises(InvalidArgs, match=rf"^job {done.id} is in the table already: .*job.args"):
            client.enqueue(None, again)
    with pytest.raises(InvalidArgs, match=r"position 1 .* is in the table already"):
        client.enqueue_many(None, [Greet(), done])
    with pytest.raises(InvalidArgs, match="another NewJob"):
        client.enqueue(None, NewJob(NewJob(Greet())))
    assert client.enqueue(None, done.args, kind=done.kind).args == Greet("again")


@pytest.mark.conformance(27)
@pytest.mark.parametrize(
    "job", ["text", b"bytes", 5, 1.5, None, True, do_nothing, Greet, [Greet()], {1, 2}, object()], ids=shown
)
def test_what_is_no_job_is_refused_with_one_error(client: Client, refuses: Callable[..., None], job: Any) -> None:
    refuses(InvalidJob, lambda tx: client.enqueue(tx, job))
    refuses(InvalidJob, lambda tx: client.enqueue_many(tx, [job]))


@pytest.mark.conformance(28)
def test_jobs_of_one_class_and_of_several_run_once_each_under_their_own_kind(client: Client) -> None:
    ran: list[Any] = []

    def note(tx: psycopg.Connection[Any], job: Job[Any]) -> None:
        ran.append((job.kind, job.args))

    client.enqueue_many(None, [Greet("a"), Greet("b"), NewJob(Greet("c"), kind="custom.greet")])
    client.enqueue_many(None, [Report(1), Greet("d")])
    pool = WorkerPool(client, {Greet: note, "custom.greet": note, Report: note})
    while pool.work_one():
        pass
    assert ran == [
        ("greet", Greet("a")),
        ("greet", Greet("b")),
        ("custom.greet", {"name": "c", "times": 1}),
        ("report", Report(1)),
        ("greet", Greet("d")),
    ]


@pytest.mark.conformance(29)
def test_the_kind_comes_from_the_class_unless_the_class_names_one(client: Client, stored: Stored) -> None:
    @dataclass
    class Named:
        kind: ClassVar[str] = "custom.job.type"

    assert stored(client.enqueue(None, Greet())).kind == "greet"
    assert stored(client.enqueue(None, Named())).kind == "custom.job.type"
    assert client.enqueue(None, Greet(), kind="called.otherwise").kind == "called.otherwise"


@pytest.mark.conformance(29)
def test_the_full_path_of_the_class_is_kept_for_the_reader(client: Client, stored: Stored) -> None:
    assert stored(client.enqueue(None, Greet())).metadata == {"class": f"{__name__}.Greet"}
    own = client.enqueue(None, Greet(), metadata={"class": "mine", "more": 1})
    assert stored(own).metadata == {"class": "mine", "more": 1}


# --- options for all jobs of a call


@dataclass
@job_options(queue="of.class", priority=5, tags=["class"])
class Defaulted:
    n: int = 0


@pytest.mark.finding("E10")
@pytest.mark.parametrize("returning", [True, False])
@pytest.mark.parametrize("size", [1, 40])
def test_options_of_the_call_hold_for_all_and_the_nearest_wins(
    client: Client, sql: Rows, size: int, returning: Any
) -> None:
    """`enqueue_many` took no options, so that each job had to be a NewJob."""
    near = NewJob(Defaulted(), queue="of.job", delay=timedelta(0))
    jobs: list[Any] = [*[Defaulted() for _ in range(size)], near, Greet()]
    options: Any = {"queue": "of.call", "metadata": {"batch": 7}, "delay": timedelta(hours=1), "max_attempts": 3}
    client.enqueue_many(None, jobs, returning=returning, **options)
    rows = sql(
        "SELECT queue::text, priority, max_attempts, tags::text[], metadata ->> 'batch', state::text"
        " FROM pgjobs.job ORDER BY id"
    )
    assert sorted(rows) == [
        ("of.call", 0, 3, [], "7", "scheduled"),
        *[("of.call", 5, 3, ["class"], "7", "scheduled")] * size,
        ("of.job", 5, 3, ["class"], "7", "available"),
    ]
    assert client.enqueue(None, Defaulted()).queue == "of.class", "it does not outlive the call"


@pytest.mark.finding("E10")
def test_options_of_the_call_are_checked_before_anything_is_sent(client: Client, refuses: Callable[..., None]) -> None:
    """As those of one job."""
    wrong: Any
    for wrong in ({"prio": 1}, {"priority": "x"}, {"delay": timedelta(1), "scheduled_at": datetime.now(UTC)}):
        refuses(InvalidOption, lambda tx, wrong=wrong: client.enqueue_many(tx, [Greet()], **wrong))


@pytest.mark.finding("E7")
def test_the_position_of_a_bad_job_stands_in_the_message(client: Client) -> None:
    """It was a note, which most logs leave out."""
    with pytest.raises(InvalidArgs, match=r"^at position 2 of the jobs to enqueue: .*'no job'"):
        client.enqueue_many(None, [Greet(), Greet(), "no job"])
    with pytest.raises(UnknownKind, match=r"at position 1 of the jobs to enqueue.*greet"):
        Client(client.pool, schema=client.schema, work_map={"other": print}).enqueue_many(
            None, [NewJob({}, kind="other"), Greet()]
        )


def test_a_kind_for_all_jobs_of_a_call_is_refused_and_the_message_says_where_it_goes(client: Client) -> None:
    call: Any = client.enqueue_many
    with pytest.raises(InvalidOption, match=r"NewJob\(args, kind='report'\)"):
        call(None, [{"a": 1}], kind="report")


@pytest.mark.conformance(31)
@pytest.mark.parametrize("context", [5, "text", ["a"], [("user", 7)]], ids=shown)
def test_a_context_that_is_no_mapping_is_refused_wherever_it_comes_from(client: Client, context: Any) -> None:
    """That of the client's function was stored, and the handler saw none."""
    with pytest.raises(InvalidOption, match="context"):
        client.enqueue(None, Greet(), context=context)
    computing = Client(client.pool, schema=client.schema, context=lambda: context)
    with pytest.raises(InvalidOption, match=r"context function .* must return a mapping or None"):
        computing.enqueue(None, Greet())
    with pytest.raises(InvalidOption, match="context function"):
        computing.enqueue_many(None, [Greet()])
