"""What the database says of queues and duties, for Prometheus."""

from __future__ import annotations

from pgjobs.dashboard.request import Page, Request, Response
from pgjobs.metrics import CONTENT_TYPE, metrics_text


def show(request: Request) -> Response:
    """Read at most every ten seconds, however many ask, and waited for one second at most."""
    return Response(metrics_text(request.client), content_type=CONTENT_TYPE)


PAGES = (Page("/metrics", "metrics", show, role="viewer"),)
