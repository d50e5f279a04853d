"""Access to Postgres: connections, loading and sending statements, migrations."""
