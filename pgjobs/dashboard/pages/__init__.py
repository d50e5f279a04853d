"""The pages. Each module registers its own in PAGES."""

from pgjobs.dashboard.pages import (
    audit,
    bulk,
    enqueue,
    failures,
    health,
    help,
    job,
    jobs,
    maintenance,
    overview,
    queues,
    schedules,
    workers,
)

PAGES = (
    *overview.PAGES,
    *jobs.PAGES,
    *bulk.PAGES,
    *job.PAGES,
    *failures.PAGES,
    *queues.PAGES,
    *schedules.PAGES,
    *workers.PAGES,
    *enqueue.PAGES,
    *health.PAGES,
    *maintenance.PAGES,
    *audit.PAGES,
    *help.PAGES,
)

#: The pages that all pages link to, by name, with their titles.
NAV = (
    ("overview", "Overview"),
    ("jobs", "Jobs"),
    ("failures", "Failures"),
    ("queues", "Queues"),
    ("schedules", "Schedules"),
    ("workers", "Workers"),
    ("enqueue", "Enqueue"),
    ("health", "Health"),
    ("maintenance", "Maintenance"),
    ("audit", "Audit"),
    ("help", "Help"),
)
