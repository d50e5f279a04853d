"""`flask pgjobs`: the commands of pgjobs, for the app that Flask has loaded."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

import click
from flask import Flask
from flask.cli import AppGroup, ScriptInfo

from pgjobs.contrib.flask.app_jobs import AppJobs
from pgjobs.errors import InvalidSetting
from pgjobs.worker_pool import WorkerPool

if TYPE_CHECKING:
    from pgjobs.cli.app import App

_FLASK_APP = "FLASK_APP"


class Commands(AppGroup):
    """The group `pgjobs` of an app's commands. It imports them when one is called: a web process needs none."""

    def __init__(self, app_jobs: AppJobs) -> None:
        super().__init__("pgjobs", help="Work, show and change the jobs of this app.")
        self._app_jobs = app_jobs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_descriptions())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        text = _descriptions().get(cmd_name)
        return None if text is None else _Command(cmd_name, text, self._app_jobs)


@cache
def _descriptions() -> dict[str, str]:
    from pgjobs.cli import commands_in_framework

    return commands_in_framework()


class _Command(click.Command):
    """A command of pgjobs, which reads its arguments itself."""

    def __init__(self, name: str, text: str, app_jobs: AppJobs) -> None:
        super().__init__(name, help=text, add_help_option=False)
        self._app_jobs = app_jobs

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.args = list(args)
        return ctx.args

    def invoke(self, ctx: click.Context) -> Any:
        from pgjobs.cli import main
        from pgjobs.cli.app import Framework

        if self.name == "work":
            _name_app(ctx.find_object(ScriptInfo))
        framework = Framework(program="flask pgjobs", load=self._load, pool=f"{__name__}:{worker_pool.__name__}")
        with self._app_jobs.app.app_context():
            code = main([self.name or "", *ctx.args], framework=framework)
        ctx.exit(code)

    def _load(self) -> App:
        from pgjobs.cli.app import App

        return App(self._app_jobs.client, self._app_jobs.work_map)


def _name_app(info: ScriptInfo | None) -> None:
    """Let worker processes find the app as Flask has found it. Without a name they look for wsgi.py and app.py, as
    Flask does."""
    if info is not None and info.app_import_path:
        os.environ[_FLASK_APP] = info.app_import_path
    elif info is not None and info.create_app is not None and _FLASK_APP not in os.environ:
        raise click.UsageError(
            "worker processes load the app by its name, and this program makes the app itself: set FLASK_APP, as in "
            "FLASK_APP=shop:create_app"
        )


def worker_pool() -> WorkerPool:
    """The worker pool of the app that FLASK_APP names, else of wsgi.py or app.py: for each process of `work`."""
    app: Flask = ScriptInfo(app_import_path=os.environ.get(_FLASK_APP)).load_app()
    jobs = app.extensions.get("pgjobs")
    if jobs is None:
        raise InvalidSetting(f"{app!r} has no Pgjobs: call init_app(app) of one")
    with app.app_context():
        pool: WorkerPool = jobs.worker_pool()
    return pool
