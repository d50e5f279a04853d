"""The options of a job, and the checks of them. This file uses no database."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypedDict, TypeVar, Unpack

from pgjobs.errors import InvalidKind, InvalidOption, shown
from pgjobs.unique import Replaceable, Unique, checked_replace

Args = TypeVar("Args", covariant=True)  # noqa: PLC0105  users read NewJob[Args]
ArgsClass = TypeVar("ArgsClass", bound=type)

# The characters that River allows in a kind; only ASCII, so that no two kinds look alike.
_KIND = re.compile(r"\w[\w\-\[\]<>/.·:+]+", re.ASCII)
_QUEUE = re.compile(r"\w[\w\-\[\]<>/.·:+]*", re.ASCII)
_TAG = re.compile(r"\w[\w\-]+\w", re.ASCII)
# The first and last instant that can be stored and then read in every time zone.
LAST_INSTANT = datetime(9999, 12, 30, tzinfo=UTC)
FIRST_INSTANT = datetime(1, 1, 3, tzinfo=UTC)
# The longest delay that ends in a year that both Python and Postgres can represent.
LONGEST_DELAY = timedelta(days=2_900_000)


@dataclass(frozen=True, kw_only=True, slots=True)
class JobOptions:
    """The options of one job. None leaves the decision to the next level: call, then args class, then client."""

    queue: str | None = None
    priority: int | None = None
    scheduled_at: datetime | None = None
    delay: timedelta | None = None
    max_attempts: int | None = None
    tags: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    unique: Unique | Literal[False] | None = None
    replace: bool | Collection[Replaceable] | None = None
    pending: bool | None = None

    def __post_init__(self) -> None:
        if self.queue is not None:
            check_queue(self.queue)
        _check_int("priority", self.priority, -32768, 32767)
        _check_int("max_attempts", self.max_attempts, 1, 32767)
        if self.scheduled_at is not None and self.delay is not None:
            raise InvalidOption("give scheduled_at or delay, not both")
        if self.scheduled_at is not None:
            _check_instant(self.scheduled_at)
        if self.delay is not None:
            _check_delay(self.delay)
        if self.tags is not None:
            _check_tags(self.tags)
        _check_type("metadata", self.metadata, Mapping, "a mapping")
        _check_type("context", self.context, Mapping, "a mapping")
        _check_type("unique", None if self.unique is False else self.unique, Unique, "Unique(...) or False")
        _check_type("pending", self.pending, bool, "True or False")
        if self.replace is not None:
            object.__setattr__(self, "replace", checked_replace(self.replace))

    def __repr__(self) -> str:
        return f"JobOptions({self.summary})"

    @property
    def summary(self) -> str:
        """The options that are set, for a repr: without metadata and context, whose values may be secret."""
        chosen = {name: getattr(self, name) for name in JobOptions.__slots__ if getattr(self, name) is not None}
        return ", ".join(
            f"{name}={'...' if name in ('metadata', 'context') else repr(value)}" for name, value in chosen.items()
        )

    def over(self, other: JobOptions) -> JobOptions:
        """These options, and those of `other` where they are None. `scheduled_at` and `delay` count as one option."""
        has_time = self.scheduled_at is not None or self.delay is not None
        joined = object.__new__(JobOptions)  # JobOptions(...) would check all values again
        for name in JobOptions.__slots__:
            value = getattr(self, name)
            if value is None and not (has_time and name in ("scheduled_at", "delay")):
                value = getattr(other, name)
            object.__setattr__(joined, name, value)
        return joined


@dataclass(frozen=True)
class EncodedJob:
    """A checked job that is about to be inserted, its args and metadata as JSON text."""

    kind: str
    queue: str
    priority: int
    max_attempts: int
    args: str = field(repr=False)  # it may be confidential, as metadata
    metadata: str = field(repr=False)
    tags: Sequence[str]
    scheduled_at: datetime | None
    delay: timedelta  # counts when scheduled_at is None
    unique: Unique | None = None  # with the names that the fields have in JSON
    replace: Sequence[str] = ()  # the columns to change in a duplicate that waits
    pending: bool = False
    decode: Callable[[str], Any] = field(default=json.loads, repr=False, compare=False)  # makes args of their JSON
    # The kind, the JSON of the args and the args of the call. Middleware may change the job; if it does not, the job
    # that comes back has these args. They are three fields and no tuple: the garbage collector would have to visit one
    # tuple more for each of a million jobs.
    original_kind: str = field(default="", repr=False, compare=False)
    original_json: str = field(default="", repr=False, compare=False)
    original_args: object = field(default=None, repr=False, compare=False)

    @property
    def has_original_args(self) -> bool:
        """Whether the job still has the kind and the args of the call."""
        return self.original_json is self.args and self.original_kind == self.kind

    def with_args(self, args: str, original_args: object) -> EncodedJob:
        """A copy with other args. `dataclasses.replace` takes ten times as long, too long for a million jobs."""
        job = object.__new__(EncodedJob)
        vars(job).update(vars(self), args=args, original_json=args, original_args=original_args)
        return job


class Options(TypedDict, total=False):
    """The keyword arguments that `enqueue`, `NewJob` and `@job_options` share."""

    queue: str | None
    priority: int | None
    scheduled_at: datetime | None
    delay: timedelta | None
    max_attempts: int | None
    tags: Sequence[str] | None
    metadata: Mapping[str, Any] | None
    context: Mapping[str, Any] | None
    unique: Unique | Literal[False] | None
    replace: bool | Collection[Replaceable] | None
    pending: bool | None


@dataclass(frozen=True, slots=True, init=False)
class NewJob(Generic[Args]):
    """The args and options of one job, for `enqueue_many`: `NewJob(Welcome("a@b.c"), priority=1)`."""

    args: Args
    kind: str | None
    options: JobOptions

    def __init__(self, args: Args, *, kind: str | None = None, **options: Unpack[Options]) -> None:
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "kind", kind)
        try:
            object.__setattr__(self, "options", JobOptions(**options) if options else NO_OPTIONS)
        except TypeError:
            _check_names(options)
            raise

    def __repr__(self) -> str:
        """Of the args only the class, since their values may be secret."""
        args = "{...}" if isinstance(self.args, Mapping) else f"{type(self.args).__qualname__}(...)"
        kind = "" if self.kind is None else f"kind={self.kind!r}"
        return f"NewJob({', '.join(part for part in (args, kind, self.options.summary) if part)})"


def job_options(**options: Unpack[Options]) -> Callable[[ArgsClass], ArgsClass]:
    """Set the default options of an args class: `@job_options(queue="mail")` above `@dataclass`.

    A subclass has the options of its base class, and overrides them one by one. A class whose options depend on its
    args defines a method `job_options(self) -> JobOptions` instead.
    """
    chosen = options_given(options)

    def decorate(cls: ArgsClass) -> ArgsClass:
        cls.job_options = _over_inherited(chosen, getattr(cls, "job_options", None))  # type: ignore[attr-defined]
        return cls

    return decorate


def _over_inherited(chosen: JobOptions, inherited: Any) -> Callable[[Any], JobOptions]:
    """The method `job_options` of a class whose base class has the method `inherited`, or none."""
    if inherited is not None and not hasattr(inherited, "constant"):  # it computes them from the args
        return lambda args: chosen.over(inherited(args))
    constant = chosen.over(getattr(inherited, "constant", NO_OPTIONS))

    def job_options(args: Any) -> JobOptions:
        return constant  # always the same object, so that the options of a class are prepared once

    job_options.constant = constant  # type: ignore[attr-defined]
    return job_options


def options_given(options: Options) -> JobOptions:
    """The keyword arguments of a call as JobOptions; InvalidOption for an unknown name."""
    _check_names(options)
    return JobOptions(**options)


def options_of(args: object) -> JobOptions:
    """The options of the class of `args`."""
    method = None if isinstance(args, Mapping) else getattr(args, "job_options", None)
    if method is None:
        return NO_OPTIONS
    options = method()
    if not isinstance(options, JobOptions):
        raise InvalidOption(f"{type(args).__name__}.job_options() gives {options!r}, not JobOptions")
    return options


def kind_of(cls: type) -> str:
    """The kind of an args class: the class attribute `kind`, or the name of the class in snake case."""
    named = getattr(cls, "kind", None)
    if named is not None and "kind" not in {f.name for f in dataclasses.fields(cls)}:
        return check_kind(named)
    made = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__).lower()
    try:
        return check_kind(made)
    except InvalidKind as error:
        raise InvalidKind(
            f"the name of class {cls.__qualname__} makes no kind: {error}; set one in the class, as in "
            "kind: ClassVar[str] = 'mail.created'"
        ) from None


class ClassName(NamedTuple):
    """The identity of an args class. It stays the same when a reload or a notebook defines the class again."""

    module: str
    qualname: str

    @classmethod
    def of(cls, args_class: type) -> ClassName:
        module = args_class.__module__
        return cls(_name_of_main() if module in ("__main__", "__mp_main__") else module, args_class.__qualname__)

    def __str__(self) -> str:
        return f"{self.module}.{self.qualname}"


def two_classes(kind: str, known: ClassName, other: ClassName) -> str:
    """The text of the error that two classes have one kind."""
    own = f"{other.module.rpartition('.')[2]}.{kind}"
    return (
        f"two args classes have the kind {kind!r}, {known} and {other}, so the handler of one would get the args of "
        f"the other: give one class a kind of its own, as in kind: ClassVar[str] = {own!r}"
    )


def _name_of_main() -> str:
    """The name under which other modules import the module that the process was started with."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    if file is None:  # a prompt, or a notebook
        return "__main__"
    for name, module in list(sys.modules.items()):
        if name not in ("__main__", "__mp_main__") and getattr(module, "__dict__", {}).get("__file__") == file:
            return name
    return Path(file).stem


