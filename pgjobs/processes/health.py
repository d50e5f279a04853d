"""The health endpoints and the metrics of `pgjobs work`, served by threads of the parent.

/livez says whether the parent itself works, and does not depend on the database: a restart would not help it.
/readyz says whether all processes work, their database included.
/metrics has the metrics of all processes, as text for Prometheus.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any

from pgjobs.errors import InvalidSetting, PgjobsError
from pgjobs.loggers import get_logger
from pgjobs.observe.metrics import CONTENT_TYPE

log = get_logger("pgjobs.processes")

#: Whether it is so, and what the body says.
Answer = tuple[bool, dict[str, Any]]
_METRICS = "/metrics"
_REQUEST_WITHIN = 5.0  # seconds


class HealthServer:
    """Answers GET and HEAD for these paths, and for /metrics; each function is called in a thread of the server."""

    def __init__(
        self, host: str, port: int, answers: dict[str, Callable[[], Answer]], metrics: Callable[[], str]
    ) -> None:
        class Handler(_Handler):
            paths = answers
            metrics_text = staticmethod(metrics)

        class Server(ThreadingHTTPServer):
            address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
            daemon_threads = True

            def server_bind(self) -> None:
                TCPServer.server_bind(self)  # that of HTTPServer asks the DNS for the name of this host

            def handle_error(self, request: Any, client_address: Any) -> None:
                log.debug("health: a request failed", exc_info=True)  # such as a client that is gone

        try:
            self._server = Server((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise PgjobsError(f"cannot serve the health endpoints on {host or '*'}:{port}: {error}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="pgjobs/health", daemon=True)

    @property
    def url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{f'[{host!s}]' if ':' in str(host) else host!s}:{port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    paths: dict[str, Callable[[], Answer]]
    metrics_text: Callable[[], str]
    timeout = _REQUEST_WITHIN
    server_version = "pgjobs"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == _METRICS:
            self._send(HTTPStatus.OK, CONTENT_TYPE, self.metrics_text())
            return
        answer = self.paths.get(path)
        if answer is None:
            self._send_json(HTTPStatus.NOT_FOUND, {"error": f"there are only {', '.join([*self.paths, _METRICS])}"})
            return
        fine, body = answer()
        self._send_json(HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE, body)

    do_HEAD = do_GET

    def _send_json(self, status: HTTPStatus, body: dict[str, Any]) -> None:
        self._send(status, "application/json", f"{json.dumps(body)}\n")

    def _send(self, status: HTTPStatus, content_type: str, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("health: %s", format % args)


def address(text: str) -> tuple[str, int]:
    """Host and port of a text such as `127.0.0.1:8080`, `[::1]:8080` or `:8080`, which is all addresses."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (":" in host and host[:1] + host[-1:] != "[]"):
        raise InvalidSetting(f"health address must be host:port, as in 127.0.0.1:8080, not {text!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)
