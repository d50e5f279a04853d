"""The version of this code; the distribution of pyproject.toml has the same."""

__version__ = "0.1.0"
