"""Checks and encodes jobs before anything is sent, and gives the jobs that come back their args."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any

from pgjobs import codec
from pgjobs.enqueuing.encoded_jobs import Encoded
from pgjobs.errors import InvalidArgs, InvalidKind, InvalidOption, NoJobs, PgjobsError, UnknownKind, shown
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

#: By args class and options: the options of the class when the template was made, and a job without its args.
Templates = dict[object, tuple[JobOptions, EncodedJob]]
_MOST_TEMPLATES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Checks and encodes the jobs of one client. What is the same for all jobs of an args class, and of the same
    options, is done once, and kept as a template."""

    defaults: JobOptions
    max_args_bytes: int
    work_map: WorkMap | None = None
    context: Callable[[], Mapping[str, Any] | None] | None = None
    code_version: str | None = None
    _templates: Templates = field(default_factory=dict)
    # of the kinds that were enqueued or are handled here
    _classes: dict[str, tuple[type, ClassName]] = field(default_factory=dict)

    def encode(self, job: object) -> EncodedJob:
        """Check and encode one job, a `NewJob` or args."""
        template, text, args = self.encode_parts(job)
        return template.with_args(text, args)

    def encode_parts(self, job: object, call: JobOptions = NO_OPTIONS, templates: Templates | None = None) -> Encoded:
        """As `encode`, without making a value of its own for the job. `call` are the options of a call for many jobs,
        and `templates` those of its earlier jobs."""
        if templates is None:
            templates = self._templates
        if isinstance(job, NewJob):
            args, key = job.args, _template_key(job)
        else:
            args, key = job, type(job)
        of_class, template = templates.get(key, (None, None))
        if template is None or options_of(args) is not of_class:
            template = self._make_template(job if isinstance(job, NewJob) else NewJob(job), call, templates)
        elif self.work_map is not None:
            self._check_handled(self.work_map, template.kind, type(args))
        return template, codec.encode(args, max_bytes=self.max_args_bytes), args

    def encode_all(self, jobs: Iterable[object], call: JobOptions = NO_OPTIONS) -> Iterator[Encoded]:
        """Check and encode one job after the other; an error names the position of its job."""
        position = -1
        templates = self._templates if call is NO_OPTIONS else {}
        if isinstance(jobs, str | bytes | Mapping) or not isinstance(jobs, Iterable):
            raise InvalidArgs(f"enqueue_many takes a list of jobs, not {shown(jobs)}: one job goes to enqueue")
        for position, job in enumerate(jobs):
            try:
                yield self.encode_parts(job, call, templates)
            except Exception as error:
                if isinstance(error, PgjobsError):  # the args of an error of the application may mean something else
                    error.args = (f"at position {position} of the jobs to enqueue: {error}", *error.args[1:])
                error.add_note(f"at position {position} of the jobs to enqueue")
                raise
        if position < 0:
            raise NoJobs("there are no jobs to enqueue")

    def with_args(self, job: EncodedJob, made: Job[Any]) -> Job[Any]:
        """The inserted job with the args that the caller passed, unless middleware has changed them. A duplicate keeps
        its own args."""
        if not has_args(made):
            return made
        if made.kind != job.original_kind:
            return decoding(self.work_map, made)
        values = vars(made)  # the caller does not have it yet
        values["decode"] = job.decode
        if job.original_json is job.args and not made.duplicate:
            values["args"] = job.original_args
        return made

    def note_class(self, kind: str, args_class: type, error: Callable[[str], Exception] = InvalidKind) -> None:
        """Remember the args class of a kind, and refuse another class of the same kind: the handler of the first would
        get its args."""
        noted = self._classes.get(kind)
        if noted is not None and noted[0] is args_class:
            return
        name = ClassName.of(args_class)  # for a class of the main module this searches all modules
        _, known = self._classes.setdefault(kind, (args_class, name))
        if known != name:
            raise error(two_classes(kind, known, name))

    # --- templates

    def _make_template(self, new: NewJob[Any], call: JobOptions, templates: Templates) -> EncodedJob:
        """A job without its args; kept where it is the same for every instance of the class."""
        kind = self._check_kind(new)
        of_class = options_of(new.args)
        options = new.options.over(call).over(of_class).over(self.defaults)
        context = options.context if options.context is not None else self._context_of_client()
        assert options.queue is not None
        assert options.priority is not None
        assert options.max_attempts is not None
        template = EncodedJob(
            # the plain values: a member of an enumeration may have another text
            kind=str.__str__(kind),
            original_kind=str.__str__(kind),
            queue=str.__str__(options.queue),
            priority=int(options.priority),
            max_attempts=int(options.max_attempts),
            args="{}",
            metadata=codec.encode_metadata(self._metadata(new.args, options.metadata, context)),
            tags=tuple(options.tags or ()),
            scheduled_at=options.scheduled_at,
            delay=min(options.delay or timedelta(0), LONGEST_DELAY),
            unique=_check_unique(new.args, options.unique or None),
            replace=_check_replace(options),
            pending=bool(options.pending),
            decode=partial(codec.decode, type(new.args)) if is_dataclass(new.args) else codec.decode_dict,
        )
        is_constant = self.context is None and options.context is None and of_class.metadata is None
        key = _template_key(new)
        if is_constant and key is not None and is_dataclass(new.args):
            if len(templates) >= _MOST_TEMPLATES:
                templates.clear()
            templates[key] = (of_class, template)
        return template

    def _context_of_client(self) -> Mapping[str, Any] | None:
        context: object = None if self.context is None else self.context()
        if context is None or isinstance(context, Mapping):
            return context
        raise InvalidOption(f"the context function of the client must return a mapping or None, not {shown(context)}")

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

    def _check_kind(self, new: NewJob[Any]) -> str:
        args = new.args
        if isinstance(args, Job | NewJob):
            raise InvalidArgs(_not_args(args))
        if isinstance(args, Mapping):
            kind, args_class = check_kind(new.kind), None
        elif is_dataclass(args) and not isinstance(args, type):
            kind, args_class = check_kind(new.kind) if new.kind is not None else kind_of(type(args)), type(args)
        else:
            raise InvalidArgs(f"a job is a dataclass instance, or a dict with kind=; not {shown(args)}")
        if self.work_map is not None:
            self._check_handled(self.work_map, kind, args_class)
        if args_class is not None:
            self.note_class(kind, args_class)
        return kind

    def _check_handled(self, work_map: WorkMap, kind: str, args_class: type | None) -> None:
        """Refuse a kind without a handler, and a kind whose handler takes another args class."""
        handler: Handler | None = dict.get(work_map, kind)
        if handler is None:
            raise UnknownKind(kind)
        handled = handler.args_class
        if handled is None or args_class is None or handled is args_class:
            return
        if ClassName.of(handled) != ClassName.of(args_class):
            raise InvalidKind(two_classes(kind, ClassName.of(handled), ClassName.of(args_class)))


