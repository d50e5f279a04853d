"""The worker pool of a Django project, for `pgjobs work pgjobs.contrib.django.worker:pool`."""

from __future__ import annotations

import django
from django.apps import apps

from pgjobs.contrib.django.shortcuts import config
from pgjobs.worker_pool import WorkerPool


def pool() -> WorkerPool:
    """The pool, as `PGJOBS` of the settings says. Sets Django up first, by DJANGO_SETTINGS_MODULE."""
    if not apps.ready:
        django.setup()
    return config().pool()
