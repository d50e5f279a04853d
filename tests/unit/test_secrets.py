"""Secret fields of args: hidden wherever pgjobs shows args, and stored as they are."""

from __future__ import annotations

import json
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Any

import pytest
from dataclasses_json import CatchAll, DataClassJsonMixin, LetterCase, Undefined, config, dataclass_json

from pgjobs import Client, InvalidArgs, JobOptions, NewJob, PgjobsError, UndecodableArgs, WorkMap, codec
from pgjobs.enqueuing.encoder import Encoder
from pgjobs.errors import shown
from pgjobs.work_map import shown_args
from tests.unit.samples import a_job

PASSWORD = "hunter2"
SECRET = {"secret": True}


@dataclass
class Login:
    user: str
    password: str | None = field(default=None, metadata=SECRET)


@dataclass(frozen=True)
class Key:
    name: str
    value: str = field(metadata=SECRET)


@dataclass
class Plain:
    name: str


@dataclass
class Tree:
    login: Login
    children: list[Tree] = field(default_factory=list)


@dataclass
class Everything:
    one: Login
    maybe: Login | None
    many: list[Login]
    named: dict[str, Login]
    pair: tuple[int, Login]
    any: tuple[Login, ...]
    either: Plain | Login
    keys: set[Key] = field(default_factory=set)


@dataclass
class Whole:
    tokens: dict[str, str] = field(metadata=SECRET)
    login: Login = field(metadata=SECRET)
    public: int = 1


@dataclass_json(letter_case=LetterCase.CAMEL)  # type: ignore[call-overload]
@dataclass
class Camel:
    api_key: str = field(metadata=SECRET)
    user_name: str = ""


@dataclass_json(undefined=Undefined.INCLUDE)
@dataclass
class Open:
    password: str = field(metadata=SECRET)
    rest: CatchAll = field(default_factory=dict)  # type: ignore[type-arg]


@dataclass_json(undefined=Undefined.INCLUDE)
@dataclass
class Closed:
    name: str
    rest: CatchAll = field(default_factory=dict, metadata=SECRET)  # type: ignore[type-arg]


@dataclass
class Own(DataClassJsonMixin):
    password: str = field(metadata=SECRET)

    def to_dict(self, encode_json: bool = False) -> dict[str, Any]:
        return {"p": self.password}

    @classmethod
    def from_dict(cls, kvs: Any, *, infer_missing: bool = False) -> Own:
        return cls(kvs["p"])


@dataclass
class Coded:
    born: date = field(metadata={**config(encoder=date.isoformat, decoder=date.fromisoformat), "secret": True})


def _pair(login: Login) -> list[Any]:
    return [login.user, login.password]


@dataclass
class Encoded:
    login: Login = field(metadata=config(encoder=_pair, decoder=lambda raw: Login(*raw)))
    many: list[Login] = field(
        default_factory=list,
        metadata=config(encoder=lambda many: [*map(_pair, many)], decoder=lambda raw: [Login(*pair) for pair in raw]),
    )
    born: date = field(default=date(2000, 1, 1), metadata=config(encoder=date.isoformat, decoder=date.fromisoformat))


@dataclass
class Wrapped(DataClassJsonMixin):
    """Its secret is further inside."""

    login: Login

    def to_dict(self, encode_json: bool = False) -> dict[str, Any]:
        return {"p": self.login.password}

    @classmethod
    def from_dict(cls, kvs: Any, *, infer_missing: bool = False) -> Wrapped:
        return cls(Login("ada", kvs["p"]))


@dataclass
class Pairs:
    ordered: OrderedDict[str, Login]
    trees: list[Tree]


@dataclass
class Loose:
    value: Any = field(default=None, metadata=SECRET)
    at: datetime = field(default=datetime(2026, 1, 1, tzinfo=UTC), metadata=SECRET)


LOGIN = Login("ada", PASSWORD)
HIDDEN = {"user": "ada", "password": "[secret]"}