def check_kind(kind: object) -> str:
    if not isinstance(kind, str) or not kind:
        raise InvalidKind(f"a job needs a kind: a string of 2 to 128 characters, not {shown(kind)}")
    if len(kind) > 128 or not _KIND.fullmatch(kind):
        raise InvalidKind(
            f"kind {kind[:140]!r}: use 2 to 128 ASCII letters, digits and - _ [ ] < > / . : + "
            "and begin with a letter, a digit or an underscore"
        )
    return kind


def check_queue(queue: object) -> str:
    if not isinstance(queue, str) or not queue or len(queue) > 64 or not _QUEUE.fullmatch(queue):
        raise InvalidOption(
            f"queue {shown(queue)}: use 1 to 64 ASCII letters, digits and - _ [ ] < > / . : + "
            "and begin with a letter, a digit or an underscore"
        )
    return queue


def _check_names(options: Mapping[str, object]) -> None:
    for name in options:
        if name == "kind":
            raise InvalidOption(
                "kind is no option: set it in the args class, as in kind: ClassVar[str] = 'report'; give it to a job "
                "whose args are a dict, as in NewJob(args, kind='report')"
            )
        if name not in JobOptions.__slots__:
            raise InvalidOption(
                f"there is no option {shown(name)}: the options are {', '.join(JobOptions.__slots__)}"
            ) from None


