"""The version of pgjobs; pyproject.toml repeats it."""

__version__ = "0.1.0"
