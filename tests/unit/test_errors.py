"""The errors as objects: what another process that gets one pickled has of it."""

from __future__ import annotations

import copy
import inspect
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgjobs import errors

TEXT = "what is wrong"
MADE: dict[str, tuple[Any, ...]] = {
    "AmbiguousJob": (7, ["mail", "default"]),
    "JobNotFinished": (7, "running", timedelta(seconds=5)),
    "JobNotFound": (7,),
    "JobTimedOut": (timedelta(seconds=5),),
    "RetryAfter": (timedelta(seconds=5), TEXT),
    "RetryAt": (datetime(2026, 1, 1, tzinfo=UTC), TEXT),
    "Snooze": (timedelta(seconds=5),),
}
CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, BaseException) and cls.__module__ == errors.__name__
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_comes_out_of_a_pickle_as_it_went_in(cls: type[BaseException]) -> None:
    """UnknownKind and others put their message into their message once more."""
    error = cls(*MADE.get(cls.__name__, (TEXT,)))
    error.add_note("a note")
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (type(same), str(same), same.args, same.__notes__) == (cls, str(error), error.args, ["a note"])
        own = {name: value for name, value in vars(error).items() if name != "_info"}
        assert {name: vars(same)[name] for name in own} == own
