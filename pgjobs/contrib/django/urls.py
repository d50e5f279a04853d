"""The dashboard outside of the admin: `path("jobs/", include("pgjobs.contrib.django.urls"))`. Who is not logged in is
sent to LOGIN_URL."""

from __future__ import annotations

from django.contrib.auth.decorators import login_required
from django.urls import path

from pgjobs.contrib.django.dashboard import dashboard

urlpatterns = [
    path("", login_required(dashboard), name="pgjobs_dashboard"),
    path("<path:path>", login_required(dashboard), name="pgjobs_dashboard_page"),
]
