"""What the owner of a run says: commands, checkpoints of local steps, and its last word.

R1 every request carries the owner token. R5 park and close need `seen` = length. R7 a request is applied once: requests of
a token are numbered, and one that was applied changes nothing when it comes again. An owner that was told more than the
store has, or something else, must rewind. R10 one that foretold what stands next has seen that, too.
"""

from __future__ import annotations

from treadle.protocol.retry import DEFAULT_POLICY
from treadle.v1.common_pb2 import FAILURE_KIND_LOST, Failure
from treadle.v1.history_pb2 import (
    AttemptStarted,
    HistoryEvent,
    RunCompleted,
    RunDiverged,
    StepCompleted,
    TimerCancelled,
    TimerStarted,
)
from treadle.v1.state_pb2 import (
    COMMAND_STATE_CHILD,
    COMMAND_STATE_EVENT,
    COMMAND_STATE_HELD,
    COMMAND_STATE_TIMER,
    RUN_OUTCOME_COMPLETED,
    RUN_STATE_NEEDS_ATTENTION,
    RUN_STATE_OPEN,
    CommandRow,
)
from treadle.v1.worker_service_pb2 import (
    ANSWER_LEASE_LOST,
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_REWIND,
    ANSWER_SETTLED,
    ANSWER_UNKNOWN,
    REPORT_KIND_CANCELLED,
    REPORT_KIND_COMPLETED,
    REPORT_KIND_FAILED,
    Answer,
    Checkpoint,
    Command,
    OwnerAnswer,
    OwnerRequest,
)

from . import attempts, children, continuation, deadlines, event_waits, failures, marks, progress, runs, signals
from .requests import Asked
from .view import RunView

__all__ = ("asked", "lost_locals")

_FROM_WITHIN_MS = 5_000
"""A sleep counts from when its code asked, not from when many others' commits let it through; a worker that stood still for
longer would make pauses shorter than whoever wrote them wants."""
_SHORT_MS = 10
_OWN = signals.NOTES.union(("child_scheduled",))
_ROWS = frozenset(("schedule_step", "start_timer", "schedule_child", "wait_for_event"))
_ENDS = frozenset(("complete", "fail", "cancelled", "continue_run"))
_OUTCOMES = signals.NOTES.union(
    (
        "step_completed",
        "step_failed",
        "step_cancelled",
        "timer_fired",
        "timer_cancelled",
        "child_completed",
        "child_failed",
        "event_matched",
        "event_wait_timed_out",
        "event_wait_cancelled",
        "event_wait_refused",
    )
)


def asked(view: RunView, request: Asked) -> OwnerAnswer:
    """Take one request of the owner."""
    ask = request.request
    refusal = _fence(view, ask)
    if refusal is not None:
        return _answer(ask, refusal)
    if ask.WhichOneof("final") == "release":  # whatever it was told: it gives back what it holds
        return _answer(ask, _release(view, ask))
    _renew(view, request)
    if _ahead(view, ask):
        return _answer(ask, ANSWER_REWIND)
    head = view.head
    known = ask.seq <= head.owner_seq
    if not known and ask.seq != head.owner_seq + 1:
        return _answer(ask, ANSWER_REWIND)  # a gap: the store lost what it had acknowledged
    before = len(view.events)
    first = head.length
    # An applied request whose last word had ended the ownership would have met the fence: it was refused with NEWS.
    answer: Answer.ValueType = ANSWER_NEWS if known and ask.WhichOneof("final") else ANSWER_OK
    if ask.HasField("foretold"):
        _follow(view, ask)
    if not known:
        head.owner_seq = ask.seq
        if not head.timeout_known:
            deadlines.announced(head, ask.run_timeout_ms)
        _record(view, ask)
        answer = _last_word(view, ask, first)
    view.returning = ""
    reply = _answer(ask, answer)
    if len(view.events) > before:
        reply.position, reply.revision = head.length, view.revision
    _tell(view, ask, reply, before)
    return reply


def _answer(ask: OwnerRequest, answer: Answer.ValueType) -> OwnerAnswer:
    return OwnerAnswer(run_id=ask.run_id, token=ask.token, seq=ask.seq, answer=answer)


