"""Django: enqueue on the connection of an alias, and run handlers inside `atomic()`.

With "pgjobs.contrib.django" in INSTALLED_APPS there are tables by `manage.py migrate`, handlers in the `jobs.py` of
each app, `manage.py pgjobs work`, and a list of the jobs in the admin. `DjangoSource` alone needs none of that.
"""

from pgjobs.contrib.django.shortcuts import aenqueue, client, enqueue, enqueue_many, handles
from pgjobs.contrib.django.source import DjangoSource

__all__ = ["DjangoSource", "aenqueue", "client", "enqueue", "enqueue_many", "handles"]