# --- in JSON


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (LOGIN, HIDDEN),
        (Login("ada"), {"user": "ada", "password": None}),
        (Tree(LOGIN, [Tree(LOGIN)]), {"login": HIDDEN, "children": [{"login": HIDDEN, "children": []}]}),
        (
            Everything(LOGIN, LOGIN, [LOGIN], {"a": LOGIN}, (1, LOGIN), (LOGIN, LOGIN), LOGIN, {Key("k", PASSWORD)}),
            {
                "one": HIDDEN,
                "maybe": HIDDEN,
                "many": [HIDDEN],
                "named": {"a": HIDDEN},
                "pair": [1, HIDDEN],
                "any": [HIDDEN, HIDDEN],
                "either": HIDDEN,
                "keys": [{"name": "k", "value": "[secret]"}],
            },
        ),
        (Whole({"a": PASSWORD}, LOGIN), {"tokens": "[secret]", "login": "[secret]", "public": 1}),
        (Camel(PASSWORD, "ada"), {"apiKey": "[secret]", "userName": "ada"}),
        (Open(password=PASSWORD, rest={"a": "kept"}), {"password": "[secret]", "a": "kept"}),
        (Closed(name="ada", rest={"a": PASSWORD}), {"name": "ada", "a": "[secret]"}),
        (Own(PASSWORD), "[secret]"),
        (Coded(date(2000, 1, 1)), {"born": "[secret]"}),
        (Encoded(LOGIN, [LOGIN]), {"login": "[secret]", "many": "[secret]", "born": "2000-01-01"}),
        (Wrapped(LOGIN), "[secret]"),
        (
            Pairs(OrderedDict(a=LOGIN), [Tree(LOGIN)]),
            {"ordered": [["a", HIDDEN]], "trees": [{"login": HIDDEN, "children": []}]},
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_values_of_secret_fields_are_hidden_and_nothing_else(args: Any, expected: object) -> None:
    stored = codec.encode(args)
    assert codec.decode(type(args), stored) == args
    assert json.loads(codec.redacted(type(args), stored)) == expected


@dataclass
class Shown:
    names: list[str]
    plain: dict[str, Plain]
    pair: tuple[int, Plain]
    either: Plain | list[int]
    coded: Plain = field(metadata=config(encoder=lambda plain: [plain.name], decoder=lambda raw: Plain(*raw)))
    itself: Shown | None = None


def test_json_of_a_class_without_a_secret_is_shown_whatever_its_form_is() -> None:
    raw = '{"names": {"a": 1}, "plain": [1], "pair": {}, "either": "x", "coded": 5, "itself": [1], "more": 1}'
    assert codec.redacted(Shown, raw) == raw


def test_json_without_a_secret_is_shown_as_it_is() -> None:
    raw = '{"name":  "ada", "unknown": 1e22}'
    assert codec.redacted(Plain, raw) == raw


@pytest.mark.parametrize(
    ("cls", "raw"),
    [
        (Login, {"user": "ada", "pwd": PASSWORD}),  # the name that the field had in older code
        (Tree, {"login": PASSWORD}),
        (Tree, {"login": [PASSWORD]}),
        (Login, {"user": "ada", "password": {"text": PASSWORD}}),
        (Everything, {"either": {"user": 5, "password": PASSWORD}}),
        (Own, {"p": PASSWORD}),
        (Everything, {"many": {"user": "ada", "password": PASSWORD}}),
        (Everything, {"any": {"user": "ada", "password": PASSWORD}}),
        (Everything, {"named": [{"user": "ada", "password": PASSWORD}]}),
        (Everything, {"named": PASSWORD}),
        (Everything, {"maybe": [{"user": "ada", "password": PASSWORD}]}),
        (Everything, {"either": [{"user": "ada", "password": PASSWORD}]}),
        (Everything, {"keys": PASSWORD}),
        (Everything, {"pair": {"user": "ada", "password": PASSWORD}}),
        (Everything, {"pair": [{"user": "ada", "password": PASSWORD}, 1]}),
        (Everything, {"pair": [1, {}, {"user": "ada", "password": PASSWORD}]}),
        (Everything, {"other": [{"user": "ada", "password": PASSWORD}]}),
        (Tree, {"logins": [{"user": "ada", "password": PASSWORD}]}),
        (Tree, {"children": [[PASSWORD]]}),
        (Pairs, {"ordered": {"a": {"user": "ada", "password": PASSWORD}}}),
        (Pairs, {"ordered": [{"a": {"user": "ada", "password": PASSWORD}}]}),
        (Pairs, {"trees": {"login": PASSWORD}}),
        (Encoded, {"login": {"user": "ada", "password": PASSWORD}}),
    ],
)
def test_json_that_does_not_fit_its_class_is_hidden_where_it_may_be_secret(cls: type, raw: dict[str, Any]) -> None:
    redacted = codec.redacted(cls, json.dumps(raw))
    assert PASSWORD not in redacted
    assert "[secret]" in redacted


@pytest.mark.parametrize("raw", ["", "{", '{"password": 1e400}', "[" * 100_000])
def test_json_that_python_cannot_read_is_hidden_whole(raw: str) -> None:
    assert codec.redacted(Login, raw) == '"[secret]"'


def test_the_work_map_knows_the_class_of_a_kind() -> None:
    raw = codec.encode(LOGIN)
    work_map = WorkMap({Login: print, "by.name": print})
    assert json.loads(shown_args(work_map, "login", raw)) == HIDDEN
    for known, kind in ((work_map, "by.name"), (work_map, "other"), (None, "login")):
        assert shown_args(known, kind, raw) == raw


# --- in errors


def text_of(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("args", "path"),
    [
        (Login("ada", PASSWORD + "\0"), "$.password"),
        (Login("ada", PASSWORD + "\ud800"), "$.password"),
        (Login("ada", PASSWORD * 200_000), "$.password"),
        (Login("ada", [PASSWORD]), "$.password"),  # type: ignore[arg-type]
        (Whole({PASSWORD: 5}, LOGIN), "$.tokens"),  # type: ignore[dict-item]
        (Whole({PASSWORD: PASSWORD + "\0"}, LOGIN), "$.tokens"),
        (Whole({}, Login(PASSWORD, 5)), "$.login"),  # type: ignore[arg-type]
        (Tree(LOGIN, [Tree(Login("ada", PASSWORD + "\0"))]), "$.children[0].login.password"),
        (Closed(name="ada", rest={PASSWORD: {PASSWORD}}), "$.rest"),
        (Coded(PASSWORD), "$.born"),  # type: ignore[arg-type]
        (Loose({PASSWORD}), "$.value"),
        (Loose(LOGIN), "$.value"),
        (Loose({"a": object(), "b": PASSWORD}), "$.value"),
        (Loose(1, datetime(2026, 12, 24)), "$.at"),
        (Encoded(Login("ada", {PASSWORD})), "$.login"),  # type: ignore[arg-type]
        (Encoded(Login("ada", PASSWORD + "\0")), "$.login"),
    ],
)
def test_args_that_cannot_be_stored_are_refused_without_the_secret(args: Any, path: str) -> None:
    with pytest.raises(InvalidArgs) as refused:
        codec.encode(args)
    text = text_of(refused.value)
    assert f"args cannot be stored: {path}: " in text
    assert PASSWORD not in text
    assert "12-24" not in text


def test_another_field_is_named_with_its_value() -> None:
    with pytest.raises(InvalidArgs, match=r"\$\.user: str 'ada\\x00' holds the character NUL"):
        codec.encode(Login("ada\0", PASSWORD))
    with pytest.raises(InvalidArgs, match=r"\$\.login\.user: expected str, found int 5"):
        codec.encode(Tree(Login(5)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (Tree(Plain("x"), [LOGIN]), "expected Login, found Plain Plain(name='x')"),  # type: ignore[arg-type,list-item]
        (Plain(LOGIN), "found Login Login(user='ada', password=[secret])"),  # type: ignore[arg-type]
        (Plain([LOGIN]), "found list [Login(user='ada', password=[secret])]"),  # type: ignore[arg-type]
    ],
)
def test_an_object_in_the_wrong_place_is_shown_without_its_secrets(args: Any, problem: str) -> None:
    with pytest.raises(InvalidArgs) as refused:
        codec.encode(args)
    assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("cls", "raw", "path"),
    [
        (Login, {"user": "ada", "password": [PASSWORD]}, "$.password"),
        (Whole, {"tokens": {PASSWORD: 5}, "login": {}}, "$.tokens"),
        (Coded, {"born": PASSWORD}, "$.born"),
    ],
)
def test_stored_args_that_do_not_fit_are_refused_without_the_secret(cls: type, raw: dict[str, Any], path: str) -> None:
    """The text stands in the errors of the job, with its traceback."""
    with pytest.raises(UndecodableArgs) as refused:
        codec.decode(cls, json.dumps(raw))
    assert f"args do not fit {cls.__qualname__}: {path}: " in str(refused.value)
    assert PASSWORD not in text_of(refused.value)


