"""What `enqueue` does: check and encode, then insert. Nothing is sent before all is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, is_dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from pgjobs import codec
from pgjobs.db.cursors import AnyConnection
from pgjobs.enqueuing.copy_buffer import CopyBuffer
from pgjobs.enqueuing.queries import EnqueueQueries
from pgjobs.errors import InvalidArgs, InvalidKind, InvalidOption, NoJobs, PgjobsError, UnknownKind, shown
from pgjobs.hooks import EnqueueMiddleware, HookCalls, insert_with_middleware
from pgjobs.job import Job, has_args
from pgjobs.options import (
    LONGEST_DELAY,
    NO_OPTIONS,
    ClassName,
    EncodedJob,
    JobOptions,
    NewJob,
    check_kind,
    kind_of,
    options_of,
    two_classes,
)
from pgjobs.unique import Unique, checked_replace
from pgjobs.work_map import Handler, WorkMap, decoding

#: By args class: what its own options were, and all of a job but its args.
Templates = dict[type, tuple[JobOptions, EncodedJob]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Enqueuer:
    """What the enqueues of one client share."""

    queries: EnqueueQueries
    defaults: JobOptions
    max_args_bytes: int
    work_map: WorkMap | None = None
    context: Callable[[], Mapping[str, Any] | None] | None = None
    code_version: str | None = None
    hooks: HookCalls
    middleware: Sequence[EnqueueMiddleware] = ()
    _templates: Templates = field(default_factory=dict)
    _classes: dict[str, ClassName] = field(default_factory=dict)  # of the kinds that were enqueued here, or are handled

    def encoded(self, job: object, call: JobOptions = NO_OPTIONS, templates: Templates | None = None) -> EncodedJob:
        """Check and encode one job, a `NewJob` or args; raises before any SQL. `call` are the options of a call for
        many, and `templates` what its earlier jobs have left."""
        args = job.args if isinstance(job, NewJob) else job
        kept = self._templates if templates is None else templates
        template = None
        if not isinstance(job, NewJob) or (job.options is NO_OPTIONS and job.kind is None):
            template = self._kept_template(args, kept)
        if template is None:
            template = self._template(job if isinstance(job, NewJob) else NewJob(job), call, kept)
        return template.with_args(codec.encode(args, max_bytes=self.max_args_bytes), args)

    def all_encoded(self, jobs: Iterable[object], call: JobOptions = NO_OPTIONS) -> Iterator[EncodedJob]:
        """One after the other; what is wrong with one names its position."""
        position = -1
        templates = self._templates if call is NO_OPTIONS else {}
        if isinstance(jobs, str | bytes | Mapping) or not isinstance(jobs, Iterable):
            raise InvalidArgs(f"enqueue_many takes a list of jobs, not {shown(jobs)}: one job goes to enqueue")
        for position, job in enumerate(jobs):
            try:
                yield self.encoded(job, call, templates)
            except Exception as error:
                if isinstance(error, PgjobsError):  # not one of the application's own, whose args mean something else
                    error.args = (f"at position {position} of the jobs to enqueue: {error}", *error.args[1:])
                error.add_note(f"at position {position} of the jobs to enqueue")
                raise
        if position < 0:
            raise NoJobs("there are no jobs to enqueue")

    def needs_one_statement(self, job: EncodedJob) -> bool:
        """Whether nothing but one statement will be sent for it, which is a transaction by itself."""
        return job.unique is None and not self.middleware

    def insert_hot(self, conn: AnyConnection, job: EncodedJob, *, may_prepare: bool) -> Job[Any]:
        """As `insert`, of one that `is_plain` and needs one statement; see `EnqueueQueries.insert_hot`."""
        inserted = self._with_args(job, self.queries.insert_hot(conn, job, may_prepare=may_prepare))
        self.hooks("on_enqueue", inserted)
        return inserted

    def insert(self, conn: AnyConnection, tx: object, jobs: Sequence[EncodedJob], *, notify: bool) -> list[Job[Any]]:
        """Insert the jobs, middleware around it; they come back in their order. `tx` is what middleware gets."""

        def insert(jobs: Sequence[EncodedJob]) -> list[Job[Any]]:
            stored = self.queries.insert(conn, jobs, notify=notify) if jobs else []
            return [self._with_args(job, made) for job, made in zip(jobs, stored, strict=True)]

        inserted = insert_with_middleware(self.middleware, conn if tx is None else tx, insert)(jobs)
        for job in inserted if self.hooks else ():
            if not job.duplicate:
                self.hooks("on_enqueue", job)
        return inserted

    def _with_args(self, job: EncodedJob, made: Job[Any]) -> Job[Any]:
        """The job that was made of it, which gives the args that it was made with; a duplicate those that are stored.
        Middleware may have changed them."""
        kind, text, args = job.given or ("", "", None)
        if not has_args(made):
            return made
        if made.kind != kind:
            return decoding(self.work_map, made)
        values = vars(made)  # the caller has not seen it yet
        values["decode"] = job.decode
        if text is job.args and not made.duplicate:
            values["args"] = args
        return made

    def insert_counted(
        self,
        transaction: AbstractContextManager[AnyConnection],
        tx: object,
        jobs: Iterable[object],
        call: JobOptions = NO_OPTIONS,
        *,
        notify: bool,
        copy: bool,
    ) -> int:
        """Insert any number of jobs; how many were, without the duplicates. Where it can `copy`, and nobody wants to
        see each, in bounded memory. The transaction begins when all are checked: until then the caller's iterator may
        use it."""
        apart = not copy or bool(self.hooks) or bool(self.middleware)
        with CopyBuffer() as spool:
            kept = []
            for job in self.all_encoded(jobs, call):
                if apart or job.unique is not None:
                    kept.append(job)
                else:
                    spool.add(job)
            with transaction as conn:
                if spool.jobs:
                    self.queries.insert_spooled(conn, spool, notify=notify)
                inserted = self.insert(conn, tx, kept, notify=notify) if kept else []
            return spool.jobs + sum(not job.duplicate for job in inserted)

    def _kept_template(self, args: object, templates: Templates) -> EncodedJob | None:
        """What an earlier job of the same class has left."""
        asked, template = templates.get(type(args), (None, None))
        if template is None or options_of(args) is not asked:
            return None
        if self.work_map is not None:
            self._check_handled(self.work_map, template.kind, type(args))
        return template

    def _template(self, new: NewJob[Any], call: JobOptions, templates: Templates) -> EncodedJob:
        """All of a job but its args; kept where it is the same for every instance of a class."""
        kind = self._kind(new)
        asked = options_of(new.args)
        options = new.options.over(call).over(asked).over(self.defaults)
        context = options.context if options.context is not None or self.context is None else self.context()
        assert options.queue is not None
        assert options.priority is not None
        assert options.max_attempts is not None
        template = EncodedJob(
            # the plain values, where somebody's enumeration has others as their text
            kind=str.__str__(kind),
            queue=str.__str__(options.queue),
            priority=int(options.priority),
            max_attempts=int(options.max_attempts),
            args="{}",
            metadata=codec.encode_metadata(self._metadata(new.args, options.metadata, context)),
            tags=tuple(options.tags or ()),
            scheduled_at=options.scheduled_at,
            delay=min(options.delay or timedelta(0), LONGEST_DELAY),
            unique=_unique(new.args, options.unique or None),
            replace=_replaced(options),
            pending=bool(options.pending),
            decode=partial(codec.decode, type(new.args)) if is_dataclass(new.args) else codec.decode_dict,
        )
        always_so = self.context is None and options.context is None and asked.metadata is None
        if always_so and new.options is NO_OPTIONS and new.kind is None and is_dataclass(new.args):
            templates[type(new.args)] = (asked, template)
        return template

    def _metadata(
        self, args: object, own: Mapping[str, Any] | None, context: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        metadata = dict(own or {})
        if is_dataclass(args):
            metadata.setdefault("class", f"{type(args).__module__}.{type(args).__qualname__}")
        if context is not None:
            metadata["context"] = context
        if self.code_version is not None:
            metadata["code_version_enqueued"] = self.code_version
        return metadata

    def _kind(self, new: NewJob[Any]) -> str:
        if isinstance(new.args, Mapping):
            kind = check_kind(new.kind)
        elif is_dataclass(new.args) and not isinstance(new.args, type):
            kind = check_kind(new.kind) if new.kind is not None else kind_of(type(new.args))
        else:
            raise InvalidArgs(f"a job is a dataclass instance, or a dict with kind=; not {shown(new.args)}")
        args_class = None if isinstance(new.args, Mapping) else type(new.args)
        if self.work_map is not None:
            self._check_handled(self.work_map, kind, args_class)
        if args_class is not None:
            self.note_class(kind, args_class)
        return kind

    def _check_handled(self, work_map: WorkMap, kind: str, args_class: type | None) -> None:
        """Refuse a kind without a handler, and one whose handler is given args of another class."""
        handler: Handler | None = dict.get(work_map, kind)
        if handler is None:
            raise UnknownKind(kind)
        handled = handler.args_class
        if handled is None or args_class is None or handled is args_class:
            return
        if ClassName.of(handled) != ClassName.of(args_class):
            raise InvalidKind(two_classes(kind, ClassName.of(handled), ClassName.of(args_class)))

    def note_class(self, kind: str, args_class: type, error: Callable[[str], Exception] = InvalidKind) -> None:
        """Remember the class of a kind, and refuse another one of the same kind: its handler would be the first's."""
        name = ClassName.of(args_class)
        known = self._classes.setdefault(kind, name)
        if known != name:
            raise error(two_classes(kind, known, name))


def _unique(args: object, unique: Unique | None) -> Unique | None:
    """With the fields as they are called in JSON. One that is not there is refused: it would make all jobs the same."""
    if unique is None or not isinstance(unique.by_args, tuple):
        return unique
    if isinstance(args, Mapping):
        names: Mapping[str, str] | None = {str(key): str(key) for key in args}
    else:
        names = codec.json_names(type(args))
    if names is None:
        return unique
    unknown = [name for name in unique.by_args if name not in names]
    if unknown:
        raise InvalidOption(f"by_args names {unknown[0]!r}, which the args do not have: they have {', '.join(names)}")
    return replace(unique, by_args=[names[name] for name in unique.by_args])


def _replaced(options: JobOptions) -> tuple[str, ...]:
    what = checked_replace(options.replace or False)
    if what and options.unique is None:
        raise InvalidOption("replace is about the duplicate of a unique job: say unique=Unique(...) too")
    return what if options.unique else ()
