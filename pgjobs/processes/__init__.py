"""`pgjobs work`: worker processes that each run the application's worker pool, and the parent that looks after them.

    parent    supervisor.py                       starts, replaces and stops the children
              child_process.py, places.py         the children, as the parent sees them
              health.py, notify.py, reloader.py   tell a load balancer and systemd, and watch the code
    child     child.py                            imports the application, runs its pool, reports; ends with its parent
              application.py, limits.py           find the pool, and say when the process has lived long enough
    between   messages.py                         lines of JSON over a socket

The parent never imports the application, and starts each child as a new interpreter: no connection, thread or lock is
ever inherited through a fork.
"""
