"""Django: enqueue on an alias, and handlers that run inside `atomic()`."""

from pgjobs.contrib.django.source import DjangoSource

__all__ = ["DjangoSource"]
