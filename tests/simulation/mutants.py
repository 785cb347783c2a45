"""Rules switched off, one at a time: a simulation that does not notice would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from treadle.controlplane.machine import attempts, deferral, leases, owners, progress, runs
from treadle.controlplane.machine.requests import Asked, CheckLease, Reported
from treadle.controlplane.machine.view import RunView
from treadle.controlplane.store.cache import RunCache
from treadle.controlplane.store.port import Change, Committed, Outcome
from treadle.v1.history_pb2 import HistoryEvent, StepCompleted
from treadle.v1.state_pb2 import COMMAND_STATE_HELD, RUN_STATE_PARKED, CommandRow, Holder
from treadle.v1.worker_service_pb2 import AttemptProgress, Grant, OwnerRequest, ReportAnswer
from treadle.worker.core import feed
from treadle.worker.core.core import WorkerCore
from treadle.worker.core.rights import Right, Session

from .replica import SimReplica

__all__ = ("MUTANTS",)

Patch = AbstractContextManager[Any]


def _right_never_ends() -> Patch:
    return patch.object(Right, "valid", lambda self, session, now_ms: True)


def _right_survives_the_session() -> Patch:
    def valid(self: Right, session: Session, now_ms: int) -> bool:
        return now_ms < self.until_ms

    return patch.object(Right, "valid", valid)


def _old_tokens_count() -> Patch:
    original = attempts.report

    def report(view: RunView, request: Reported) -> ReportAnswer:
        row = view.row(request.report.command_id)
        if row is not None and row.state == COMMAND_STATE_HELD:
            request.report.token = row.holder.token
        return original(view, request)

    return patch.object(attempts, "report", report)


def _close_without_having_seen() -> Patch:
    original = owners._last_word

    def last_word(view: RunView, ask: OwnerRequest, length: int) -> Any:
        ask.seen = view.head.length
        return original(view, ask, view.head.length)

    return patch.object(owners, "_last_word", last_word)


def _parked_runs_sleep_on() -> Patch:
    original = runs.wake

    def wake(view: RunView) -> None:
        if view.head.state != RUN_STATE_PARKED:
            original(view)

    return patch.object(runs, "wake", wake)


def _no_lease_is_checked() -> Patch:
    def check(view: RunView, request: CheckLease) -> None:
        view.dirty = True

    return patch.object(leases, "check", check)


def _no_watch() -> Patch:
    return patch.object(SimReplica, "_gone", lambda self, head, fields, command_id: False)


def _lost_charges_run_again() -> Patch:
    original = leases._lose_step

    def lose(view: RunView, row: Any, loss: Any) -> None:
        row.at_most_once = False
        original(view, row, loss)

    return patch.object(leases, "_lose_step", lose)


def _silence_after_one_second() -> Patch:
    original = leases.judge

    def judge(holder: Holder, seen: Any, settings: Any) -> Any:
        return original(holder, seen, replace(settings, silence_ms=1000))

    return patch.object(leases, "judge", judge)


@contextmanager
def _requests_are_applied_twice() -> Iterator[None]:
    """Neither their numbers nor what is settled behind `seen` is looked at."""
    original = owners.asked

    def asked(view: RunView, request: Asked) -> Any:
        view.head.owner_seq = min(view.head.owner_seq, request.request.seq - 1)
        return original(view, request)

    with patch.object(owners, "asked", asked), patch.object(owners, "_settled_unseen", lambda view, seen: set()):
        yield


def _an_outcome_said_ahead_counts_in_any_case() -> Patch:
    original = owners._saw_all

    def saw_all(view: RunView, ask: OwnerRequest, final: str, length: int) -> bool:
        return ask.ahead or original(view, ask, final, length)

    return patch.object(owners, "_saw_all", saw_all)


def _what_was_foretold_need_not_stand() -> Patch:
    return patch.object(owners, "_came_true", lambda view, ask: StepCompleted())


def _what_was_told_ahead_is_not_compared() -> Patch:
    return patch.object(feed, "_same", lambda found, told: True)


def _checks_overlook_a_new_lease() -> Patch:
    return patch.object(leases, "_is_still", lambda holder, request: True)


def _a_conflict_is_not_forgotten() -> Patch:
    original = RunCache.committed

    def committed(self: RunCache, changes: Sequence[Change], answers: Sequence[Committed]) -> None:
        kept = [pair for pair in zip(changes, answers, strict=True) if pair[1].outcome is not Outcome.CONFLICT]
        original(self, [change for change, _ in kept], [answer for _, answer in kept])

    return patch.object(RunCache, "committed", committed)


def _what_is_outdated_decides() -> Patch:
    return patch.object(SimReplica, "may_be_outdated", lambda self, loaded, decision: False)


def _a_push_gives_a_right_when_it_is_read() -> Patch:
    original = WorkerCore._pushed

    def pushed(self: WorkerCore, grant: Grant, now_ms: int) -> None:
        grant.sent_ms = now_ms
        original(self, grant, now_ms)

    return patch.object(WorkerCore, "_pushed", pushed)


@contextmanager
def _unsettled_twice() -> Iterator[None]:
    """A report of what is settled is recorded again."""
    original = attempts.report

    def report(view: RunView, request: Reported) -> ReportAnswer:
        told = request.report
        reply = original(view, request)
        if reply.answer == 2 and view.exists and not view.closed:
            view.event(step_completed=HistoryEvent().step_completed.__class__(command_id=told.command_id))
        return reply

    with patch.object(attempts, "report", report):
        yield


def _finished_while_a_later_attempt_begins() -> Patch:
    return patch.object(deferral, "_may_begin", lambda view, row: None)


def _tokens_are_of_their_attempt() -> Patch:
    """Each attempt makes a token of its own, and those before are worth nothing."""

    def unhold(row: CommandRow) -> None:
        row.deferral_key = row.holder.token
        row.ClearField("holder")

    return patch.object(deferral, "unhold", unhold)


def _progress_of_old_tokens_counts() -> Patch:
    original = progress._said

    def said(view: RunView, told: AttemptProgress) -> Any:
        row = view.row(told.command_id)
        if row is not None and row.state == COMMAND_STATE_HELD:
            told.token, told.number = row.holder.token, row.progress_number + 1
        return original(view, told)

    return patch.object(progress, "_said", said)


MUTANTS: dict[str, Callable[[], Patch]] = {
    "A2 no lease is checked": _no_lease_is_checked,
    "A4 a right never ends": _right_never_ends,
    "A4 a right survives its session": _right_survives_the_session,
    "A4 take-over before the right has ended": _silence_after_one_second,
    "A4 the right of a push counts from when it is read": _a_push_gives_a_right_when_it_is_read,
    "A5 old tokens count": _old_tokens_count,
    "A5 a settled step is recorded again": _unsettled_twice,
    "A6 a check overlooks a new lease": _checks_overlook_a_new_lease,
    "A9 a lost at-most-once attempt runs again": _lost_charges_run_again,
    "A11 a step is finished while a later attempt begins": _finished_while_a_later_attempt_begins,
    "D all attempts of a try make one token": _tokens_are_of_their_attempt,
    "P progress of old tokens counts": _progress_of_old_tokens_counts,
    "R3 a parked run sleeps on": _parked_runs_sleep_on,
    "R5 close without having seen": _close_without_having_seen,
    "R5 an outcome said ahead counts in any case": _an_outcome_said_ahead_counts_in_any_case,
    "R10 what was foretold need not stand": _what_was_foretold_need_not_stand,
    "R4 what was told ahead is not compared": _what_was_told_ahead_is_not_compared,
    "R7 a request is applied twice": _requests_are_applied_twice,
    "cache: a conflict is not forgotten": _a_conflict_is_not_forgotten,
    "cache: an outdated view decides that nothing is to be done": _what_is_outdated_decides,
    "watch: nobody looks for lost jobs": _no_watch,
}
"""Rule -> what switches it off."""
