"""The help: the guide that ships with this version."""

from __future__ import annotations

from pgjobs import guide
from pgjobs.dashboard import markdown
from pgjobs.dashboard.problem import Problem
from pgjobs.dashboard.request import Page, Request, Response


def show(request: Request) -> Response:
    return request.render("help.html", topics={topic: _plain(guide.summary(topic)) for topic in guide.TOPICS})


def _plain(text: str) -> str:
    return text.replace("`", "")


def show_topic(request: Request, topic: str) -> Response:
    if topic not in guide.TOPICS:
        raise Problem(404, "The guide has no such page.", "The page Help lists them.")

    def address(to: str, anchor: str) -> str | None:
        if to and to not in guide.TOPICS:
            return None
        return request.address("guide", topic=to or topic) + (f"#{anchor}" if anchor else "")

    text = guide.read(topic)
    title = text.split("\n", 1)[0].removeprefix("# ")
    return request.render("guide.html", title=title, topic=topic, html=markdown.to_html(text, address))


PAGES = (Page("/help", "help", show, role="viewer"), Page("/help/<topic>", "guide", show_topic, role="viewer"))
