"""The checked jobs of one call of `enqueue_many`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, overload

from pgjobs.options import EncodedJob

#: One checked job: the job without its args, a template that all jobs of the same options share; its args as JSON; and
#: its args as the caller passed them, or UNKNOWN if middleware has changed the job.
Encoded = tuple[EncodedJob, str, object]
UNKNOWN = object()


class EncodedJobs(Sequence[EncodedJob]):
    """Jobs as three lists. The garbage collector visits every object that may refer to others again and again, so an
    object for each of a million jobs would cost more than the encoding. An EncodedJob is made when one is asked for.
    """

    def __init__(self, jobs: Iterable[Encoded] = ()) -> None:
        self.templates: list[EncodedJob] = []
        self.texts: list[str] = []
        self.args: list[object] = []
        add_template, add_text, add_args = self.templates.append, self.texts.append, self.args.append
        for template, text, args in jobs:
            add_template(template)
            add_text(text)
            add_args(args)

    @classmethod
    def of(cls, jobs: Sequence[EncodedJob]) -> Self:
        """Jobs that middleware may have changed: each is a template of its own."""
        if isinstance(jobs, cls):
            return jobs
        return cls((job, job.args, job.original_args if job.has_original_args else UNKNOWN) for job in jobs)

    def append(self, template: EncodedJob, text: str, args: object) -> None:
        self.templates.append(template)
        self.texts.append(text)
        self.args.append(args)

    @property
    def any_unique(self) -> bool:
        return any(template.unique is not None for template in self.templates)

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[EncodedJob]:
        return map(_job, self.templates, self.texts, self.args)

    @overload
    def __getitem__(self, place: int) -> EncodedJob: ...

    @overload
    def __getitem__(self, place: slice) -> list[EncodedJob]: ...

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return list(map(_job, self.templates[place], self.texts[place], self.args[place]))
        return _job(self.templates[place], self.texts[place], self.args[place])


def _job(template: EncodedJob, text: str, args: object) -> EncodedJob:
    if args is UNKNOWN or template.original_json:  # it came from middleware, with its args
        return template
    return template.with_args(text, args)