def _fence(view: RunView, ask: OwnerRequest) -> Answer.ValueType | None:
    head = view.head
    if not view.exists:
        return ANSWER_UNKNOWN if view.loaded.tombstone is None else ANSWER_SETTLED
    if view.over or head.incarnation != ask.incarnation:
        return ANSWER_SETTLED
    if head.state != RUN_STATE_OPEN or head.owner.token != ask.token:
        return ANSWER_LEASE_LOST
    return None


def _ahead(view: RunView, ask: OwnerRequest) -> bool:
    """Whether the owner was told something that the history does not have at that position."""
    if max(ask.told, ask.seen) > view.head.length:
        return True
    if ask.HasField("foretold") and _came_true(view, ask) is None:
        return True
    if ask.told == 0:
        return False
    for event in view.events:
        if event.position == ask.told:
            return event.revision != ask.told_revision
    if view.loaded.event is None:
        return True
    return HistoryEvent.FromString(view.loaded.event).revision != ask.told_revision


def _came_true(view: RunView, ask: OwnerRequest) -> StepCompleted | None:
    """Return what the owner's code was fed before its event, if that stands next (R10)."""
    told = ask.foretold
    for event in (*view.loaded_events(), *view.events):
        if event.position == ask.seen + 1:
            found = event.step_completed
            same = (found.command_id, found.attempt, found.ended_ms) == (told.command_id, told.attempt, told.ended_ms)
            return found if same else None
    return None


def _follow(view: RunView, ask: OwnerRequest) -> None:
    """The code has seen that event, too. What follows short steps stays with their worker: to get elsewhere takes longer."""
    ended = _came_true(view, ask)
    assert ended is not None, "it was looked at before"
    _seen(view, ask.seen + 1)
    if ended.duration_ms < _SHORT_MS:
        view.returning = view.head.owner.worker_id


def _renew(view: RunView, request: Asked) -> None:
    """Each answer is a commit under the token: lease set anew, send time, and what the code has seen."""
    head, ask = view.head, request.request
    owner = head.owner
    owner.lease_set_ms = view.now
    owner.sent_ms = max(owner.sent_ms, ask.sent_ms)
    owner.replica_id = request.replica_id
    _seen(view, ask.seen)
    view.dirty = True


def _seen(view: RunView, position: int) -> None:
    head = view.head
    head.seen = max(head.seen, min(position, head.length))
    if head.seen >= head.length:
        head.watch_due_ms = 0


def _record(view: RunView, ask: OwnerRequest) -> None:
    settled = _settled_unseen(view, ask.seen) if ask.commands or ask.checkpoints else ()
    for command in ask.commands:
        if command.command_id not in settled:
            _command(view, command)
    for checkpoint in ask.checkpoints:
        if checkpoint.command_id not in settled:
            _checkpoint(view, checkpoint)
    view.head.undoing = view.head.undoing or ask.undoing
    if ask.checkpoints or any(not c.HasField("start_local_step") for c in ask.commands):
        view.head.losses = 0


def _settled_unseen(view: RunView, seen: int) -> set[str]:
    """Return what has an outcome that the owner's code had not been fed when it spoke.

    Rows tell what is open, so what is settled looks as if it had never been. An owner that is answered before it speaks
    again cannot mean such a command; one that does not wait, or says a thing under two numbers, must not begin or end it
    once more (A5, R7).
    """
    events = [*view.loaded_events(), *view.events]
    kinds = [(event, event.WhichOneof("kind")) for event in events if event.position > seen]
    return {getattr(event, kind).command_id for event, kind in kinds if kind in _OUTCOMES}


def _command(view: RunView, command: Command) -> None:
    kind = command.WhichOneof("kind")
    known = view.row(command.command_id) is not None or view.settled_here(command.command_id)
    if kind in _ROWS and known:
        return  # recorded: asking again is nothing (R7)
    if kind == "schedule_step":
        attempts.schedule(view, command)
    elif kind == "start_timer":
        _start_timer(view, command)
    elif kind == "start_local_step":
        _start_local(view, command)
    elif kind == "schedule_child":
        children.schedule(view, command)
    elif kind == "publish_state":
        signals.publish(view, command)
    elif kind == "answer_signal":
        signals.answer(view, command)
    elif kind == "mark_change":
        marks.mark(view, command)
    elif kind == "set_tags":
        marks.set_tags(view, command)
    elif kind == "wait_for_event":
        event_waits.begin(view, command)
    elif kind == "send_event":
        event_waits.send(view, command)
    elif kind == "cancel":
        row = view.row(command.command_id)
        if row is None:
            return  # settled before: its outcome stands in the history
        if row.state == COMMAND_STATE_TIMER:
            view.event(timer_cancelled=TimerCancelled(command_id=row.command_id))
            view.drop(row)
        elif row.state == COMMAND_STATE_CHILD:
            children.cancel(view, row)
        elif row.state == COMMAND_STATE_EVENT:
            event_waits.cancel(view, row)
        else:
            attempts.cancel_step(view, row)


