"""The working copy of one run, on which a batch of requests is decided: what was loaded, and what becomes of it.

Rules change the view; `change()` turns what they did into the one commit of the batch. The entries among the timers move
lazily: an entry that stands earlier than what is due stays where it is and is moved when it fires, because moving it is
the dearest part of a commit. A run that comes to rest (parked, waiting, closed) moves its entry at once: else that of its
last owner's lease would cost a commit of its own two seconds later.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf.message import DecodeError

from treadle.controlplane.store.port import Change, Hint, Loaded
from treadle.protocol.ids import RunKey, span_id, trace_id
from treadle.protocol.tags import code_name
from treadle.protocol.topology import INLINE_INPUT_BYTES
from treadle.v1.common_pb2 import Payload, TraceContext
from treadle.v1.history_pb2 import HistoryEvent, RunParked
from treadle.v1.job_pb2 import JOB_KIND_RUN, JOB_KIND_STEP, Job
from treadle.v1.state_pb2 import (
    COMMAND_STATE_QUARANTINED,
    RUN_STATE_CLOSED,
    RUN_STATE_CONTINUING,
    RUN_STATE_OPEN,
    RUN_STATE_PARKED,
    RUN_STATE_QUEUED,
    RUN_STATE_RECORD,
    RUN_STATE_WAITING,
    CommandRow,
    Letter,
    OutboxEntry,
    RunHead,
)

from .env import Env
from .indexes import indexes_of, quarantine_index, step_waits, waiting_index, waiting_member
from .requests import CancelOrder, Decision, entry

__all__ = ("HOUR_MS", "RunView", "first_of")

HOUR_MS = 3_600_000
"""How often what stands still is looked at."""

_MATTERS = frozenset(
    (
        "step_completed",
        "step_failed",
        "step_cancelled",
        "timer_fired",
        "cancel_requested",
        "step_retried",
        "signal_received",
        "child_completed",
        "child_failed",
        "run_timed_out",
        "event_matched",
        "event_wait_timed_out",
        "event_wait_refused",
    )
)
"""Events that workflow code can notice: they wake a parked run and are hinted to an owner."""

_UNLIMITED = (RUN_STATE_CLOSED, RUN_STATE_CONTINUING, RUN_STATE_RECORD)
"""A run's timeout is looked at in all other states: what continues as new does so at once, and keeps its deadline."""

_ACTIVE = (RUN_STATE_OPEN, RUN_STATE_QUEUED)


def first_of(head: RunHead) -> int:
    """Return the incarnation by which clients know a run: that of its first part, if it continues as new."""
    return head.first_incarnation or head.incarnation


def _parked_at(head: RunHead) -> tuple[int, int, int] | None:
    """Position, revision and time of the last event, if it parked the run with a cached coroutine."""
    if head.state != RUN_STATE_PARKED or not head.cached_by:
        return None
    return head.length, head.last_revision, head.last_time_ms


@lru_cache(1024)
def _anchor(namespace: str, run_id: str, incarnation: int, sampled: bool) -> str:
    """Runs that are awake need it for each job; what is kept of those that sleep would be most of what they take."""
    span = span_id(namespace, run_id, incarnation, "anchor")
    return f"00-{trace_id(namespace, run_id, incarnation)}-{span}-{'01' if sampled else '00'}"


