"""What the doctor finds: values for users."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How urgent a finding is.

    ok        nothing is wrong
    notice    worth knowing, or could not be looked at
    warning   something will go wrong, or is slower or less safe than it should be
    critical  jobs are not worked, or data may be lost
    """

    OK = "ok"
    NOTICE = "notice"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for ok to 3 for critical, to compare by."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that the doctor found: `what` is wrong, `why` that matters, and in `advice` what to do.

    `check` is the name of the check that found it, as in the table of `pgjobs guide doctor`. No field quotes args,
    errors or the text of a statement.
    """

    check: str
    severity: Severity
    what: str
    why: str
    advice: str
