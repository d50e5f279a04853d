"""The tables, and the model of them that the admin reads."""

from __future__ import annotations

from typing import ClassVar

from django.db import migrations
from django.db.migrations.state import ModelState

from pgjobs.contrib.django.models import Job
from pgjobs.contrib.django.operations import MigrateTables

# Taken from the model itself: it is not managed, so it changes no table, and its table depends on the settings.
_job = ModelState.from_model(Job)


class Migration(migrations.Migration):  # type: ignore[misc]  # Django has no types
    initial = False  # so that --fake-initial, which looks for managed tables, runs it
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar[list[object]] = [
        MigrateTables(1),
        migrations.CreateModel(_job.name, list(_job.fields.items()), _job.options, _job.bases, _job.managers),
    ]
