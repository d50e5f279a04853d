"""`pgjobs dashboard`: serves the dashboard to browsers on this machine."""

from __future__ import annotations

import argparse
import socket

from pgjobs.cli.arguments import Commands, add_database, number
from pgjobs.cli.database import connect
from pgjobs.errors import PgjobsError

_HOST = "127.0.0.1"


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("dashboard", help="serve the dashboard to browsers on this machine")
    parser.description = (
        "Serve the dashboard on 127.0.0.1 until Ctrl-C. Every account of this machine may use it. To open it "
        "to others, mount it in your application, behind its login: `pgjobs guide dashboard` says how."
    )
    parser.add_argument("--port", type=number, default=8080, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--read-only", action="store_true", help="allow no changes")
    parser.add_argument("--show-args", action="store_true", help="show args without being asked for them")
    add_database(parser, rights="pgjobs_operator, or of pgjobs_viewer with --read-only")
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    try:
        from werkzeug.serving import WSGIRequestHandler, make_server

        from pgjobs.dashboard import Dashboard
        from pgjobs.dashboard.access import local_operator
    except ImportError as error:
        raise PgjobsError(
            f"the dashboard needs Werkzeug and Jinja2 ({error}): pip install 'pgjobs-psycopg[dashboard]'"
        ) from error

    class Quiet(WSGIRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
            """Do not log each request."""

    with connect(options) as app:
        dashboard = Dashboard(
            app.client,
            auth=local_operator,
            work_map=app.work_map,
            read_only=options.read_only,
            show_args=options.show_args,
        )
        with _listening(options.port) as listening:
            port = listening.getsockname()[1]
            server = make_server(_HOST, port, dashboard, True, request_handler=Quiet, fd=listening.fileno())
            print(f"http://{_HOST}:{port}/ shows the jobs in schema {app.client.schema}; Ctrl-C ends it", flush=True)
            try:
                server.serve_forever()
            finally:
                server.server_close()
    return 0


def _listening(port: int) -> socket.socket:
    try:
        return socket.create_server((_HOST, port))
    except (OSError, OverflowError) as error:
        raise PgjobsError(f"cannot listen on port {port}: {error}; give another --port") from error