def _not_args(job: Job[Any] | NewJob[Any]) -> str:
    """The text of the error for a job where its args are wanted."""
    if isinstance(job, NewJob):
        return "the args of a NewJob are another NewJob: give all options to one"
    return (
        f"job {job.id} is in the table already: to enqueue another one with its args, give job.args and kind=job.kind"
    )


def _template_key(new: NewJob[Any]) -> object:
    """What decides about the template of a job, besides the options of its class. None for options that seldom come
    twice, and for those whose value may change after the call."""
    args_class, kind, options = type(new.args), new.kind, new.options
    if kind is None and options is NO_OPTIONS:
        return args_class
    if (
        (kind is not None and type(kind) is not str)
        or options.scheduled_at is not None
        or options.tags is not None
        or options.metadata is not None
        or options.context is not None
        or options.unique is not None
        or options.replace is not None
    ):
        return None
    return args_class, kind, options.queue, options.priority, options.delay, options.max_attempts, options.pending


def _check_unique(args: object, unique: Unique | None) -> Unique | None:
    """Replace the names in `by_args` by those that the fields have in JSON. A field that the args do not have is
    refused: its value would be the same for all jobs."""
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


def _check_replace(options: JobOptions) -> tuple[str, ...]:
    fields = checked_replace(options.replace or False)
    if fields and options.unique is None:
        raise InvalidOption("replace changes the duplicate of a unique job: pass unique=Unique(...) too")
    return fields if options.unique else ()
