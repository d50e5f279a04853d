"""The dashboard: pages that show jobs, queues, schedules and workers, and let operators change them.

    from pgjobs.dashboard import Dashboard, User

    app = Dashboard(client, auth=auth)         # a WSGI app; auth(environ) returns a User, or None to refuse

It needs Werkzeug and Jinja2: `pip install 'pgjobs-psycopg[dashboard]'`. `pgjobs dashboard` serves it from a shell.
"""

from pgjobs.dashboard.access import Auth, User
from pgjobs.dashboard.app import Dashboard

__all__ = ["Auth", "Dashboard", "User"]
