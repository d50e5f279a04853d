"""`pgjobs work`."""

from __future__ import annotations

import argparse
import math
import os
import re
from datetime import timedelta
from functools import partial
from pathlib import Path

from pgjobs.application import check_target
from pgjobs.cli.arguments import Commands, duration, positive
from pgjobs.errors import PgjobsError
from pgjobs.worker_pool import WorkerPool

_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_COUNT = re.compile(r"[1-9][0-9]{0,8}")
_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")


def add_parser(commands: Commands) -> None:
    parser = commands.add_parser("work", help="run a worker pool of the application in one or more processes")
    parser.description = (
        "Run a worker pool in one or more processes, until SIGTERM, SIGINT or SIGQUIT. The first signal lets running "
        "jobs end, for the stop timeout at most; the second cuts them off; the third kills. A process that dies is "
        "replaced."
    )
    parser.usage = "%(prog)s [options] [MODULE:POOL]"  # the generated one fills the screen at each slip
    parser.add_argument(
        "target",
        nargs="?",
        metavar="MODULE:POOL",
        help="a WorkerPool, or a function without arguments that makes one; the current directory is on sys.path "
        "(default, in the command line of a framework: the pool of its application)",
    )
    parser.add_argument(
        "--queues",
        type=queues,
        metavar="NAME=THREADS,...",
        help="work only these queues of the pool, with so many threads each; NAME alone keeps the pool's number",
    )
    parser.add_argument(
        "--processes", type=processes, default=1, metavar="N", help="how many, or auto: one for each CPU (default: 1)"
    )
    parser.add_argument("--max-jobs", type=positive, metavar="N", help="replace a process when it has run so many jobs")
    parser.add_argument("--max-rss", type=size, metavar="SIZE", help="replace one that uses more memory, such as 512M")
    parser.add_argument("--max-age", type=some_time, metavar="TIME", help="replace one that has lived for so long: 1h")
    parser.add_argument(
        "--stop-timeout", type=some_time, metavar="TIME", help="how long a stop waits for jobs (default: the pool's)"
    )
    parser.add_argument(
        "--start-timeout",
        type=some_time,
        default=timedelta(minutes=1),
        metavar="TIME",
        help="kill a process that has not imported the application by then (default: 1m)",
    )
    parser.add_argument(
        "--reload", action="store_true", help="replace the processes when the application's code changes"
    )
    parser.add_argument("--health", type=_address, metavar="HOST:PORT", help="serve /livez, /readyz and /metrics there")
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error", "critical"],
        default="info",
        help="of the log, if the application does not configure logging (default: %(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=["text", "json"],
        default="text",
        help="the same (default: %(default)s)",
    )
    parser.add_argument("--burst", action="store_true", help="exit when the queues are empty")
    parser.add_argument(
        "--no-wait",
        action="store_false",
        dest="wait",
        help="fail if the tables are missing or old, or the database is away, instead of waiting for them",
    )
    parser.set_defaults(run=partial(_work, parser))


def _work(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    try:
        from pgjobs.processes import log_output
        from pgjobs.processes.settings import ChildSettings
        from pgjobs.processes.supervisor import Supervisor
    except (ImportError, AttributeError) as error:  # there are no such signals and sockets
        raise PgjobsError(f"`pgjobs work` needs Linux or macOS: {error}") from error
    target = options.target or (None if options.framework is None else options.framework.pool)
    if target is None:
        parser.error("which worker pool? give MODULE:POOL, as in app.worker:pool")
    check_target(target, WorkerPool)
    log_output.configure(options.log_level, options.log_format)
    settings = ChildSettings(
        target=target,
        queues=options.queues,
        stop_timeout=_seconds(options.stop_timeout),
        start_timeout=options.start_timeout.total_seconds(),
        max_jobs=options.max_jobs,
        max_rss=options.max_rss,
        max_age=_seconds(options.max_age),
        burst=options.burst,
        wait=options.wait,
        reload=options.reload,
        metrics=options.health is not None,
        log_level=options.log_level,
        log_format=options.log_format,
        program="pgjobs" if options.framework is None else options.framework.program,
    )
    return Supervisor(settings, processes=options.processes, health=options.health).run()


def _seconds(duration: timedelta | None) -> float | None:
    return None if duration is None else duration.total_seconds()


def _address(text: str) -> tuple[str, int]:
    from pgjobs.processes.health import address

    try:
        return address(text)
    except PgjobsError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def processes(text: str) -> int:
    """A number of processes, or `auto`: as many as this process may use CPUs."""
    if text != "auto":
        return positive(text)
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_LIMIT.read_text().split()  # of a container
        return max(1, min(cpus, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cpus


def queues(text: str) -> dict[str, int | None]:
    """Names of queues with numbers of threads, as in `default=10,mail`."""
    found: dict[str, int | None] = {}
    for part in text.split(","):
        name, equals, threads = (each.strip() for each in part.partition("="))
        if not name or name in found or (equals and not _COUNT.fullmatch(threads)):
            raise argparse.ArgumentTypeError(f"must be queues and threads, as in default=10,mail=2, not {text!r}")
        found[name] = int(threads) if equals else None
    return found


def some_time(text: str) -> timedelta:
    """A duration that is longer than nothing."""
    if not duration(text):
        raise argparse.ArgumentTypeError(f"must be longer than nothing, not {text!r}")
    return duration(text)


def size(text: str) -> int:
    """A size such as `512M` or `2G`, in bytes."""
    match = re.fullmatch(r"([1-9][0-9]{0,8})([KMG])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a size such as 512M or 2G, not {text!r}")
    return int(match[1]) * _SIZES[match[2]]
