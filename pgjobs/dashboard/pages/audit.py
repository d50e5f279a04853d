"""The audit: who changed what on the dashboard, and when."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pgjobs.dashboard.acts import ACTS
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response

_ROWS = 100
_LONGEST_TARGET = 500
_ABOUT_ARGS = {"args", "metadata", "text", "error"}  # conditions that quote what jobs contain
_ID = re.compile(r"\d{1,18}", re.ASCII)


def show(request: Request) -> Response:
    before = request.text("before", "")
    if before and not _ID.fullmatch(before):
        raise Problem(400, "`before` is not the id of a row of the audit.", "Start again at the newest rows.")

    def hides(target: Mapping[str, Any]) -> bool:
        return not request.shows_args and not _ABOUT_ARGS.isdisjoint(target)

    with request.reading() as conn:
        rows = request.queries.list_audit(conn, int(before) if before else None, _ROWS + 1)
    return request.render("audit.html", rows=rows[:_ROWS], more=len(rows) > _ROWS, acts=ACTS, short=_short, hides=hides)


def _short(target: Any) -> str:
    """What was changed, on a line."""
    text = json.dumps(target, ensure_ascii=False)
    return text if len(text) <= _LONGEST_TARGET else text[:_LONGEST_TARGET] + "…"


PAGES = (Page("/audit", "audit", show, role="viewer"),)