CALLS: dict[str, Callable[[Client], object]] = {
    "swapped": lambda client: client.enqueue(LOGIN, LOGIN),  # type: ignore[call-overload]
    "one for many": lambda client: client.enqueue_many(None, LOGIN),  # type: ignore[call-overload]
    "a list for one": lambda client: client.enqueue(None, [LOGIN]),
    "in a dict": lambda client: client.enqueue(None, {"login": LOGIN}, kind="x1"),
    "as an option": lambda client: client.enqueue(None, LOGIN, tags=[LOGIN]),  # type: ignore[list-item]
    "as a setting": lambda client: client.wait(1, timeout=LOGIN),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_refused_without_the_secret(call: str) -> None:
    with Client("postgresql://nowhere.invalid/none") as client, pytest.raises(PgjobsError) as refused:
        CALLS[call](client)
    assert "[secret]" in str(refused.value)
    assert PASSWORD not in str(refused.value)


# --- in a repr


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (LOGIN, "Login(user='ada', password=[secret])"),
        ([LOGIN, 1], "[Login(user='ada', password=[secret]), 1]"),
        ((LOGIN,), "(Login(user='ada', password=[secret]))"),
        ({"a": {"b": LOGIN}}, "{'a': {'b': Login(user='ada', password=[secret])}}"),
        ({Key("k", PASSWORD): 1}, "{Key(name='k', value=[secret]): 1}"),
        ({Key("k", PASSWORD)}, "{Key(name='k', value=[secret])}"),
        (NewJob(LOGIN), "NewJob(Login(...))"),
        (Plain("x"), "test_secrets.Plain(name='x')"),
    ],
)
def test_a_value_is_shown_without_its_secrets(value: object, expected: str) -> None:
    assert shown(value).endswith(expected.removeprefix("test_secrets."))


def test_what_is_far_inside_or_far_behind_is_not_shown() -> None:
    nested: Any = LOGIN
    for _ in range(200):
        nested = [nested]
    for value in (nested, [*range(100), LOGIN], [[], LOGIN] * 100):
        assert PASSWORD not in shown(value, 100_000)
    endless: list[Any] = [LOGIN]
    endless.append(endless)
    assert shown(endless).startswith("[Login(user='ada', password=[secret]), [Login(")


def test_jobs_show_no_args() -> None:
    job = a_job(raw_args=codec.encode(LOGIN), decode=lambda raw: codec.decode(Login, raw))
    assert job.args.password == PASSWORD
    assert PASSWORD not in repr(job) + repr(NewJob(LOGIN)) + repr([NewJob({"password": PASSWORD}, kind="x1")])


def test_what_middleware_of_enqueue_gets_shows_no_args() -> None:
    encoder = Encoder(defaults=JobOptions(queue="mail", priority=0, max_attempts=1), max_args_bytes=1000)
    encoded = encoder.encode(NewJob(LOGIN, metadata={"note": PASSWORD}))
    assert PASSWORD in encoded.args
    assert PASSWORD in encoded.metadata
    assert PASSWORD not in repr(encoded)