def _start_timer(view: RunView, command: Command) -> None:
    spec = command.start_timer
    known = abs(view.now - spec.from_ms) <= _FROM_WITHIN_MS
    due = (spec.from_ms if known else view.now) + spec.delay_ms
    view.put(CommandRow(command_id=command.command_id, state=COMMAND_STATE_TIMER, digest=command.digest, due_ms=due))
    view.event(timer_started=TimerStarted(command_id=command.command_id, digest=command.digest, fire_at_ms=due))


def _start_local(view: RunView, command: Command) -> None:
    spec = command.start_local_step
    row = view.row(command.command_id) or CommandRow(
        command_id=command.command_id, local=True, name=spec.name, digest=command.digest
    )
    row.state = COMMAND_STATE_HELD
    row.try_number = spec.try_number
    row.tries_before = spec.tries_before
    row.attempt = max(row.attempt, spec.tries_before) + 1
    row.at_most_once = spec.at_most_once
    row.due_ms = 0
    view.put(row)
    if spec.at_most_once:
        _forget_start(view, row.command_id)
        view.head.started_locals.append(row)
    view.event(
        attempt_started=AttemptStarted(
            command_id=command.command_id,
            attempt=row.attempt,
            try_number=row.try_number,
            worker_id=view.head.owner.worker_id,
            alone=view.head.alone,
            name=spec.name,
            digest=command.digest,
            local=True,
        )
    )


def _checkpoint(view: RunView, told: Checkpoint) -> None:
    """Record the outcome of a try of a local step."""
    row = view.row(told.command_id)
    _forget_start(view, told.command_id)
    if row is None and told.kind == REPORT_KIND_COMPLETED:
        _completed(view, told, told.try_number)
        return
    if row is None:
        row = CommandRow(command_id=told.command_id, local=True, name=told.name, digest=told.digest)
        row.state = COMMAND_STATE_HELD
        row.tries_before = told.tries_before
    if row.attempt < told.try_number:
        row.attempt = told.try_number
    row.try_number = max(row.try_number, told.try_number)
    if told.kind == REPORT_KIND_COMPLETED:
        _completed(view, told, row.attempt)
        view.drop(row)
        return
    known = view.row(told.command_id) is not None
    if not known:
        view.put(row)
    row.retry.CopyFrom(told.retry if told.HasField("retry") else DEFAULT_POLICY)
    if told.deadline_ms:
        row.deadline_ms, row.total_timeout_ms = told.deadline_ms, told.total_timeout_ms
    if told.kind == REPORT_KIND_CANCELLED:
        attempts.settle_cancelled(view, row)
    elif told.kind == REPORT_KIND_FAILED:
        attempts.fail_try(view, row, told.failure, told.retry_after_ms, told.duration_ms)
        if told.HasField("progress"):
            progress.hand_on(view, told)
    else:
        lost = Failure(kind=FAILURE_KIND_LOST, type="Lost", message="cut off by a drain")
        attempts.settle_failed(view, row, lost, told.duration_ms)


def _completed(view: RunView, told: Checkpoint, attempt: int) -> None:
    view.event(
        step_completed=StepCompleted(
            command_id=told.command_id,
            attempt=attempt,
            result=told.result,
            name=told.name,
            digest=told.digest,
            local=True,
            duration_ms=told.duration_ms,
            ended_ms=told.ended_ms,
        )
    )


def _release(view: RunView, ask: OwnerRequest) -> Answer.ValueType:
    if view.head.owner_seq + 1 == ask.seq and not _ahead(view, ask):
        _record(view, ask)  # outcomes that came with it
    view.head.losses = 0  # it lives
    lost_locals(view)  # announced, no outcome: whether their code began is not known here
    runs.release(view, ask.release.reason)
    return ANSWER_OK


