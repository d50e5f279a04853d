"""The pages. Each module registers its own in PAGES."""

from pgjobs.dashboard.pages import bulk, enqueue, failures, job, jobs, overview, queues

PAGES = (*overview.PAGES, *jobs.PAGES, *bulk.PAGES, *job.PAGES, *failures.PAGES, *queues.PAGES, *enqueue.PAGES)

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
)
