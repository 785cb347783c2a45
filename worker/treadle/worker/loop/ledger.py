"""What workflow code has asked for, matched with what the history has.

A command is known by its id (task path, name, occurrence) and the digest of its encoded input. Nothing here runs code: the
execution tells the ledger what the code asks for or no longer needs, and what the history has; the ledger says what is new.
"""

from __future__ import annotations

from enum import IntEnum
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from treadle.protocol.errors import PayloadUnreadable
from treadle.protocol.ids import digest
from treadle.v1.common_pb2 import ON_CANCEL_ABANDON, ON_CANCEL_UNSPECIFIED, OnCancel, Payload
from treadle.v1.worker_service_pb2 import CancelCommand, Command, ScheduleStep, StartTimer
from treadle.worker.loop.port import Divergence, LocalCall, RunContext, Turn, Waits

if TYPE_CHECKING:
    from treadle.protocol.past import Past
    from treadle.worker.loop.durable_loop import TimerCall
    from treadle.worker.loop.waiting import StepFuture
    from treadle.worker.steps import Step
    from treadle.worker.workflows import Workflow

__all__ = ("Ask", "Kind", "Ledger")


class Kind(IntEnum):
    """What an ask waits for."""

    POOL_STEP = 0
    LOCAL_STEP = 1
    TIMER = 2
    NOTE = 3
    """Nothing: it is said, and the code goes on."""
    CHILD = 4
    EVENT = 5


_LASTING = (Kind.NOTE, Kind.CHILD)
"""What counts although the code ends before it was handed out."""


class Ask:
    """One thing that the code asked for.

    Attributes:
        command_id, digest, name, kind: What it is.
        data: Its encoded input; a timer's delay in milliseconds, as text.
        step, future: Steps only: the step object, and what the code awaits.
        call: Timers only: what runs when it fires.
        prepared: Notes, children and waits for events: the command, but for its id and digest.
        workflow: Children only: what they run.
        taken: It was handed out by `take`: the core knows of it.
        recorded: The history has it.
        dropped: The code needs it no longer.
        cancel_known: Its cancellation was handed out, or is recorded.
        call_wanted: Local steps: a try is to be started that was not handed out yet.
        try_number: Local steps: 1 + recorded failures.
        asked_ms: Timers, and steps with a total timeout: what time it was for the code.
        on_cancel: Steps: what happens to it when the code is cancelled that awaits it.
        cancelling: The code was cancelled and waits for its end, to be told `cancel_message` then.
        fire_at_ms: Timers: when it fires; None until recorded.
    """

    __slots__ = (
        "asked_ms",
        "call",
        "call_wanted",
        "cancel_known",
        "cancel_message",
        "cancelling",
        "command_id",
        "data",
        "digest",
        "dropped",
        "fire_at_ms",
        "future",
        "kind",
        "name",
        "on_cancel",
        "prepared",
        "progress",
        "recorded",
        "step",
        "taken",
        "try_number",
        "workflow",
    )

    def __init__(self, command_id: str, name: str, kind: Kind, data: bytes, input_digest: int) -> None:
        self.command_id = command_id
        self.name = name
        self.kind = kind
        self.data = data
        self.digest = input_digest
        self.step: Step[..., Any] | None = None
        self.future: StepFuture | None = None
        self.call: TimerCall | None = None
        self.prepared: Command | None = None
        self.workflow: Workflow[..., Any] | None = None
        self.taken = False
        self.recorded = False
        self.dropped = False
        self.cancel_known = False
        self.call_wanted = kind is Kind.LOCAL_STEP
        self.try_number = 1
        self.asked_ms = 0
        self.progress: Payload | None = None
        self.fire_at_ms: int | None = None
        self.on_cancel: OnCancel.ValueType = ON_CANCEL_UNSPECIFIED
        self.cancelling = False
        self.cancel_message: object = None

    def command(self) -> Command:
        """The command that asks for it."""
        command = Command(command_id=self.command_id, digest=self.digest)
        if self.prepared is not None:
            command.MergeFrom(self.prepared)
        elif self.kind is Kind.TIMER:
            command.start_timer.CopyFrom(StartTimer(delay_ms=int(self.data), from_ms=self.asked_ms))
        elif self.step is not None:
            step = self.step
            schedule = ScheduleStep(
                name=step.name,
                pool=step.pool or "",
                input=Payload(data=self.data),
                timeout_ms=step.timeout_ms,
                at_most_once=step.at_most_once,
                heartbeat_ms=step.heartbeat_ms,
            )
            if step.retry_message is not None:
                schedule.retry.CopyFrom(step.retry_message)
            if step.limited:
                schedule.total_timeout_ms, schedule.queue_timeout_ms = step.total_timeout_ms, step.queue_timeout_ms
                schedule.on_cancel = step.on_cancel
            command.schedule_step.CopyFrom(schedule)
        return command