def _last_word(view: RunView, ask: OwnerRequest, length: int) -> Answer.ValueType:
    """Park, close or give back, if the request says so; park and close need that the code has seen everything."""
    final = ask.WhichOneof("final")
    if final is None:
        return ANSWER_OK
    head = view.head
    if final != "diverged" and not _saw_all(view, ask, final, length):
        head.owner_seq = ask.seq
        return ANSWER_NEWS
    head.losses = 0
    if final == "park":
        runs.park(view, cached=ask.park.cached)
    elif final == "complete":
        view.event(
            run_completed=RunCompleted(
                result=ask.complete.result, cancel_too_late=head.cancel_requested, unread=ask.unread
            )
        )
        runs.close(view, RUN_OUTCOME_COMPLETED)
    elif final == "fail":
        failures.failed(view, ask)
    elif final == "cancelled" and head.timed_out:
        deadlines.end_run(view, list(ask.unread), ask.cancelled)
    elif final == "cancelled":
        failures.cancelled(view, ask)
    elif final == "continue_run":
        continuation.ask(view, ask.continue_run)
    else:
        _diverged(view, ask)
    return ANSWER_OK


def _saw_all(view: RunView, ask: OwnerRequest, final: str, length: int) -> bool:
    """R5; what came with an outcome, and nothing is waited for, is no news to the code that said it.

    An outcome said `ahead` counts on the checkpoint beside it: its event must be all that follows `seen`.
    """
    if ask.seen + ask.HasField("foretold") < length:
        return False
    if not ask.ahead or final not in _ENDS:
        new = [event for event in view.events if event.position > length]
        return not new or (final in _ENDS and all(event.WhichOneof("kind") in _OWN for event in new))
    alone = len(ask.checkpoints) == 1 and not ask.commands and view.head.length == length + 1
    return alone and view.events[-1].HasField("step_completed")


def _diverged(view: RunView, ask: OwnerRequest) -> None:
    lost_locals(view)  # cut off; the next owner must not start them again
    head = view.head
    head.ClearField("owner")
    head.cached_by = ""
    head.alone = False
    head.state = RUN_STATE_NEEDS_ATTENTION
    head.watch_due_ms = view.now + view.env.settings.look_ms
    head.attention = f"the code diverged from the history: expected {ask.diverged.expected}; found {ask.diverged.found}"
    view.event(run_diverged=RunDiverged(expected=ask.diverged.expected, found=ask.diverged.found))


def _tell(view: RunView, ask: OwnerRequest, reply: OwnerAnswer, before: int) -> None:
    """Bring the events behind `seen`: what was loaded, then what was appended, without a gap."""
    own = {c.command_id for c in ask.checkpoints if c.kind == REPORT_KIND_COMPLETED}
    foretold = {ask.foretold.command_id} if ask.HasField("foretold") else set()
    last = ask.seen
    for index, event in enumerate((*view.loaded_events(), *view.events), -len(view.loaded_events())):
        if event.position != last + 1:
            continue
        last += 1
        reply.events.append(event)
        if index >= before:
            _strip(reply.events[-1], own, reply)
        elif foretold and last == ask.seen + 1:
            _strip(reply.events[-1], foretold, reply)


def _strip(event: HistoryEvent, own: set[str], reply: OwnerAnswer) -> None:
    """Leave out what the request itself brought."""
    kind = event.WhichOneof("kind")
    if kind == "step_scheduled":
        event.step_scheduled.ClearField("input")
    elif kind == "step_completed" and event.step_completed.command_id in own:
        event.step_completed.ClearField("result")
        reply.result_omitted.append(event.step_completed.command_id)
    elif kind == "child_scheduled":
        event.child_scheduled.ClearField("input")
    elif kind == "state_published":
        event.state_published.ClearField("state")
    elif kind == "signal_answered":
        event.signal_answered.ClearField("result")
    elif kind == "event_sent":
        event.event_sent.ClearField("data")


def _forget_start(view: RunView, command_id: str) -> None:
    started = view.head.started_locals
    for index, row in enumerate(started):
        if row.command_id == command_id:
            del started[index]
            return


def lost_locals(view: RunView) -> None:
    """At-most-once local steps of an owner that is gone: announced, no outcome, so they fail (A9)."""
    for started in view.head.started_locals:
        row = view.adopt(started)
        failure = Failure(
            kind=FAILURE_KIND_LOST,
            type="Lost",
            message=f"local step {row.name!r} may have started when its worker was lost or drained, "
            "and may run at most once",
        )
        attempts.settle_failed(view, row, failure)
    del view.head.started_locals[:]
