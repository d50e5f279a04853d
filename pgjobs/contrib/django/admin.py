"""The jobs in the admin: a list with filters, and a page for each job. Nothing can be changed there; the list has a
link to the dashboard, in which users who may change jobs can act.

The list stays fast on a table of millions: it counts and shows the newest 10,000 jobs that fit, its filters offer what
is known without reading the table, and it can be sorted by id alone.
"""

from __future__ import annotations

import json
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models.fields.json import KT
from django.db.models.functions import Left
from django.urls import path, reverse
from django.utils.html import format_html, format_html_join

from pgjobs.contrib.django import settings
from pgjobs.contrib.django.models import Job
from pgjobs.contrib.django.shortcuts import client, config
from pgjobs.states import JobState
from pgjobs.work_map import shown_args

MOST = 10_000
_LONG = ("args", "metadata", "errors", "output", "attempted_by")  # which the list does not show


class _NewestJobs(Paginator):  # type: ignore[misc]  # Django has no types
    """Counts no further than the jobs that the list can show."""

    @cached_property
    def count(self) -> int:
        found: int = self.object_list.order_by().values("id")[:MOST].count()
        return found


class _JobList(ChangeList):  # type: ignore[misc]
    """Sorts by the columns that an index has in order, also if a URL asks for another one."""

    def get_ordering_field(self, field_name: str) -> Any:
        return super().get_ordering_field(field_name) if field_name in self.sortable_by else None


class _EqualFilter(admin.SimpleListFilter):  # type: ignore[misc]
    """Compares a column with one of the values that are offered."""

    def queryset(self, request: Any, queryset: Any) -> Any:
        value = self.value()
        return queryset if value is None else queryset.filter(**{self.parameter_name: value})


class StateFilter(_EqualFilter):
    title = parameter_name = "state"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(str(state), str(state)) for state in JobState]


class QueueFilter(_EqualFilter):
    """Offers the queues that are worked, are paused or have jobs waiting."""

    title = parameter_name = "queue"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        alias = settings.using()
        return [(queue.name, queue.name) for queue in client(alias).queues.list(alias)]


class KindFilter(_EqualFilter):
    """Offers the kinds that have a handler."""

    title = parameter_name = "kind"

    def lookups(self, request: Any, model_admin: Any) -> list[tuple[str, str]]:
        return [(kind, kind) for kind in sorted(config().work_map)]


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):  # type: ignore[misc]
    list_display = ("id", "state", "kind", "queue", "attempts", "scheduled_at", "finalized_at", "last_error")
    list_filter = (StateFilter, QueueFilter, KindFilter)
    list_max_show_all = 0
    ordering = ("-id",)
    sortable_by = ("id",)
    search_fields = ("id", "kind")
    search_help_text = f"The id or the whole kind of a job. The list has the newest {MOST:,} jobs that fit."
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = _NewestJobs
    actions = None
    change_list_template = "admin/pgjobs/job/change_list.html"
    fieldsets = (
        (None, {"fields": ("id", "kind", "state", "queue", "priority", "attempts", "tag_list", "schedule")}),
        ("Times", {"fields": ("created_at", "scheduled_at", "attempted_at", "finalized_at", "workers")}),
        ("Data", {"fields": ("pretty_args", "pretty_metadata", "pretty_output")}),
        ("Failed attempts", {"fields": ("failures",)}),
    )
    readonly_fields = tuple(name for _, fieldset in fieldsets for name in fieldset["fields"])

    # --- nothing can be changed

    def has_add_permission(self, request: Any) -> bool:
        return False

    def has_change_permission(self, request: Any, obj: Job | None = None) -> bool:
        return False

    def has_delete_permission(self, request: Any, obj: Job | None = None) -> bool:
        return False

    # --- the dashboard

    def get_urls(self) -> list[Any]:
        if not _has_dashboard():
            return list(super().get_urls())
        from pgjobs.contrib.django.dashboard import dashboard

        view = self.admin_site.admin_view(dashboard, cacheable=True)  # the dashboard says itself what is kept
        return [
            path("dashboard/", view, name="pgjobs_dashboard"),
            path("dashboard/<path:path>", view, name="pgjobs_dashboard_page"),
            *super().get_urls(),
        ]

    def changelist_view(self, request: Any, extra_context: dict[str, Any] | None = None) -> Any:
        address = reverse(f"{self.admin_site.name}:pgjobs_dashboard") if _has_dashboard() else None
        return super().changelist_view(request, {"dashboard": address, **(extra_context or {})})

    # --- what is read

    def lookup_allowed(self, lookup: str, value: object, request: Any = None) -> bool:
        """Only the filters of the list: by others a viewer could find out the value of a secret field in `args`."""
        return lookup in {each.parameter_name for each in self.list_filter}

    def get_changelist(self, request: Any, **kwargs: Any) -> type[ChangeList]:
        return _JobList

    def get_queryset(self, request: Any) -> Any:
        last = Left(KT("errors__-1__error"), 200)
        return super().get_queryset(request).using(settings.using()).defer(*_LONG).annotate(last=last)

    def get_object(self, request: Any, object_id: str, from_field: str | None = None) -> Job | None:
        if not _is_id(object_id):
            return None
        # after a restore from a dump several queues may have a job with this id
        found: Job | None = Job.objects.using(settings.using()).filter(id=int(object_id)).order_by("queue").first()
        return found

    def get_search_results(self, request: Any, queryset: Any, search_term: str) -> tuple[Any, bool]:
        term = search_term.strip()
        if not term:
            return queryset, False
        return queryset.filter(id=int(term)) if _is_id(term) else queryset.filter(kind=term), False

    # --- how it is shown

    @admin.display(description="attempt")
    def attempts(self, job: Job) -> str:
        return f"{job.attempt} of {job.max_attempts}"

    @admin.display(description="last error", empty_value="")
    def last_error(self, job: Any) -> str | None:
        return job.last and str(job.last).partition("\n")[0]

    @admin.display(description="tags")
    def tag_list(self, job: Job) -> str:
        return ", ".join(job.tags)

    @admin.display(description="attempted by")
    def workers(self, job: Job) -> object:
        return format_html_join("", "<div>{}</div>", ((worker,) for worker in job.attempted_by))

    @admin.display(description="args")
    def pretty_args(self, job: Job) -> object:
        return _pretty(json.loads(shown_args(config().work_map, job.kind, json.dumps(job.args))))

    @admin.display(description="metadata")
    def pretty_metadata(self, job: Job) -> object:
        return _pretty(job.metadata)

    @admin.display(description="output")
    def pretty_output(self, job: Job) -> object:
        return _pretty(job.output)

    @admin.display(description="errors")
    def failures(self, job: Job) -> object:
        return format_html_join("", "{}", ((_failure(error),) for error in reversed(job.errors)))


def _has_dashboard() -> bool:
    """Whether what the dashboard needs is installed."""
    return find_spec("werkzeug") is not None and find_spec("jinja2") is not None


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < 2**63


def _pretty(value: object) -> object:
    return format_html("<pre>{}</pre>", json.dumps(value, indent=2, ensure_ascii=False))


def _failure(error: Any) -> object:
    """One entry of `errors`; as JSON if it has another form."""
    if not isinstance(error, dict) or "error" not in error:
        return _pretty(error)
    head = f"attempt {error.get('attempt')}, {error.get('at')}: {error['error']}"
    return format_html("<pre>{}\n\n{}</pre>", head, error.get("trace") or "")
