"""The app `pgjobs` of a Django project."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from django.apps import AppConfig
from django.core.signals import setting_changed
from django.utils.module_loading import autodiscover_modules

from pgjobs.client import Client
from pgjobs.contrib.django import settings
from pgjobs.contrib.django.source import DjangoSource
from pgjobs.contrib.django.task_setup import serve_tasks
from pgjobs.work_map import WorkMap
from pgjobs.worker_pool import WorkerPool

if TYPE_CHECKING:
    from pgjobs.dashboard import Dashboard


class PgjobsConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Owns the handlers of the project, and a client for each alias."""

    name = "pgjobs.contrib.django"
    label = "pgjobs"
    verbose_name = "Jobs"
    default_auto_field = "django.db.models.BigAutoField"

    #: Of the class, so that `handles` works wherever a module is imported, also before the apps are ready.
    work_map: ClassVar[WorkMap] = WorkMap()

    def __init__(self, app_name: str, app_module: object) -> None:
        super().__init__(app_name, app_module)
        self._clients: dict[str, Client] = {}
        self._dashboard: Dashboard | None = None

    def ready(self) -> None:
        from pgjobs.contrib.django import checks

        checks.register()
        setting_changed.connect(self._setting_changed)
        autodiscover_modules("jobs")

    def client(self, using: str | None = None) -> Client:
        """The client of an alias, by default of `PGJOBS["USING"]`; the same one at each call, also in a forked child.
        Raises InvalidSetting if there is no such alias, or for wrong settings."""
        alias = settings.using() if using is None else using
        if alias not in self._clients:
            made = Client(
                DjangoSource(alias), schema=settings.schema(), work_map=self.work_map, **settings.client_settings()
            )
            serve_tasks(made)
            self._clients.setdefault(alias, made)  # another thread may have made it meanwhile
        return self._clients[alias]

    def pool(self) -> WorkerPool:
        """A new worker pool of the project's handlers, as the settings say. Raises InvalidSetting."""
        return WorkerPool(self.client(), self.work_map, **settings.pool_settings())

    @property
    def dashboard(self) -> Dashboard:
        """The dashboard of the project, as the settings say. Raises InvalidSetting."""
        if self._dashboard is None:
            from pgjobs.contrib.django.dashboard import make_dashboard

            self._dashboard = make_dashboard()
        return self._dashboard

    def close(self) -> None:
        """Close the connections that the clients have beside those of Django. The next use makes new clients."""
        clients, self._clients, self._dashboard = self._clients, {}, None
        for client in clients.values():
            client.close()

    def _setting_changed(self, *, setting: str, **_: object) -> None:
        if setting in ("PGJOBS", "TASKS"):
            self.close()
