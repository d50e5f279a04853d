"""The scripts of one attempt: which statements go together in one message, for each way to claim and to finish.

    a finish without a claim     [release, role, settings] complete, commit, [reset]
    a claim without a finish     begin, [session,] timeout, claim, commit, lock, savepoint
    both                         [release, role, settings] complete, commit, [reset,] timeout, claim, commit, lock, ...
    both in one transaction      complete, claim, commit, lock, savepoint

What stands in brackets is sent only if the handler has used its connection, or at the first claim of a checkout. An
error in a statement skips all that follow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pgjobs.db import statements
from pgjobs.execution.requests import ClaimRequest, ClaimSettings, Session
from pgjobs.execution.script import Script, commands, without_comments

Step = tuple[str, bytes]  # a label and a statement


class FinishRequest(NamedTuple):
    """What a finish has to do besides writing the outcome."""

    session: Session | None = None  # as it was at the claim
    used: bool = True  # the handler has used its connection
    saved: bool = True  # a savepoint was set before the handler's first statement
    has_data: bool = False  # the handler has set metadata or output
    cancelled: bool = False  # the job has a cancel request, which is noted in its metadata
    async_commit: bool = False  # the commit need not wait for the disk
    counts: bool = True  # count the statements that the handler has prepared by name


class NextClaim(NamedTuple):
    """A claim that goes in the message of a finish."""

    request: ClaimRequest
    savepoint: bool  # set the savepoint ahead, not before the handler's first statement
    together: bool  # in the transaction of the finish


# The setting, by its parameter, and its value in the transaction of a job. `check_interval` depends on the server.
_JOB_SETTINGS = {
    "idle_timeout": "0",
    "check_interval": None,
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "user_timeout": "25s",
}
_SPELLINGS = {"25s": ("25s", "25000")}  # the server shows some settings without their unit


def lacking(found: Sequence[str], check_interval: str, *, by_tcp: bool) -> tuple[str, ...]:
    """The settings of a job's transaction that a session does not have by itself; `found` are its values."""
    lacks = []
    for (name, value_of_all), value in zip(_JOB_SETTINGS.items(), found, strict=True):
        wanted = value_of_all or check_interval
        if value not in _SPELLINGS.get(wanted, (wanted,)) and (by_tcp or name in ("idle_timeout", "check_interval")):
            lacks.append(name)
    return tuple(lacks)


def job_values(check_interval: str) -> dict[str, str]:
    """The settings of a job's transaction."""
    return {name: value or check_interval for name, value in _JOB_SETTINGS.items()}


