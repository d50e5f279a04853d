"""The guide: one page of Markdown for each topic, installed with the package. `pgjobs guide` prints them."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources

from pgjobs.errors import PgjobsError

#: In the order in which a newcomer reads them.
TOPICS = (
    "enqueue",
    "unique",
    "handlers",
    "schedules",
    "cancel",
    "long-jobs",
    "batches",
    "hooks",
    "control",
    "command-line",
    "dashboard",
    "frameworks",
    "sqlalchemy",
    "flask",
    "django",
    "async",
    "testing",
    "deploying",
    "production",
    "doctor",
    "logging",
    "telemetry",
    "performance",
    "how-it-works",
    "coming-from",
)


def read(topic: str) -> str:
    """The page of a topic. Raises PgjobsError for a topic that does not exist."""
    if topic not in TOPICS:
        near = get_close_matches(topic.lower().replace("_", "-").removesuffix(".md"), TOPICS, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise PgjobsError(f"the guide has no topic {topic!r}; {meant}the topics are {', '.join(TOPICS)}")
    return (resources.files(__name__) / f"{topic}.md").read_text(encoding="utf-8")


def summary(topic: str) -> str:
    """The sentence with which the page of a topic begins: what the page is for."""
    return " ".join(read(topic).split("\n\n")[1].split())
