"""For the tests of a Django project with the app pgjobs.

class SignupTest(JobsMixin, TestCase):
    def test_it_greets(self):
        self.client.post("/signup", {"email": "ada@example.com"})
        self.jobs.assert_enqueued(Welcome("ada@example.com"))
        self.assertEqual(self.jobs.drain().completed, 1)
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import connections
from django.test import TestCase as DjangoTestCase
from django.test import TransactionTestCase

from pgjobs.contrib.django import settings
from pgjobs.contrib.django.shortcuts import config
from pgjobs.testing.jobs import Jobs

if TYPE_CHECKING:
    from unittest import TestCase as _Base
else:
    _Base = object

_OF_THE_POOL = ("middleware", "error_handler", "timeout")


class JobsMixin(_Base):
    """Gives a TestCase or a TransactionTestCase `self.jobs`: `pgjobs.testing.Jobs` with the handlers, the middleware,
    the error handler and the timeout of the project.

    In a TestCase jobs run inside the transaction of the test, and are rolled back with it. In a TransactionTestCase
    they commit, and all jobs are deleted after each test. After each class the connections that pgjobs has beside
    Django's are closed, so that the test database can be dropped. `jobs_using` is the alias of the jobs; None is
    `PGJOBS["USING"]`. Name it in `databases`, too.
    """

    jobs_using: ClassVar[str | None] = None
    databases: ClassVar[Any]

    @cached_property
    def jobs(self) -> Jobs:
        alias = self.jobs_using or settings.using()
        tx = alias if connections[alias].in_atomic_block else None
        given = settings.pool_settings()
        chosen = {name: given[name] for name in _OF_THE_POOL if name in given}
        return Jobs(config().client(alias), tx, config().work_map, **chosen)

    def _fixture_teardown(self) -> None:  # Django's, which runs only after a test whose fixture was set up
        super()._fixture_teardown()  # type: ignore[misc]
        commits = isinstance(self, TransactionTestCase) and not isinstance(self, DjangoTestCase)
        if commits and (self.jobs_using or settings.using()) in self.databases:
            self.jobs.clear()

    @classmethod
    def tearDownClass(cls) -> None:
        config().close()
        super().tearDownClass()
