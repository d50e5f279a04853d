"""What the code of a Django project calls. Importable before Django is set up; only `handles` may be called then."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar, Unpack, overload

from asgiref.sync import sync_to_async
from django.apps import apps

from pgjobs.client import Client
from pgjobs.contrib.django import settings
from pgjobs.contrib.django.apps import PgjobsConfig
from pgjobs.errors import InvalidSetting
from pgjobs.job import Job
from pgjobs.options import NewJob, Options

Args = TypeVar("Args")

#: The decorator of handlers, as in `@handles(Welcome)`: `WorkMap.handles` of the project's own WorkMap.
handles = PgjobsConfig.work_map.handles


def config() -> PgjobsConfig:
    """The AppConfig. Raises InvalidSetting if the app is not installed, and Django's AppRegistryNotReady before
    `django.setup()`."""
    apps.check_apps_ready()
    try:
        found: PgjobsConfig = apps.get_app_config(PgjobsConfig.label)
    except LookupError:
        raise InvalidSetting(f"the app is not installed: add {PgjobsConfig.name!r} to INSTALLED_APPS") from None
    return found


def client(using: str | None = None) -> Client:
    """The client of an alias of `settings.DATABASES`; None is that of `PGJOBS["USING"]`. There is one for each alias,
    made when it is first asked for, and it stays open. It refuses to enqueue a kind that has no handler."""
    return config().client(using)


@overload
def enqueue(args: NewJob[Args], *, using: str | None = None, notify: bool = True) -> Job[Args]: ...


@overload
def enqueue(
    args: Args, *, using: str | None = None, kind: str | None = None, notify: bool = True, **options: Unpack[Options]
) -> Job[Args]: ...


def enqueue(
    args: Args | NewJob[Args],
    *,
    using: str | None = None,
    kind: str | None = None,
    notify: bool = True,
    **options: Unpack[Options],
) -> Job[Args]:
    """Insert one job on the connection of an alias: in an `atomic()` block of this alias it exists when, and only when,
    the block commits; outside of one it is committed at once, as always in Django.

    `using` is an alias of `settings.DATABASES`; None is `PGJOBS["USING"]`. It must be the alias whose `atomic()` block
    the job belongs to. Otherwise this is `Client.enqueue`, with its options and errors; UnknownKind is raised for args
    that have no handler.
    """
    alias = settings.using() if using is None else using
    given: Any = args
    job: Job[Args] = client(alias).enqueue(alias, given, notify=notify, **_given(kind, options))
    return job


@overload
async def aenqueue(args: NewJob[Args], *, using: str | None = None, notify: bool = True) -> Job[Args]: ...


@overload
async def aenqueue(
    args: Args, *, using: str | None = None, kind: str | None = None, notify: bool = True, **options: Unpack[Options]
) -> Job[Args]: ...


async def aenqueue(
    args: Args | NewJob[Args],
    *,
    using: str | None = None,
    kind: str | None = None,
    notify: bool = True,
    **options: Unpack[Options],
) -> Job[Args]:
    """`enqueue` from async code, on the thread where Django's async ORM runs. It commits at once, since Django has no
    `atomic()` for async code: to enqueue together with other writes, call a function with both by `sync_to_async`."""
    call: Any = sync_to_async(enqueue, thread_sensitive=True)
    job: Job[Args] = await call(args, using=using, notify=notify, **_given(kind, options))
    return job


@overload
def enqueue_many(
    jobs: Iterable[object],
    *,
    using: str | None = None,
    notify: bool = True,
    returning: Literal[True] = True,
    **options: Unpack[Options],
) -> list[Job[Any]]: ...


@overload
def enqueue_many(
    jobs: Iterable[object],
    *,
    using: str | None = None,
    notify: bool = True,
    returning: Literal[False],
    **options: Unpack[Options],
) -> int: ...


def enqueue_many(
    jobs: Iterable[object],
    *,
    using: str | None = None,
    notify: bool = True,
    returning: bool = True,
    **options: Unpack[Options],
) -> list[Job[Any]] | int:
    """Insert many jobs on the connection of an alias: `Client.enqueue_many`, with `using` as in `enqueue`."""
    alias = settings.using() if using is None else using
    if returning:
        return client(alias).enqueue_many(alias, jobs, notify=notify, **options)
    return client(alias).enqueue_many(alias, jobs, notify=notify, returning=False, **options)


def _given(kind: str | None, options: Options) -> dict[str, Any]:
    """The keyword arguments that were given: beside a NewJob there may be none."""
    return {**({} if kind is None else {"kind": kind}), **options}