def describe(command_id: str, data: bytes | None, kind: Kind = Kind.POOL_STEP) -> str:
    """A command in words: its id with what it was given, shortened."""
    if kind is Kind.TIMER:
        return f"timer {command_id}" + (f" of {data.decode()} ms" if data else "")
    what = {Kind.NOTE: "note", Kind.CHILD: "child", Kind.EVENT: "wait"}.get(kind, "step")
    if data is None:
        return f"{what} {command_id}"
    text = data.decode("utf-8", "replace")
    return f"{what} {command_id} with {text if len(text) <= 300 else text[:297] + '...'}"


def _clear(given: Payload | None) -> bytes | None:
    """The value of a payload, if it can be read as it is."""
    return None if given is None or given.encoding else given.data


class Ledger:
    """The asks of one execution.

    Attributes:
        divergence: Set when code and history disagree.
        open: How many asks of each kind are waited for.
        untold: How many notes and children were not handed out yet. They are said even if the code has ended.
    """

    def __init__(self, context: RunContext) -> None:
        run = f"{context.namespace}\x1f{context.run_id}\x1f{context.incarnation}"
        self._key = blake2b(run.encode(), digest_size=32).digest()
        self._accepted_until = context.accepted_until
        self._private = context.private
        self._occurrences: dict[str, int] = {}
        self._asks: dict[str, Ask] = {}
        self._timers: dict[str, Ask] = {}
        self._pending: list[tuple[Ask, bool]] = []
        self._local_cancels: list[str] = []
        self._local_ends: list[Ask] = []
        self._unasked: dict[str, Any] = {}
        self._retried_at = context.retried_at
        self._unasked_digests: dict[str, tuple[int, int]] = {}
        self._past: Past | None = None
        self._unasked_pool_steps: set[str] = set()
        self.divergence: Divergence | None = None
        self.open = [0] * len(Kind)
        self.untold = 0

    def begin_again(self, past: Past) -> None:
        """The run was continued: what has a past is asked for with it. Before anything is asked for."""
        self._past = past

    def asked_now(self, now_ms: int) -> None:
        """The run goes on: what has no record counts from now. Of the states that it has shown the last one is shown again."""
        states = []
        for ask in self._asks.values():
            if not ask.recorded:
                ask.asked_ms = now_ms
                if ask.prepared is not None and ask.prepared.HasField("publish_state"):
                    states.append(ask)
        for ask in states[:-1]:
            self._told(ask)
            del self._asks[ask.command_id]

    def was_cancelled(self, command_id: str, position: int) -> bool:
        """The history has the cancellation of a step. Returns whether it counts: not where the run was continued later, and
        the code wants the step; then it is asked for again."""
        if position >= self._retried_at:
            return True
        ask = self._asks.get(command_id)
        if ask is None:
            self._unasked.pop(command_id, None)
            self._unasked_digests.pop(command_id, None)
            self._unasked_pool_steps.discard(command_id)
            return False
        if ask.dropped or ask.cancelling:
            return True
        ask.recorded = ask.taken = ask.cancel_known = False
        ask.call_wanted = ask.kind is Kind.LOCAL_STEP
        self._pending.append((ask, False))
        return False

    def next_id(self, path: str, name: str) -> str:
        """The command id that the next ask of (path, name) gets."""
        place = f"{path}/{name}"
        return f"{place}#{self._occurrences.get(place, 0) + 1}"

    def ask(self, path: str, name: str, kind: Kind, data: bytes) -> Ask:
        """The code asks for something; each call is another occurrence of (path, name)."""
        place = f"{path}/{name}"
        number = self._occurrences.get(place, 0) + 1
        self._occurrences[place] = number
        command_id = f"{place}#{number}"
        if command_id in self._unasked_pool_steps:
            kind = Kind.POOL_STEP  # accepted: its outcome will come, so it must not run here, too
        ask = Ask(command_id, name, kind, data, digest(self._key, data))
        self._asks[command_id] = ask
        if kind is Kind.TIMER:
            self._timers[command_id] = ask
        self.open[kind] += 1
        ask.recorded = command_id in self._unasked
        if self._past is not None:
            self._with_past(ask, self._past)
        self.untold += kind in _LASTING and not ask.recorded
        self._pending.append((ask, False))
        return ask

    def _with_past(self, ask: Ask, past: Past) -> None:
        """It may have had tries before the run was continued; what is kept of it must be of the same input."""
        ask.try_number += past.tries.get(ask.command_id, 0)
        input_digest, position = self._unasked_digests.get(ask.command_id, (ask.digest, 0))
        if input_digest != ask.digest:
            self._diverge(describe(ask.command_id, None, ask.kind), position, ask)

    def note(self, path: str, name: str, data: bytes, command: Command) -> None:
        """The code says something and waits for nothing; `command` without id and digest."""
        ask = self.ask(path, name, Kind.NOTE, data)
        self.open[Kind.NOTE] -= 1
        if self.early_outcome(ask) is not None:
            del self._asks[ask.command_id]
            self._pending.pop()
            return
        ask.prepared = command

    def noted(self, command_id: str, input_digest: int, position: int) -> None:
        """The history has a note."""
        ask = self.recorded(command_id, input_digest, position, None, kind=Kind.NOTE)
        if ask is None:
            if command_id in self._unasked:
                self._unasked[command_id] = True
            return
        del self._asks[command_id]

    def early_outcome(self, ask: Ask) -> Any:
        """The outcome that an accepted history has of something that the code asked for only now; None if none."""
        return self._unasked.pop(ask.command_id, None) if ask.recorded else None

    def drop(self, ask: Ask) -> None:
        """The code needs it no longer; what still comes of it is ignored."""
        if ask.dropped or ask.command_id not in self._asks:
            return
        self._told(ask)
        ask.dropped = True
        ask.future = ask.call = None  # they refer to each other
        self._close(ask)
        if ask.on_cancel == ON_CANCEL_ABANDON:
            return
        if ask.kind is Kind.LOCAL_STEP:
            if ask.taken:
                self._local_cancels.append(ask.command_id)
        elif ask.taken or ask.recorded:
            self._pending.append((ask, True))

    def await_end(self, ask: Ask, message: object) -> None:
        """The code is cancelled, and goes on when the step has ended, which is told to end. Once more changes nothing."""
        if ask.cancelling:
            return
        ask.cancelling, ask.cancel_message = True, message
        if ask.kind is Kind.LOCAL_STEP:
            self._local_ends.append(ask)
        else:
            self._pending.append((ask, True))

    def recorded(
        self, command_id: str, input_digest: int, position: int, given: Payload | None, *, kind: Kind = Kind.POOL_STEP
    ) -> Ask | None:
        """The history has a command at `position`: return the ask that it belongs to, None if there is none."""
        ask = self._asks.get(command_id)
        if ask is None:
            if position <= self._accepted_until:
                self._unasked.setdefault(command_id, None)
            elif position < self._retried_at:
                self._unasked.setdefault(command_id, None)
                self._unasked_digests[command_id] = input_digest, position
            else:
                self._diverge(self._describe(command_id, _clear(given), kind), position, None)
            return None
        if ask.digest != input_digest and position > self._accepted_until:
            self._diverge(self._describe(command_id, _clear(given), kind), position, ask)
            return None
        self._told(ask)
        ask.recorded = True
        if ask.dropped and ask.kind is not Kind.LOCAL_STEP and ask.on_cancel != ON_CANCEL_ABANDON:
            self._pending.append((ask, True))
        return ask

    def find(self, command_id: str) -> Ask | None:
        """The ask of this id that has no outcome yet, dropped or not."""
        return self._asks.get(command_id)

    def settle(self, command_id: str, outcome: Any) -> Ask | None:
        """The history has the outcome of a command: return the ask if the code still waits for it."""
        ask = self._asks.pop(command_id, None)
        if ask is None:
            if command_id in self._unasked:
                self._unasked[command_id] = outcome
            return None
        if ask.dropped:
            return None
        self._close(ask)
        return ask

    def try_failed(self, ask: Ask) -> None:
        """A try of a local step failed, and another one would follow."""
        ask.call_wanted = False
        if ask.cancelling:
            self._local_ends.append(ask)

    def call_again(self, ask: Ask, try_number: int) -> None:
        """The wait before another try of a local step is over."""
        ask.try_number = try_number
        if not ask.dropped:
            ask.call_wanted = True
            self._pending.append((ask, False))

    def take(self, *, ended: bool) -> Turn:
        """What is new since the last call; after the code ended: notes, children, and local steps nobody waits for."""
        turn = Turn()
        if self._local_cancels:
            turn.local_cancels = self._local_cancels
            self._local_cancels = []
        if self._pending:
            for ask, cancels in self._pending:
                if not ended or (ask.kind in _LASTING and not cancels):
                    self._take(ask, cancels, turn)
            self._pending.clear()
        if self._local_ends:
            wanted = [ask for ask in self._local_ends if ask.command_id in self._asks and not ended]
            turn.local_ends = [_local_call(ask, self._past) for ask in wanted]
            self._local_ends.clear()
        return turn

    def _take(self, ask: Ask, cancels: bool, turn: Turn) -> None:
        if ask.command_id not in self._asks or (ask.dropped or (cancels and ask.cancelling)) is not cancels:
            return
        if cancels:
            if not ask.cancel_known:
                ask.cancel_known = True
                command = Command(command_id=ask.command_id, digest=ask.digest, cancel=CancelCommand())
                turn.commands.append(command)
        elif ask.kind is Kind.LOCAL_STEP:
            if ask.call_wanted and not ask.cancelling:
                ask.call_wanted = False
                ask.taken = True
                turn.local_calls.append(_local_call(ask, self._past))
        elif not ask.recorded and not ask.taken:
            self._told(ask)
            ask.taken = True
            command = ask.command()
            if self._past is not None:
                _tell_past(command, ask, self._past)
            turn.commands.append(command)

    def waits(self) -> Waits:
        """What the code waits for."""
        due = [ask.fire_at_ms for ask in self._timers.values() if ask.fire_at_ms is not None]
        pool, local, timers, _, children, events = self.open
        return Waits(pool + children + events, local, timers, min(due, default=None))

    def awaits_only(self, command_id: str) -> bool:
        """Whether the code waits for this pool step, which is recorded, and for nothing else."""
        ask = self._asks.get(command_id)
        if ask is None or ask.kind is not Kind.POOL_STEP or ask.dropped or ask.cancelling or not ask.recorded:
            return False
        return sum(self.open) == 1

    def ran_in_pool(self, command_id: str, ask: Ask | None) -> None:
        """The history ran as a pool step what the code calls as a local one, now or later: its outcome will come."""
        if ask is None:
            self._unasked_pool_steps.add(command_id)
        elif ask.kind is Kind.LOCAL_STEP and not ask.dropped:
            self.open[ask.kind] -= 1
            ask.kind = Kind.POOL_STEP
            self.open[ask.kind] += 1

    def _told(self, ask: Ask) -> None:
        """It was handed out, is recorded, or is wanted no longer: the first of these counts."""
        if ask.kind in _LASTING and not (ask.taken or ask.recorded or ask.dropped):
            self.untold -= 1

    def _close(self, ask: Ask) -> None:
        self.open[ask.kind] -= 1
        if ask.kind is Kind.TIMER:
            self._timers.pop(ask.command_id, None)

    def unreadable(self, what: str, error: PayloadUnreadable) -> None:
        """A value in the history cannot be read by this worker: nothing more may be fed."""
        self.divergence = Divergence(f"{what} that can be read", str(error))

    def _describe(self, command_id: str, data: bytes | None, kind: Kind) -> str:
        return describe(command_id, None if self._private else data, kind)

    def _diverge(self, expected: str, position: int, ask: Ask | None) -> None:
        if ask is not None:
            found = self._describe(ask.command_id, ask.data, ask.kind)
        else:
            asked = [a for a in self._asks.values() if not a.recorded and not a.dropped][:3]
            new = [self._describe(a.command_id, a.data, a.kind) for a in asked]
            found = "the code asked for " + ", ".join(new) if new else "the code did not ask for it"
        self.divergence = Divergence(f"{expected} (event {position})", found)


def _tell_past(command: Command, ask: Ask, past: Past) -> None:
    """Add to a command what it had before the run was continued."""
    command_id = ask.command_id
    if ask.kind is Kind.POOL_STEP:
        command.schedule_step.tries_before = past.tries.get(command_id, 0)
        command.schedule_step.redone = past.redone.get(command_id, 0)
    elif ask.kind is Kind.CHILD and command_id in past.asked:
        command.schedule_child.over = command_id in past.redone or past.asked[command_id] != ask.digest


def _local_call(ask: Ask, past: Past | None) -> LocalCall:
    step = ask.step
    assert step is not None
    return LocalCall(
        command_id=ask.command_id,
        digest=ask.digest,
        name=ask.name,
        step=step,
        input=Payload(data=ask.data),
        try_number=ask.try_number,
        retry=step.policy,
        timeout_ms=step.timeout_ms,
        at_most_once=step.at_most_once,
        progress=ask.progress,
        total_timeout_ms=step.total_timeout_ms,
        deadline_ms=ask.asked_ms + step.total_timeout_ms if step.total_timeout_ms else 0,
        tries_before=0 if past is None else past.tries.get(ask.command_id, 0),
        redone=0 if past is None else past.redone.get(ask.command_id, 0),
    )