class RunView:
    """See the module. `head.state == 0` means: there is no such run.

    Attributes:
        moves: Something besides state and outcome changed by which the run is found.
        returning: Worker that has just ended the short step by which the code asks for others; "" if it was none.
    """

    def __init__(self, run: RunKey, loaded: Loaded, env: Env) -> None:
        self.run = run
        self.env = env
        self.now = env.now_ms
        self.loaded = loaded
        self.revision = env.bits64()
        self.head = RunHead.FromString(loaded.head) if loaded.head else RunHead()
        self.decision = Decision()
        self.events = self.decision.events
        self.dirty = False
        self.returning = ""
        self.restart = False
        self.keep: list[str] = []
        self.deleted = False
        self.matters = False
        self.moves = False
        self.may_sweep = False
        self.shown = self.hot = self.forgotten = False
        self.not_before_ms = 0
        self._stood = self.head.state, self.head.outcome
        self._was_active = self.head.state in _ACTIVE
        self._parked = _parked_at(self.head)
        self._page: list[HistoryEvent] | None = None
        self._rows: dict[str, CommandRow | None] = {}
        self._touched: dict[str, None] = {}
        self._inputs: dict[str, Payload] = {}
        self._new_inputs: dict[str, Payload] = {}
        self._notes: dict[str, bytes | None] = {}
        self._outbox: dict[str, bytes] = {}
        self._waits: dict[tuple[str, str], int | None] = {}
        self._stale_timers: list[str] = []
        self._waited: set[str] = set()

    # --- reading -------------------------------------------------------------------------------------------------
    @property
    def exists(self) -> bool:
        return self.head.state != 0

    @property
    def closed(self) -> bool:
        return self.head.state == RUN_STATE_CLOSED

    def row(self, command_id: str) -> CommandRow | None:
        """Return the row of an open command; None when it is settled, or never was."""
        if command_id not in self._rows:
            data = None if self.restart else self.loaded.fields.get(f"c:{command_id}")
            row = self._rows[command_id] = CommandRow.FromString(data) if data else None
            if row is not None and step_waits(row):
                self._waited.add(command_id)
        return self._rows[command_id]

    def settled_here(self, command_id: str) -> bool:
        """Whether an earlier request of this batch settled the command."""
        return command_id in self._touched and self._rows[command_id] is None

    def adopt(self, row: CommandRow) -> CommandRow:
        """Take a row that is known without having been loaded."""
        mine = self._rows[row.command_id] = self.row(row.command_id) or row
        return mine

    def all_rows(self) -> list[CommandRow]:
        """Return the open rows that were loaded (`Want.all_fields`) or written since; damaged ones go, so that a sweep ends."""
        for name in [] if self.restart else self.loaded.fields:
            if name.startswith("c:"):
                try:
                    self.row(name[2:])
                except DecodeError:
                    self._rows[name[2:]] = self._touched[name[2:]] = None
                    self.timer_gone(name[2:])
        return [row for row in self._rows.values() if row is not None]

    def input_of(self, command_id: str) -> Payload:
        """Return the encoded input of an open step; it must have been loaded ("i:…")."""
        if command_id not in self._inputs:
            self._inputs[command_id] = Payload.FromString(self.loaded.fields[f"i:{command_id}"])
        return self._inputs[command_id]

    def note(self, name: str) -> bytes | None:
        """Return what is kept under a name beside the rows; it must have been loaded. None: nothing is."""
        if name in self._notes or self.restart:
            return self._notes.get(name)
        return self.loaded.fields.get(name)

    def loaded_events(self) -> list[HistoryEvent]:
        """Return the page of history that was loaded."""
        if self._page is None:
            self._page = [HistoryEvent.FromString(data) for data in self.loaded.events]
        return self._page

    @property
    def has_first_event(self) -> bool:
        """Whether the first event of the history was loaded."""
        return self.loaded.event is not None and self.first_event().position == 1

    def first_event(self) -> HistoryEvent:
        """Return the first event of the history; it must have been loaded (`Want.event_at`)."""
        assert self.loaded.event is not None
        return HistoryEvent.FromString(self.loaded.event)

    def parked_event(self) -> HistoryEvent | None:
        """Return the event that ended the loaded history, if that was the parking of a cached coroutine."""
        if self._parked is None:
            return None
        position, revision, time_ms = self._parked
        return HistoryEvent(position=position, revision=revision, time_ms=time_ms, run_parked=RunParked(cached=True))

    @property
    def over(self) -> bool:
        """Whether the code of this incarnation has ended: what it left behind is swept."""
        return self.head.state in (RUN_STATE_CLOSED, RUN_STATE_CONTINUING)

    # --- writing -------------------------------------------------------------------------------------------------
    def event(self, **kind: Any) -> HistoryEvent:
        """Append an event; exactly one keyword, named like the field of HistoryEvent."""
        head = self.head
        head.length += 1
        head.last_revision = self.revision
        head.last_time_ms = max(head.last_time_ms, self.now)
        event = HistoryEvent(position=head.length, revision=self.revision, time_ms=head.last_time_ms, **kind)
        self.events.append(event)
        self.dirty = True
        self.matters = self.matters or not _MATTERS.isdisjoint(kind)
        return event

    def put(self, row: CommandRow) -> CommandRow:
        """Write a row (new or changed)."""
        if self._rows.get(row.command_id) is None:
            self.head.open_commands += 1
        self._rows[row.command_id] = row
        self._touched[row.command_id] = None
        self.dirty = True
        return row

    def put_input(self, command_id: str, payload: Payload) -> None:
        """Keep the encoded input of a pool step while it is open."""
        self._inputs[command_id] = self._new_inputs[command_id] = payload

    def put_note(self, name: str, data: bytes) -> None:
        """Keep something beside the rows, as long as there is the run."""
        self._notes[name] = data
        self.dirty = True

    def drop_note(self, name: str) -> None:
        """Forget what is kept under a name."""
        self._notes[name] = None
        self.dirty = True

    def drop(self, row: CommandRow) -> None:
        """Remove the row of a command that is settled."""
        self._unwait(row)
        if row.progress_number and row.command_id in self.head.progressing:
            self.head.progressing.remove(row.command_id)
        if row.try_number > 1 + row.tries_before:
            self._retries_no_more()
        self.head.open_commands = max(0, self.head.open_commands - 1)
        self._rows[row.command_id] = None
        self._touched[row.command_id] = None
        self._stale_timers.append(row.command_id)
        self._new_inputs.pop(row.command_id, None)
        self.dirty = True

    def _retries_no_more(self) -> None:
        head = self.head
        self.moves = True
        head.retrying = max(0, head.retrying - 1)
        if not head.retrying and head.state != RUN_STATE_CLOSED:
            head.error_type = head.trouble = ""

    def timer_gone(self, command_id: str) -> None:
        """Remove the timer of something that is no more."""
        self._stale_timers.append(command_id)
        self.dirty = True

    def cancel_holder(self, row: CommandRow, reason: str) -> None:
        """Tell the holder of a step to cut it off."""
        holder = row.holder
        self.decision.cancels.append(CancelOrder(holder.worker_id, holder.token, reason))

    # --- dispatching ---------------------------------------------------------------------------------------------
    def step_job(self, row: CommandRow) -> Job:
        """Build the job of a try, with a new dispatch id; large inputs are left to the GO."""
        head = self.head
        job = Job(
            namespace=head.namespace,
            run_id=head.run_id,
            incarnation=head.incarnation,
            kind=JOB_KIND_STEP,
            pool=row.pool,
            name=row.name,
            dispatch_id=f"{self.env.bits64():016x}",
            command_id=row.command_id,
            try_number=row.try_number,
            timeout_ms=row.timeout_ms,
            trace=self.anchor(),
            at_most_once=row.at_most_once,
            heartbeat_ms=row.heartbeat_ms,
            redone=row.redone,
        )
        if row.input_bytes <= INLINE_INPUT_BYTES:
            job.input.CopyFrom(self.input_of(row.command_id))
        else:
            job.input_omitted = True
        return job

    def run_job(self) -> Job:
        """Build a run job with a new dispatch id."""
        head = self.head
        return Job(
            namespace=head.namespace,
            run_id=head.run_id,
            incarnation=head.incarnation,
            kind=JOB_KIND_RUN,
            pool=head.pool,
            name=code_name(head.workflow, head.version),
            dispatch_id=f"{self.env.bits64():016x}",
            trace=self.anchor(),
        )

    def publish(self, job: Job) -> None:
        """Write the job to the outbox; it is published once the commit is done."""
        self._outbox[job.dispatch_id] = entry(job, self.now)
        self.decision.jobs.append(job)

    def post(self, run_id: str, **kind: Any) -> None:
        """Write a letter to another run into the outbox; it is delivered once the commit is done."""
        letter = Letter(
            letter_id=f"{self.env.bits64():016x}",
            namespace=self.run.namespace,
            from_run_id=self.run.run_id,
            run_id=run_id,
            **kind,
        )
        self._outbox[letter.letter_id] = OutboxEntry(time_ms=self.now, letter=letter).SerializeToString()
        self.decision.letters.append(letter)

    def trace(self, path: str) -> TraceContext:
        """Return the context of a span of this run."""
        head = self.head
        anchor = _anchor(head.namespace, head.run_id, head.incarnation, head.sampled)
        span = span_id(head.namespace, head.run_id, head.incarnation, path)
        return TraceContext(traceparent=f"{anchor[:36]}{span}{anchor[-3:]}")

    def anchor(self) -> TraceContext:
        """Return the context of the span that all jobs of this run belong to."""
        head = self.head
        return TraceContext(traceparent=_anchor(head.namespace, head.run_id, head.incarnation, head.sampled))

    # --- waiting for a name --------------------------------------------------------------------------------------
    def wait_for_name(self, pool: str, name: str, command_id: str) -> None:
        """Let a worker that brings the name find the run, or the step. The last word of a batch counts."""
        self._waits[self._waiting(pool, name, command_id)] = self.now

    def name_found(self, pool: str, name: str, command_id: str) -> None:
        """It waits no longer."""
        self._waits[self._waiting(pool, name, command_id)] = None

    def set_quarantined(self, command_id: str, on: bool) -> None:
        """The step is listed as one that killed too many workers, or is not any more."""
        member = quarantine_index(self.run.namespace), waiting_member(self.run.run_id, command_id)
        self._waits[member] = self.now if on else None
        self.moves = True
        self.head.quarantined = self.head.quarantined + 1 if on else max(0, self.head.quarantined - 1)

    def _waiting(self, pool: str, name: str, command_id: str) -> tuple[str, str]:
        return waiting_index(self.run.namespace, pool, name), waiting_member(self.run.run_id, command_id)

    def _unwait(self, row: CommandRow) -> None:
        if row.waiting_noted:
            self.name_found(row.pool, row.name, row.command_id)
        if row.state == COMMAND_STATE_QUARANTINED:
            self.set_quarantined(row.command_id, False)

    # --- the commit ----------------------------------------------------------------------------------------------
    def head_due(self) -> int:
        """Return when the run itself must be looked at next: every state has such a time."""
        head, due = self.head, self._state_due()
        limit = (head.close_at_ms or head.deadline_ms) if head.state not in _UNLIMITED else 0
        return min(due, limit) if limit else due

    def _state_due(self) -> int:
        head, far = self.head, self.now + self.env.settings.look_ms
        if head.state == RUN_STATE_OPEN:
            return min(head.owner.lease_due_ms, head.watch_due_ms or far)
        if head.state == RUN_STATE_QUEUED:
            return head.watch_due_ms
        if head.state == RUN_STATE_WAITING:
            return head.retry_due_ms
        if head.state == RUN_STATE_CLOSED:
            return self.now if head.sweeping else head.delete_at_ms
        if head.state == RUN_STATE_CONTINUING:
            return self.now
        if head.state == RUN_STATE_RECORD:
            return head.watch_due_ms
        return head.watch_due_ms or far  # parked, needs attention

    def change(self) -> Change | None:
        """Return the commit; None when nothing changes."""
        if not self.dirty:
            return None
        head = self.head
        change = Change(self.run, 0 if not self.loaded.head else self.loaded.revision, self.revision, b"")
        change.not_before_ms = self.not_before_ms
        change.traced = head.sampled
        change.ended = head.state == RUN_STATE_CLOSED
        change.cold = head.state not in _ACTIVE and not self.hot
        change.unread = self.loaded.cached and not self.loaded.head
        change.restart, change.keep_fields = self.restart, self.keep
        for command_id in self._stale_timers:
            change.timers_del.append(command_id)
        for command_id in self._touched:
            row = self._rows[command_id]
            self._count_waiting(command_id, row)
            if row is None:
                change.del_fields += (f"c:{command_id}", f"i:{command_id}")
            else:
                self._set_timer(change, row, command_id, row.due_ms)
                change.set_fields[f"c:{command_id}"] = row.SerializeToString()
        for command_id, payload in self._new_inputs.items():
            change.set_fields[f"i:{command_id}"] = payload.SerializeToString()
        for name, data in self._notes.items():
            if data is None:
                change.del_fields.append(name)
            else:
                change.set_fields[name] = data
        if not self.deleted:
            self._set_timer(change, head, "", self.head_due(), at_once=change.cold and self._was_active)
        self._move_indexes(change)
        change.head = head.SerializeToString()
        change.events = [event.SerializeToString() for event in self.events]
        change.outbox_add = self._outbox
        if self.deleted:
            change.delete, change.tombstone = True, change.head
            change.tombstone_ms = 0 if self.forgotten else self.env.settings.tombstone_ms
            change.timers_del.append("")
        replica = head.owner.replica_id if head.state == RUN_STATE_OPEN else ""
        cancels = tuple((c.worker_id, c.token, c.reason) for c in self.decision.cancels)
        if self.events or cancels or self.decision.resend or self.shown:
            change.hint = Hint(
                self.run.namespace,
                self.run.run_id,
                head.length,
                head.state == RUN_STATE_CLOSED,
                replica,
                cancels,
            )
        return change

    def _count_waiting(self, command_id: str, row: CommandRow | None) -> None:
        """The head says how many steps wait for a worker, so that a list needs not read rows."""
        head, waits = self.head, "" if row is None else step_waits(row)
        if bool(waits) is (command_id in self._waited and not self.restart):
            return
        self.moves = True
        head.waiting_steps = head.waiting_steps + 1 if waits else max(0, head.waiting_steps - 1)
        if waits or not head.waiting_steps:
            head.waiting_for = waits

    def _set_timer(
        self, change: Change, of: RunHead | CommandRow, command_id: str, due: int, *, at_once: bool = False
    ) -> None:
        if due == 0:
            if of.timer_at_ms:
                of.timer_at_ms = 0
                change.timers_del.append(command_id)
        elif of.timer_at_ms == 0 or due < of.timer_at_ms or of.timer_at_ms <= self.now or at_once:
            of.timer_at_ms = due
            change.timers_set[command_id] = due

    def _move_indexes(self, change: Change) -> None:
        head = self.head
        if self.moves or (head.state, head.outcome) != self._stood or self.restart or self.deleted:
            member = self.run.run_id
            before = indexes_of(RunHead.FromString(self.loaded.head))
            after = [] if self.deleted else indexes_of(head)
            change.index_del += [(name, member) for name in before if name not in after]
            change.index_add += [
                (name, member, head.created_ms) for name in after if self.restart or name not in before
            ]
        for (name, waiter), since in self._waits.items():
            if since is None:
                change.index_del.append((name, waiter))
            else:
                change.index_add.append((name, waiter, since))
