"""What a job gives as its args, wherever it comes from; and the one class that a kind has."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from pgjobs import (
    Client,
    DuplicateHandler,
    Hooks,
    InvalidHandler,
    InvalidKind,
    Job,
    JobFilter,
    NewJob,
    Schedule,
    UndecodableArgs,
    Unique,
    WorkerPool,
    WorkMap,
    decode_args,
)
from tests.conftest import Connect

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@dataclass
class Report:
    of: datetime
    pages: list[int] = field(default_factory=list)


@dataclass
class Other:
    n: int = 0


def nothing(tx: Any, job: Any) -> None: ...


@pytest.fixture
def decoding(client: Client) -> Client:
    """A client on the same tables that knows which class each kind has."""
    return Client(client.pool, schema=client.schema, work_map=WorkMap({Report: nothing, "plain": nothing}))


# --- W13


@pytest.mark.finding("W13")
@pytest.mark.parametrize("hooks", [[], [Hooks()]], ids=["", "hooks"])
@pytest.mark.parametrize("own", [True, False], ids=["own transaction", "borrowed"])
def test_enqueue_gives_back_the_instance_that_it_was_given(
    client: Client, connect: Connect, own: bool, hooks: list[Hooks]
) -> None:
    """`enqueue` said Job[Report] and gave its args as a dict."""
    enqueuing, tx = Client(client.pool, schema=client.schema, hooks=hooks), None if own else connect()
    given: list[Any] = [Report(NOON), NewJob(Report(NOON), priority=1), NewJob(Report(NOON), delay=timedelta(hours=1))]
    for new in given:
        args = new.args if isinstance(new, NewJob) else new
        assert enqueuing.enqueue(tx, new).args is args
        assert enqueuing.enqueue(tx, new).args is args, "also when the class is known"
    payload = {"a": [1]}
    assert enqueuing.enqueue(tx, payload, kind="plain").args is payload
    unique = enqueuing.enqueue(tx, given[0], unique=Unique(by_args=True))
    assert unique.args is given[0]


@pytest.mark.finding("W13")
@pytest.mark.parametrize("size", [1, 3, 40])
def test_enqueue_many_gives_back_the_instances_in_their_order(client: Client, size: int) -> None:
    """The same for many, by statements and by COPY."""
    given = [Report(NOON, [n]) for n in range(size)]
    assert [id(job.args) for job in client.enqueue_many(None, given)] == list(map(id, given))


@pytest.mark.finding("W13")
def test_a_duplicate_gives_the_args_that_are_stored_as_an_instance(client: Client) -> None:
    """A duplicate gave its args as a dict."""
    only = Unique()
    first = client.enqueue(None, Report(NOON, [1]), unique=only)
    duplicate = client.enqueue(None, Report(NOON, [2]), unique=only)
    assert duplicate.duplicate
    assert (duplicate.id, duplicate.args) == (first.id, Report(NOON, [1]))
    batch = client.enqueue_many(None, [NewJob(Report(NOON, [n]), unique=only) for n in (3, 4)])
    assert [job.args for job in batch] == [Report(NOON, [1])] * 2
    replaced = client.enqueue(None, Report(NOON, [5]), unique=only, replace=True)
    assert replaced.args == Report(NOON, [5])


@pytest.mark.finding("W13")
def test_a_duplicate_of_another_kind_is_none_of_this_class(client: Client) -> None:
    """With exclude_kind the duplicate may be of another class, whose args must not be read as this one's."""
    unique = Unique(by_queue=True, exclude_kind=True)
    client.enqueue(None, Report(NOON), unique=unique)
    job: Job[Any] = client.enqueue(None, Other(1), unique=unique)
    assert job.args == {"of": NOON.isoformat(), "pages": []}


@pytest.mark.finding("W13")
def test_middleware_that_changes_args_is_believed(client: Client) -> None:
    """What middleware has put in their place is what the job's args are, still as an instance of the class."""

    def other_args(tx: Any, jobs: Any, insert: Any) -> Any:
        return insert([replace(job, args='{"n": 7}', priority=3) for job in jobs])

    def other_priority(tx: Any, jobs: Any, insert: Any) -> Any:
        return insert([replace(job, priority=4) for job in jobs])

    for middleware, same in ((other_args, False), (other_priority, True)):
        changing = Client(client.pool, schema=client.schema, middleware=[middleware])
        args = Other(1)
        job = changing.enqueue(None, args)
        assert (job.args is args) is same
        assert job.args == (args if same else Other(7))