class Scripts:
    """The scripts in one schema."""

    def __init__(self, work: Mapping[str, bytes], claims: Mapping[str, bytes], around: Mapping[str, bytes]) -> None:
        self._work = work
        self._claims = {False: claims, True: around}
        self._known: dict[Any, Script] = {}  # those that depend on no settings of claims

    # --- claim

    def claim(self, request: ClaimRequest, session: Session | None, *, savepoint: bool) -> Script:
        """Without a session, the script reads it, and sets all settings."""
        lacks = tuple(_JOB_SETTINGS) if session is None else session.lacks
        key = (request.queue, request.which, bool(request.set_aside), session is None, lacks, savepoint)
        script = request.settings.scripts.get(key)
        if script is None:
            before = [self._step("begin"), self._step("set_claim_timeout")]
            if session is None:
                before.append(self._step("read_session"))
            claim = self._claim(request, lacks, savepoint=savepoint, together=False)
            script = request.settings.scripts[key] = Script([*before, *claim], self._fixed(request, None))
        return script

    def _claim(self, request: ClaimRequest, lacks: Sequence[str], *, savepoint: bool, together: bool) -> list[Step]:
        work, settings = self._work, request.settings
        claim = self._claims[bool(request.set_aside)][request.which]
        returning = b""
        if not together:
            returning = b"RETURNING " + without_comments(work["claim_alone"])
        elif settings.detached or settings.synchronous_commit:
            returning = b"RETURNING " + without_comments(work["claim_with_finish"])
        lock = work["lock"].replace(b"{settings}", self._settings(settings, lacks))
        steps = [("claim", claim.replace(b"{returning}", returning))]
        steps += [("committed" if together else "claimed", work["commit_and_begin"]), ("lock", lock)]
        return [*steps, self._step("savepoint")] if savepoint else steps

    def _settings(self, settings: ClaimSettings, lacks: Sequence[str]) -> bytes:
        pieces = [self.job_settings(lacks)] if lacks else []
        if settings.bounded_by is not None:
            pieces.append(without_comments(self._work["job_bound"]))
        return b", ".join(pieces) or b"true"

    def job_settings(self, lacks: Sequence[str]) -> bytes:
        """The columns of a SELECT that sets these settings."""
        wanted = {name: "" if name in lacks else None for name in _JOB_SETTINGS}
        return statements.without_unused(without_comments(self._work["job_settings"]), wanted)

    @staticmethod
    def _fixed(request: ClaimRequest, session: Session | None) -> dict[str, Any]:
        settings = request.settings
        return {
            **_role(session), **job_values(settings.check_interval), "queue": request.queue,
            "worker": settings.worker, "kinds": settings.kinds, "detached": settings.detached,
            "lease": settings.lease, "synchronous_commit": settings.synchronous_commit,
            "bounded_by": settings.bounded_by, "bound": settings.bound, "bounds": settings.bounds,
        }  # fmt: skip

    # --- finish

    def complete(self, queue: str, finish: FinishRequest, then: NextClaim | None) -> Script:
        """Commit the handler's writes together with the completion, and claim the next job."""
        key: tuple[Any, ...] = (queue, finish)
        known = self._known
        if then is not None:
            key = (*key, then.savepoint, then.together, bool(then.request.set_aside))
            known = then.request.settings.scripts
        script = known.get(key)
        if script is None:
            script = known[key] = self._complete(queue, finish, then)
        return script

    def _complete(self, queue: str, finish: FinishRequest, then: NextClaim | None) -> Script:
        session = finish.session
        steps = [*self._before(finish), *self._completion(finish)]
        if then is None:
            fixed = {"queue": queue, "claim_timeout": None, **_role(session)}
            return self._made(finish, [*steps, *self._ending(finish)], fixed)
        assert session is not None
        claim = self._claim(then.request, session.lacks, savepoint=then.savepoint, together=then.together)
        fixed = {**self._fixed(then.request, session), "claim_timeout": "30s" if then.together else None}
        if then.together:
            return self._made(finish, [*steps, *claim], fixed)
        steps.append(("committed", self._work["commit_and_begin"]))
        if finish.used:
            steps += [*self._steps("reset_session"), self._step("set_claim_timeout_used")]
            steps += [self._step("count_prepared")] if finish.counts else []
        else:
            steps.append(self._step("set_claim_timeout"))
        return self._made(finish, [*steps, *claim], fixed)

    def complete_again(self, queue: str, finish: FinishRequest) -> Script:
        """Complete a job whose completion was undone together with the claim behind it. The token alone guards it."""
        key = ("again", queue, finish)
        if key not in self._known:
            steps = [self._step("rollback"), self._step("begin"), *self._undo_settings(finish)]
            steps += self._completion(finish)
            self._known[key] = Script([*steps, *self._ending(finish)], {"queue": queue, "claim_timeout": None})
        return self._known[key]

    def _completion(self, finish: FinishRequest) -> list[Step]:
        name = "complete" if finish.has_data else "complete_used" if finish.used else "complete_untouched"
        steps = [("complete", self._work[name])]
        return [*steps, ("cancelled", self._work["cancel_if_requested"])] if finish.cancelled else steps

    def _before(self, finish: FinishRequest) -> list[Step]:
        """What goes before the outcome of a handler that has succeeded."""
        # also where it was not used: a row locked by a transaction and written by its subtransaction has a MultiXact
        steps = [self._step("release_savepoint")] if finish.saved else []
        return [*steps, *self._undo_settings(finish)]

    def _undo_settings(self, finish: FinishRequest) -> list[Step]:
        """Undo the handler's settings of its transaction before the outcome is written."""
        steps = []
        if finish.used:
            steps += [*self._role_steps(finish.session), *self._steps("drop_statement_timeout")]
            steps += self._steps("drop_other_settings")
            steps += self._deallocation(finish.session)
        return [*steps, *([self._step("commit_async")] if finish.async_commit else [])]

    def _ending(self, finish: FinishRequest) -> list[Step]:
        steps = [("committed", self._work["commit"])]
        if finish.used:
            steps += [*self._steps("reset_session"), self._step("release_advisory_locks")]
            steps += [self._step("count_prepared")] if finish.counts else []
        return steps

    def fail(self, finish: FinishRequest) -> Script:
        """Roll back the handler's writes, keep the row's lock, and commit the outcome."""
        key = ("fail", finish)
        if key not in self._known:
            undo = [self._step("rollback_to_savepoint"), self._step("release_savepoint")] if finish.saved else []
            steps = [*undo, *self._undo_settings(finish), *self._outcome(), *self._ending(finish)]
            self._known[key] = self._made(finish, steps, _role(finish.session))
        return self._known[key]

    def finish_late(self, finish: FinishRequest, *, after_loss: bool) -> Script:
        """Write the outcome in a new transaction."""
        key = ("late", finish, after_loss)
        if key not in self._known:
            steps = [*self._steps("begin_late_finish"), *self._role_steps(finish.session)]
            steps += [self._step("commit_async")] if finish.async_commit else []
            steps += [self._step("restore_claim")] if after_loss else []
            steps += [*self._outcome(), *self._ending(finish)]
            self._known[key] = self._made(finish, steps, _role(finish.session))
        return self._known[key]

    def _outcome(self) -> list[Step]:
        return [("finish", self._work["finish"]), ("cancelled", self._work["cancel_if_requested"])]

    def _made(self, finish: FinishRequest, steps: list[Step], fixed: Mapping[str, Any]) -> Script:
        """Before a statement is prepared behind a handler, the role of the claim must be restored."""
        undo = self.restore_role(finish.session) if finish.used and finish.session is not None else None
        return Script(steps, fixed, undo_role=undo)

    # --- the session

    def abandon(self, session: Session | None) -> Script:
        """Roll back and reset the session. Behind a pooler the next client gets the session; and a role that the
        handler has committed may not write the outcome."""
        key = ("abandon", session)
        if key not in self._known:
            steps = [self._step("rollback")]
            if session is not None:  # else no handler has used the connection
                steps += [*self._steps("reset_session"), self._step("release_advisory_locks")]
                if not session.shared:
                    steps += self._steps("set_session_role")
                else:
                    steps += [*self._role_steps(session), *self._deallocation(session)]
            self._known[key] = Script(steps, _role(session))
        return self._known[key]

    def roll_back(self) -> Script:
        return self.abandon(None)

    def restore_role(self, session: Session) -> Script:
        """Return to the role of the claim, within the transaction."""
        key = ("role", session.user, session.role)
        if key not in self._known:
            self._known[key] = Script(self._role_steps(session), _role(session))
        return self._known[key]

    @staticmethod
    def restoring(session: Session) -> list[str]:
        """The names of the statements that restore the role of the claim, and drop what a handler has prepared where a
        pooler gives the session to other clients."""
        return ["set_claim_role", *(["deallocate"] if session.shared else [])]

    def _role_steps(self, session: Session | None) -> list[Step]:
        return [] if session is None else self._steps("set_claim_role")

    def _deallocation(self, session: Session | None) -> list[Step]:
        """Drop what the handler has prepared, where a pooler gives the session to other clients."""
        return [] if session is None or not session.shared else [self._step("deallocate")]

    # --- steps

    def _step(self, name: str) -> Step:
        return (name, self._work[name])

    def _steps(self, name: str) -> list[Step]:
        """A step for each command of a statement."""
        return [(name, command) for command in commands(self._work[name])]


def _role(session: Session | None) -> dict[str, Any]:
    if session is None:
        return {}
    return {"session_user": session.user, "role": session.role}
