"""Assertions about the jobs that were enqueued. They raise AssertionErrors that show what is there instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, Unpack, overload

from pgjobs.errors import InvalidArgs, shown
from pgjobs.job import Job
from pgjobs.options import NewJob
from pgjobs.testing.shown import class_of, classes_in, indented, shown_jobs
from pgjobs.testing.wanted import Expected, Wanted, wanted
from pgjobs.work_map import WorkMap

Args = TypeVar("Args")

#: Reads the jobs, in the order in which they were enqueued.
Read = Callable[[], Sequence[Job[Any]]]


class Enqueued:
    """The jobs that were enqueued, in their order, and assertions about them.

    A job is named by its args class, by an instance of it, or by its kind. An instance means a job with equal args. The
    keyword arguments are what else is expected: `args` and `metadata` (a mapping of the keys to compare), `state`,
    `queue`, `priority`, `max_attempts`, `scheduled_at`, `delay`, `tags` and `attempt`. An option that does not exist
    raises InvalidOption. Jobs are looked at whatever their state is.
    """

    def __init__(self, read: Read, work_map: WorkMap | None = None) -> None:
        self._read = read
        self._work_map = work_map
        self._classes: dict[str, type] = {}  # by kind, for messages

    def _known_classes(self) -> Mapping[str, type]:
        """The args classes by kind, for messages, which hide the secret fields of these."""
        of_jobs = {job.kind: found for job in self._read() if (found := class_of(job))}
        return {**of_jobs, **classes_in(self._work_map), **self._classes}

    def _wanted(self, what: object, expected: Mapping[str, Any]) -> Wanted:
        made = wanted(what, expected)
        if made.args_class is not None:
            self._classes[made.kind] = made.args_class
        return replace(made, known_class=made.args_class or self._known_classes().get(made.kind))

    def _of_kind(self, asked: Wanted) -> list[Job[Any]]:
        return [asked.typed(job) for job in self._read() if job.kind == asked.kind]

    def _there(self) -> str:
        return shown_jobs(self._read(), self._known_classes())

    # --- one job, several jobs, no job

    @overload
    def assert_enqueued(self, what: type[Args], **expected: Unpack[Expected]) -> Job[Args]: ...

    @overload
    def assert_enqueued(self, what: str, **expected: Unpack[Expected]) -> Job[Any]: ...

    @overload
    def assert_enqueued(self, what: NewJob[Args], **expected: Unpack[Expected]) -> Job[Args]: ...

    @overload
    def assert_enqueued(self, what: Args, **expected: Unpack[Expected]) -> Job[Args]: ...

    def assert_enqueued(self, what: Any, **expected: Unpack[Expected]) -> Job[Any]:
        """There is exactly one such job, and it is as expected. Returns the job, with args of its class.

            job = jobs.assert_enqueued(Welcome, queue="mail")
            jobs.assert_enqueued(Welcome("ada@example.com"))
            jobs.assert_enqueued("report", args={"month": 5})

        With a class or a kind it must be the only job of its kind; with an instance, the only one with these args.
        """
        __tracebackhide__ = True
        asked = self._wanted(what, expected)
        of_kind = self._of_kind(asked)
        found = [job for job in of_kind if asked.has_args(job)] or of_kind
        if not found:
            raise AssertionError(f"expected one job of {asked}, found none; {self._there()}")
        if len(found) > 1:
            less = " (assert_many_enqueued expects several)" if asked.has_args(found[0]) else " with other args"
            raise AssertionError(f"expected one job of {asked}, found {len(found)} of this kind{less}; {self._there()}")
        differences = asked.differences(found[0])
        if differences:
            raise AssertionError(f"job {found[0].id} of kind {asked.kind!r} differs:\n{indented(differences)}")
        return found[0]

    def assert_many_enqueued(self, expected: Sequence[object]) -> list[Job[Any]]:
        """There are these jobs of their kinds, in this order, and no more. Returns them.

            jobs.assert_many_enqueued([Welcome("ada@example.com"), NewJob(Report, queue="slow"), "clean"])

        An item is what `assert_enqueued` takes; a NewJob expects the options that it names. Jobs of other kinds do not
        matter.
        """
        __tracebackhide__ = True
        if isinstance(expected, str | type | Mapping) or not expected:
            raise InvalidArgs(f"assert_many_enqueued takes a list of what is expected, not {shown(expected)}")
        asked = [self._wanted(what, {}) for what in expected]
        kinds = [each.kind for each in asked]
        found = [job for job in self._read() if job.kind in kinds]
        if [job.kind for job in found] != kinds:
            raise AssertionError(
                f"expected jobs of the kinds {', '.join(kinds)}, "
                f"found {', '.join(job.kind for job in found) or 'none'}; {self._there()}"
            )
        differences = [
            f"job {job.id} of kind {each.kind!r}: {line}"
            for job, each in zip(found, asked, strict=True)
            for line in each.differences(job)
        ]
        if differences:
            raise AssertionError(f"the jobs differ:\n{indented(differences)}")
        return [each.typed(job) for job, each in zip(found, asked, strict=True)]

    def assert_not_enqueued(self, what: object, **expected: Unpack[Expected]) -> None:
        """There is no such job; with `expected`, none that is as expected in every way."""
        __tracebackhide__ = True
        asked = self._wanted(what, expected)
        found = [job for job in self._of_kind(asked) if not asked.differences(job)]
        if found:
            raise AssertionError(f"expected no job of {asked}, found {len(found)}; {self._there()}")

    def all_enqueued(self, what: object = None, **expected: Unpack[Expected]) -> list[Job[Any]]:
        """The jobs in the order of their enqueue: all, or those that are as expected in every way."""
        if what is None and not expected:
            return list(self._read())
        asked = self._wanted(what, expected)
        return [job for job in self._of_kind(asked) if not asked.differences(job)]

    # --- by their place, counted from 1

    def get(self, place: int) -> Job[Any] | None:
        """The job at this place, counted from 1; None if there is none."""
        return _at(self._read(), place)

    def get_first(self) -> Job[Any] | None:
        """The first job; None if there is none."""
        return self.get(1)

    def get_of(self, what: object, place: int) -> Job[Any] | None:
        """The job at this place among those of a kind, counted from 1; None if there is none, or `what` is None."""
        return None if what is None else _at(self._of_kind(self._wanted(what, {})), place)

    def get_first_of(self, what: object) -> Job[Any] | None:
        """The first job of a kind; None if there is none, or `what` is None."""
        return self.get_of(what, 1)

    # --- how many there are

    def empty(self) -> bool:
        """There is no job. Returns True, as the four methods below do, or raises AssertionError."""
        __tracebackhide__ = True
        return self.total(0)

    def not_empty(self) -> bool:
        """There is at least one job."""
        __tracebackhide__ = True
        if not self._read():
            raise AssertionError("expected jobs, but there are no jobs")
        return True

    def total(self, number: int) -> bool:
        """There are exactly so many jobs."""
        __tracebackhide__ = True
        found = len(self._read())
        if found != number:
            raise AssertionError(f"expected {number or 'no'} job{'s' * (number != 1)}, found {found}; {self._there()}")
        return True

    def contains(self, what: object, **expected: Unpack[Expected]) -> bool:
        """There is at least one such job."""
        __tracebackhide__ = True
        asked = self._wanted(what, expected)
        if all(asked.differences(job) for job in self._of_kind(asked)):
            raise AssertionError(f"expected a job of {asked}, found none; {self._there()}")
        return True

    def not_contains(self, what: object, **expected: Unpack[Expected]) -> bool:
        """There is no such job."""
        __tracebackhide__ = True
        self.assert_not_enqueued(what, **expected)
        return True


def _at(jobs: Sequence[Job[Any]], place: int) -> Job[Any] | None:
    return jobs[place - 1] if 1 <= place <= len(jobs) else None