@pytest.mark.finding("W13")
def test_wherever_a_job_comes_from_its_args_are_of_the_class_in_the_work_map(client: Client, decoding: Client) -> None:
    """`get` and `list` gave dicts, also where the client has a WorkMap that says which class it is."""
    args = Report(NOON, [1, 2])
    ids = [client.enqueue(None, args, pending=n == 0).id for n in range(8)]
    some = JobFilter(ids=ids)
    looks: list[Callable[[], Job[Any] | None]] = [
        lambda: decoding.get(ids[0]),
        lambda: decoding.list_jobs(some).jobs[-1],
        lambda: decoding.release(ids[0]),
        lambda: decoding.update(ids[1], priority=2),
        lambda: decoding.update(ids[1]),
        lambda: decoding.update_many(some, priority=3).done[0],
        lambda: decoding.retry(ids[1]),
        lambda: decoding.retry_many(some).done[-1],
        lambda: decoding.cancel(ids[2]),
        lambda: decoding.cancel_many(some, limit=1).done[0],
        lambda: decoding.wait(ids[2]),
        lambda: decoding.delete(ids[2]),
        lambda: decoding.delete_many(JobFilter(ids=ids[3:5])).done[0],
    ]
    for look in looks:
        job = look()
        assert job is not None
        assert job.args == args
    with decoding.lock_job(id=ids[6]) as (_, locked):
        assert locked is not None
        assert locked.args == args
    without = client.get(ids[7])
    assert without is not None
    assert without.args == {"of": NOON.isoformat(), "pages": [1, 2]}, "nothing says which class it is"
    assert decoding.get(client.enqueue(None, {"a": 1}, kind="plain").id).args == {"a": 1}  # type: ignore[union-attr]
    assert decoding.get(client.enqueue(None, Other(3)).id).args == {"n": 3}  # type: ignore[union-attr]


@pytest.mark.finding("W13")
def test_a_job_whose_args_do_not_fit_is_listed_all_the_same(client: Client, decoding: Client) -> None:
    """Only its args cannot be had; its JSON text can."""
    odd = client.enqueue(None, {"pages": "many"}, kind="report")
    (job,) = decoding.list_jobs().jobs
    assert job.id == odd.id
    with pytest.raises(UndecodableArgs, match=r"Report.*\$\.of"):
        _ = job.args
    assert job.raw_args == '{"pages": "many"}'


@pytest.mark.finding("W13")
def test_hooks_and_events_give_the_args_as_the_handler_has_them(client: Client) -> None:
    """What is told of a job tells its args as an instance."""
    told: dict[str, Any] = {}

    class Told(Hooks):
        def on_enqueue(self, job: Job[Any]) -> None:
            told["enqueue"] = job.args

        def on_claim(self, job: Job[Any] | None, error: BaseException | None) -> None:
            if job is not None:
                told["claim"] = job.args

        def on_finish(self, job: Job[Any], error: BaseException | None) -> None:
            told["finish"] = job.args

    telling = Client(client.pool, schema=client.schema, hooks=[Told()])
    args = Report(NOON)
    job = telling.enqueue(None, args)
    with telling.subscribe() as events:
        assert WorkerPool(telling, {Report: nothing}).work_one()
        event = events.get(timedelta(0))
    assert event is not None
    assert told == dict.fromkeys(("enqueue", "claim", "finish"), args)
    assert event.job.args == args
    done = telling.wait(job)
    assert done.args == args, "the job that was waited for says of which class it is"


@pytest.mark.finding("W13")
def test_decode_args_takes_text_a_dict_and_what_is_decoded_already() -> None:
    """`decode_args(Report, job.args)` of a dict was an AttributeError."""
    args, tree = Report(NOON, [1]), {"of": NOON.isoformat(), "pages": [1]}
    assert decode_args(Report, '{"of": "2026-05-01T12:00:00+00:00", "pages": [1]}') == args
    assert decode_args(Report, tree) == args
    assert decode_args(Report, args) is args
    assert decode_args(dict, '{"a": 1}') == {"a": 1}
    odd: Any
    for odd in (b"{}", 5, None, [], {"of": 5}, {"of": object()}, Other()):
        with pytest.raises(UndecodableArgs, match="Report"):
            decode_args(Report, odd)


# --- W11


def class_called_created(module: str, **fields: Any) -> type[Any]:
    """A dataclass Created of some module."""
    made: Any = dataclass(
        type("Created", (), {"__annotations__": {name: type(value) for name, value in fields.items()}})
    )
    made.__module__ = module
    found: type[Any] = made
    return found


MAIL, BILLING = class_called_created("app.mail", n=1), class_called_created("app.billing", n=1)


def assert_names_both(message: str) -> None:
    assert "app.mail.Created" in message
    assert "app.billing.Created" in message
    assert "kind: ClassVar[str] = 'billing.created'" in message