def _check_type(name: str, value: object, tp: type, wanted: str) -> None:
    if value is not None and not isinstance(value, tp):
        raise InvalidOption(f"{name} is {wanted}, not {shown(value)}")


def _check_int(name: str, value: object, least: int, most: int) -> None:
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidOption(f"{name} is a whole number from {least} to {most}, not {shown(value)}")


def _check_instant(when: object) -> None:
    if not isinstance(when, datetime):
        raise InvalidOption(f"scheduled_at is a datetime, not {shown(when)}")
    if when.tzinfo is None or when.utcoffset() is None:
        raise InvalidOption(f"scheduled_at {when!r} has no time zone: use an aware datetime")
    if not FIRST_INSTANT <= when < LAST_INSTANT:
        raise InvalidOption(
            f"scheduled_at {when!r} is out of range: from {FIRST_INSTANT.date()} to {LAST_INSTANT.date()}"
        )


def _check_delay(delay: object) -> None:
    if not isinstance(delay, timedelta):
        raise InvalidOption(f"delay is a timedelta, as in timedelta(seconds=60), not {shown(delay)}")
    if delay < timedelta(0):
        raise InvalidOption(f"delay cannot be negative: {delay!r}")


def _check_tags(tags: object) -> None:
    if isinstance(tags, str | bytes) or not isinstance(tags, Sequence):
        raise InvalidOption(f"tags is a list of strings, not {shown(tags)}")
    for tag in tags:
        if not isinstance(tag, str) or len(tag) > 255 or not _TAG.fullmatch(tag):
            raise InvalidOption(
                f"tag {shown(tag)}: use 3 to 255 ASCII letters, digits, - and _, not beginning or ending with -"
            )


NO_OPTIONS = JobOptions()  # one object, so that a job without options is recognised by `is`
