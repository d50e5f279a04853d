"""Flask: enqueue in the request's transaction, run handlers in an app context, and `flask pgjobs work`."""

from pgjobs.contrib.flask.extension import Pgjobs

__all__ = ["Pgjobs"]
