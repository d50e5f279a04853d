"""What a test expects of a job, and how a job differs from that."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypedDict

from pgjobs import codec
from pgjobs.errors import InvalidArgs, InvalidOption, UndecodableArgs, shown
from pgjobs.job import Job, JobState, changed
from pgjobs.options import JobOptions, NewJob, check_kind, kind_of
from pgjobs.states import StateName
from pgjobs.testing.shown import class_of, visible_args


class Expected(TypedDict, total=False):
    """What may be expected of a job besides its kind. What is left out may be anything.

    `args` and `metadata` are compared by the keys that they name. `delay` is the time from the enqueue to
    `scheduled_at`.
    """

    args: Mapping[str, Any]
    state: JobState | StateName
    queue: str
    priority: int
    max_attempts: int
    scheduled_at: datetime
    delay: timedelta
    tags: Sequence[str]
    metadata: Mapping[str, Any]
    attempt: int


NAMES = tuple(Expected.__annotations__)
_OF_OPTIONS = ("queue", "priority", "scheduled_at", "delay", "max_attempts", "tags", "metadata")


@dataclass(frozen=True)
class Wanted:
    """The kind of a job, its args class if it is known, and what is expected of it."""

    kind: str
    args_class: type | None
    instance: object | None  # of the args
    expected: Mapping[str, Any]
    known_class: type | None = None  # of the kind, for messages, also if the job is named by its kind

    def typed(self, job: Job[Any]) -> Job[Any]:
        """The job, whose `args` are an instance of the args class if that is known."""
        if self.args_class is None:
            return job
        return changed(job, decode=partial(codec.decode, self.args_class))

    def has_args(self, job: Job[Any]) -> bool:
        """Whether these are the args of the job; any are if only a class or a kind is wanted."""
        if self.instance is None:
            return True
        if json.loads(job.raw_args) == json.loads(codec.encode(self.instance)):
            return True
        try:
            return bool(self.typed(job).args == self.instance)
        except UndecodableArgs:
            return False

    def differences(self, job: Job[Any]) -> list[str]:
        """A line for each way in which a job of the kind differs from what is wanted."""
        lines = []
        if not self.has_args(job):
            lines += self._args_differences(job, json.loads(codec.encode(self.instance)))
        for name, value in self.expected.items():
            if name == "args":
                lines += self._args_differences(job, value)
            elif name == "metadata":
                lines += _by_key("metadata", job.metadata, value, job.metadata, value)
            else:
                found = _value(job, name)
                wanted = tuple(value) if name == "tags" else value
                lines += [] if found == wanted else [f"{name} {_text(found)}, expected {_text(wanted)}"]
        return lines

    def _args_differences(self, job: Job[Any], wanted: Mapping[str, Any]) -> list[str]:
        found = json.loads(job.raw_args)
        args_class = self.known_class or class_of(job)
        visible = visible_args(args_class, job.raw_args)
        visible_wanted = visible_args(args_class, json.dumps(wanted))
        return list(_by_key("args", found, wanted, visible, visible_wanted))

    def __str__(self) -> str:
        expected = {name: value for name, value in self.expected.items() if name != "args"}
        args = codec.encode(self.expected.get("args", {}) if self.instance is None else self.instance)
        texts = [f"{name} {_text(value)}" for name, value in expected.items()]
        if args != "{}":
            texts = [f"args {json.dumps(visible_args(self.known_class, args), ensure_ascii=False)}", *texts]
        return f"kind {self.kind!r}" + (f" with {', '.join(texts)}" if texts else "")


def wanted(what: Any, expected: Mapping[str, Any]) -> Wanted:
    """Check what a call expects: an args class, its instance, a kind, or a NewJob of one of these."""
    unknown = [name for name in expected if name not in NAMES]
    if unknown:
        raise InvalidOption(f"a job cannot be compared by {unknown[0]!r}: the names are {', '.join(NAMES)}")
    kind = None
    if "args" in expected:  # as JSON has them
        expected = {**expected, "args": json.loads(codec.encode(expected["args"]))}
    if isinstance(what, NewJob):
        what, kind, expected = what.args, what.kind, {**_options(what.options), **expected}
    if isinstance(what, type) and is_dataclass(what):
        return Wanted(kind or kind_of(what), what, None, expected)
    if isinstance(what, str):
        return Wanted(check_kind(kind or what), None, None, expected)
    if is_dataclass(what) and not isinstance(what, type):
        codec.encode(what)  # refuses what no stored job can have
        return Wanted(kind or kind_of(type(what)), type(what), what, expected)
    if isinstance(what, Mapping) and kind is not None:
        return Wanted(kind, None, None, {"args": what, **expected})
    raise InvalidArgs(
        f"give an args class, an instance of one, or a kind, not {shown(what)}: a dict is named by its kind, "
        "as in ('report', args={'month': 5})"
    )


def _options(options: JobOptions) -> dict[str, Any]:
    given = {name: getattr(options, name) for name in JobOptions.__slots__ if getattr(options, name) is not None}
    for name in given:
        if name not in _OF_OPTIONS:
            raise InvalidOption(f"a job cannot be compared by the option {name!r}: only by {', '.join(_OF_OPTIONS)}")
    return given


def _value(job: Job[Any], name: str) -> Any:
    return job.scheduled_at - job.created_at if name == "delay" else getattr(job, name)


def _by_key(what: str, found: Any, wanted: Mapping[str, Any], shown_found: Any, shown_wanted: Any) -> Iterator[str]:
    """A line for each key of `wanted` that is another, or not there."""
    for key, value in wanted.items():
        if not isinstance(found, Mapping) or key not in found:
            yield f"{what}.{key} is not there, expected {_text(_part(shown_wanted, key))}"
        elif found[key] != value:
            yield f"{what}.{key} {_text(_part(shown_found, key))}, expected {_text(_part(shown_wanted, key))}"


def _part(shown: Any, key: str) -> Any:
    """The value of a key; all that is shown, if that hides its keys."""
    return shown.get(key, shown) if isinstance(shown, Mapping) else shown


def _text(value: object) -> str:
    match value:
        case JobState():
            return repr(value.value)
        case datetime():
            return value.isoformat()
        case timedelta():
            return str(value)
    return shown(value, 200)
