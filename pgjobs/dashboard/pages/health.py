"""Health: what the doctor finds in the database, the tables and the work."""

from __future__ import annotations

from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request) -> Response:
    """The doctor reads in transactions of its own, which are read-only."""
    findings = request.site.checkup.findings()
    wrong = [finding for finding in findings if finding.severity.rank > 0]
    fine = [finding for finding in findings if finding.severity.rank == 0]
    return request.render("health.html", wrong=wrong, fine=fine)


PAGES = (Page("/health", "health", show, role="viewer"),)
