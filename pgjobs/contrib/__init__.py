"""Integrations with SQLAlchemy, Django, Flask, OpenTelemetry and Sentry. pgjobs itself imports none of them."""
