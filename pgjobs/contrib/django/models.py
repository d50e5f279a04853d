"""The table of jobs as the ORM reads it, for the admin and for queries of the project's own."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from pgjobs.contrib.django import settings
from pgjobs.states import JobState


class TextArray(models.Field):  # type: ignore[misc]  # Django has no types
    """A text[], which psycopg reads as a list. Django's ArrayField wants `django.contrib.postgres` to be installed."""

    def db_type(self, connection: object) -> str:
        return "text[]"


def _quoted_table() -> str:
    """With quotes of its own, which Django then leaves as they are: so the name may have a schema."""
    return f'"{settings.schema()}"."job"'


class Job(models.Model):  # type: ignore[misc]
    """A row of the table of jobs. For reading: jobs are made by `enqueue`, and changed by the methods of the client. As
    with every model, routers decide which alias a query goes to; `Job.objects.using(alias)` names one."""

    id = models.BigIntegerField(primary_key=True)
    state = models.TextField(choices=[(str(state), str(state)) for state in JobState])
    queue = models.TextField()
    kind = models.TextField()
    priority = models.SmallIntegerField()
    attempt = models.IntegerField()
    max_attempts = models.IntegerField()
    scheduled_at = models.DateTimeField()
    created_at = models.DateTimeField()
    attempted_at = models.DateTimeField(null=True)
    finalized_at = models.DateTimeField(null=True)
    attempted_by = TextArray()
    tags = TextArray()
    schedule = models.TextField(null=True)
    args = models.JSONField()
    metadata = models.JSONField()
    errors = models.JSONField()
    output = models.JSONField(null=True)

    class Meta:
        managed = False
        db_table = _quoted_table()
        default_permissions = ("view", "change")  # who may act in the dashboard
        ordering: ClassVar[list[str]] = ["id"]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"
