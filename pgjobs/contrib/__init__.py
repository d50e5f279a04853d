"""Integrations with SQLAlchemy, Django and Flask. pgjobs itself imports none of them."""
