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
    metrics,
    overview,
    queues,
    schedules,
    workers,
)

#: The pages that all pages link to: their names and titles, and the modules of the pages that belong to them.
_SECTIONS = (
    ("overview", "Overview", [overview]),
    ("jobs", "Jobs", [jobs, bulk, job]),
    ("failures", "Failures", [failures]),
    ("queues", "Queues", [queues]),
    ("schedules", "Schedules", [schedules]),
    ("workers", "Workers", [workers]),
    ("enqueue", "Enqueue", [enqueue]),
    ("health", "Health", [health, metrics]),
    ("maintenance", "Maintenance", [maintenance]),
    ("audit", "Audit", [audit]),
    ("help", "Help", [help]),
)
NAV = tuple((name, title) for name, title, _ in _SECTIONS)
#: By the name of a page: that of the page in NAV to which it belongs.
SECTION_OF = {page.name: name for name, _, modules in _SECTIONS for module in modules for page in module.PAGES}
PAGES = tuple(page for _, _, modules in _SECTIONS for module in modules for page in module.PAGES)
