"""Integrations with SQLAlchemy and Django. pgjobs itself imports none of them."""
