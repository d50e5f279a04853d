"""Decides the outcome of an attempt that has failed, with the policies of its handler and of the worker pool."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

from pgjobs.backoff import Backoff
from pgjobs.clean_text import forget_details, one_line
from pgjobs.errors import Cancel, Discard, JobCancelled
from pgjobs.execution.attempt import Attempt
from pgjobs.execution.outcome import Outcome, decide
from pgjobs.hooks import ErrorHandler
from pgjobs.job import JobState
from pgjobs.return_values import WarnOnce


@dataclass(frozen=True, slots=True, kw_only=True)
class Decider:
    """Decides outcomes for the threads of one process. `backoff` is for handlers without one of their own."""

    backoff: Backoff
    error_handler: ErrorHandler | None = None
    error_details: bool = True  # whether the DETAIL, HINT and CONTEXT of Postgres errors are stored and logged
    complaints: WarnOnce = field(default_factory=WarnOnce)

    def decide(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Decide the outcome, once: after a severed connection both the watchdog's report and the attempt's own thread
        come here."""
        with attempt.slot.deciding:
            if attempt.outcome is None:
                attempt.outcome = self._decide_with_error_handler(attempt, error)
            return attempt.outcome

    def _decide_with_error_handler(self, attempt: Attempt, error: BaseException) -> Outcome:
        if not self.error_details:
            forget_details(error)
        try:
            outcome = self._decide_by_policy(attempt, error)
        except BaseException as broken:  # the signal lacks its values, because its constructor was not called
            unclear = TypeError(f"{type(error).__name__} has no time to wait: {one_line(broken)}")
            unclear.__cause__ = error
            outcome = self._decide_by_policy(attempt, unclear)
        if self.error_handler is None or outcome.error is None or isinstance(error, Cancel | Discard | JobCancelled):
            return outcome
        match self.error_handler.judge(attempt.job, error, error_details=self.error_details):
            case Cancel():
                return replace(outcome, state=JobState.CANCELLED, delay=None, at=None)
            case Discard():
                return replace(outcome, state=JobState.DISCARDED, delay=None, at=None)
        return outcome

    def _decide_by_policy(self, attempt: Attempt, error: BaseException) -> Outcome:
        """Decide by the policy of the handler, then by that of the pool. If the args do not fit, only by that of the
        pool, because the policy of the handler may read them."""
        own_policy = attempt.handler.backoff if attempt.handler is not None and attempt.args_fit else None

        def complain(policy: Backoff, broken: BaseException) -> None:
            what = "backoff of its handler" if policy is own_policy else "backoff of the worker pool"
            instead = "using the worker pool's" if policy is own_policy else "using River's policy"
            self.complaints(attempt.job.kind, what, broken, instead=instead)

        policies = (self.backoff,) if own_policy is None else (own_policy, self.backoff)
        ran = timedelta(seconds=attempt.run_seconds)
        return decide(attempt.job, error, *policies, ran=ran, complain=complain)
