"""Django: enqueue on the connection of an alias, and run handlers inside `atomic()`."""

from pgjobs.contrib.django.source import DjangoSource

__all__ = ["DjangoSource"]