@pytest.mark.finding("W11")
def test_a_second_class_of_a_kind_is_refused_by_a_client(client: Client) -> None:
    """Two classes of one name share a kind, and the handler of one ran with the args of the other."""
    client.enqueue(None, MAIL(1))
    schedule = Schedule("x", "@daily", BILLING(1))
    for act in (
        lambda: client.enqueue(None, BILLING(1)),
        lambda: client.enqueue(None, NewJob(BILLING(1), priority=1)),
        lambda: client.enqueue_many(None, [MAIL(1), BILLING(1)]),
        lambda: client.enqueue_many(None, [BILLING(1)], returning=False),
        lambda: client.schedules.add(schedule),
    ):
        with pytest.raises(InvalidKind) as refused:
            act()
        assert_names_both(str(refused.value))
    assert client.enqueue(None, MAIL(2)).args == MAIL(2)
    assert client.enqueue(None, BILLING(1), kind="billing.created").kind == "billing.created"
    assert client.enqueue(None, {"n": 1}, kind="created").kind == "created", "a dict is of no class"


@pytest.mark.finding("W11")
def test_a_second_class_of_a_kind_is_refused_by_a_work_map() -> None:
    """The error names both classes and the cure."""
    work_map = WorkMap({MAIL: nothing})
    with pytest.raises(DuplicateHandler) as refused:
        work_map[BILLING] = nothing
    assert_names_both(str(refused.value))
    assert list(work_map) == ["created"]


@pytest.mark.finding("W11")
def test_a_class_of_another_handler_is_refused_by_client_and_worker_pool(client: Client) -> None:
    """A class whose kind is handled as another class cannot be enqueued where that is known."""
    with pytest.raises(InvalidKind) as refused:
        Client(client.pool, schema=client.schema, work_map={MAIL: nothing}).enqueue(None, BILLING(1))
    assert_names_both(str(refused.value))
    WorkerPool(client, {MAIL: nothing})
    with pytest.raises(InvalidKind) as refused:
        client.enqueue(None, BILLING(1))
    assert_names_both(str(refused.value))
    with pytest.raises(InvalidHandler, match=r"app\.mail\.Created.*app\.billing\.Created"):
        WorkerPool(client, {BILLING: nothing})


@pytest.mark.finding("W11")
def test_a_class_that_a_handler_gets_later_is_seen(client: Client) -> None:
    """Also when its first job was enqueued before the map said otherwise."""
    work_map = WorkMap({MAIL: nothing})
    working = Client(client.pool, schema=client.schema, work_map=work_map)
    working.enqueue(None, MAIL(1))
    del work_map[MAIL]
    work_map[BILLING] = nothing
    with pytest.raises(InvalidKind, match=r"app\.billing\.Created.*app\.mail\.Created"):
        working.enqueue(None, MAIL(1))


@pytest.mark.finding("W11")
def test_the_same_class_made_anew_takes_the_place_of_the_former(client: Client) -> None:
    """A reload, a cell of a notebook that runs again, a class inside of a test function."""

    def make() -> type[Any]:
        @dataclass
        class Local:
            n: int = 0

        return Local

    first, second = make(), make()
    assert first is not second
    work_map = WorkMap({first: nothing})
    working = Client(client.pool, schema=client.schema, work_map=work_map)
    assert working.enqueue(None, first(1)).args == first(1)
    seen: list[Any] = []
    work_map[second] = lambda tx, job: seen.append(job.args)
    assert working.enqueue(None, second(2)).args == second(2)
    with pytest.raises(DuplicateHandler, match="has a handler already"):
        work_map[second] = nothing
    pool = WorkerPool(working, work_map)
    assert pool.work_one()
    assert pool.work_one()
    assert seen == [second(1), second(2)]


@pytest.mark.finding("W11")
def test_the_module_that_a_process_begins_with_is_the_one_that_is_imported(
    client: Client, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`__main__.Created` of app.py and `app.Created` are one class, also when nothing has imported app yet."""
    (tmp_path / "app.py").write_text(
        f"""
from dataclasses import dataclass
from pgjobs import Client, WorkMap

@dataclass
class Created:
    n: int = 0

if __name__ == "__main__":
    client = Client({database!r}, schema={client.schema!r})
    client.enqueue(None, Created(1))
    import app
    assert app.Created is not Created
    client.enqueue(None, app.Created(2))
    WorkMap({{Created: print}})[app.Created] = print
    client.close()
"""
    )
    for command in (["app.py"], ["-m", "app"]):
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.finding("W11")
def test_a_module_that_is_loaded_again_changes_nothing(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """importlib.reload makes new classes of the same names."""
    (tmp_path / "reloaded_args.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Created:\n    n: int = 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("reloaded_args")
    before = module.Created
    client.enqueue(None, before(1))
    assert importlib.reload(module).Created is not before
    assert client.enqueue(None, module.Created(2)).args.n == 2


@dataclass
class Named:
    kind: ClassVar[str] = "report"
    n: int = 0


@pytest.mark.finding("W11")
def test_a_kind_that_a_class_names_is_held_to_the_same(client: Client) -> None:
    """It does not matter whether the kind was made of the class's name, or is said."""
    client.enqueue(None, Report(NOON))
    with pytest.raises(InvalidKind, match=r"Report.*Named"):
        client.enqueue(None, Named())
