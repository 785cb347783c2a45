"""A server for one run, in memory and in virtual time: it records what an execution asks for and answers it.

Steps take a time drawn from the seed; timers fire when they are due. What is asked for is recorded at once, or (late=True)
after a while, so that other events come between.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any

from treadle.protocol.errors import Deferred, RetryAfter
from treadle.protocol.failures import failure_of
from treadle.protocol.retry import next_delay_ms
from treadle.v1 import history_pb2 as h
from treadle.v1.common_pb2 import NamedEvent, Payload, RetryPolicy
from treadle.v1.worker_service_pb2 import Command
from treadle.worker.app import Registry
from treadle.worker.loop.execution import execution_factory
from treadle.worker.loop.port import Execution, LocalCall, Outcome, RunContext, Turn
from treadle.worker.steps import Step
from treadle.worker.workflows import Workflow

START_MS = 1_700_000_000_000
EVENT_DATA = b'{"n": 5}'
"""Of all events that come."""


@dataclass(slots=True)
class Asked:
    """A command: at which position the code asked for it, its bytes, and where it was recorded."""

    at: int
    data: bytes
    recorded: int = 0


@dataclass(slots=True)
class Server:
    """One run.

    Attributes:
        registry: Workflows and steps.
        workflow: The one that runs.
        seed: Draws how long steps take.
        late: Commands are recorded only after a while.
        cancel_at_ms: When the run is cancelled, after its start; None: never.
        by_timeout: Then its timeout is over, instead.
        letters: What is sent to it: after how long, name, value as JSON, and whether it is a question.
    """

    registry: Registry
    workflow: Workflow[..., Any]
    seed: int = 0
    late: bool = False
    cancel_at_ms: int | None = None
    by_timeout: bool = False
    letters: Sequence[tuple[int, str, bytes, bool]] = ()
    incarnation: int = 7
    retried_at: int = 0
    history: list[h.HistoryEvent] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    looked: set[int] = field(default_factory=set)
    now_ms: int = START_MS
    _rng: Random = field(init=False)
    _agenda: list[tuple[int, int, Callable[[], object]]] = field(default_factory=list)
    _sequence: int = 0
    _open: dict[str, Any] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _reported: list[tuple[int, int]] = field(default_factory=list)
    _owner: int = 0

    def __post_init__(self) -> None:
        self._rng = Random(self.seed)

    def start(self, *args: Any, **kwargs: Any) -> None:
        payload = self.workflow.signature.encode_call(args, kwargs)
        self.append(run_started=h.RunStarted(workflow=self.workflow.name, version=self.workflow.version, input=payload))
        self.append(run_opened=h.RunOpened(worker_id="w"))
        if self.cancel_at_ms is not None:
            self._at(self.cancel_at_ms, self._interrupt)
        for number, (after_ms, name, data, asks) in enumerate(self.letters):
            letter = h.SignalReceived(name=name, signal_id=f"s{number}", data=Payload(data=data), asks=asks)
            self._at(after_ms, partial(self.append, signal_received=letter))

    def _interrupt(self) -> None:
        if self.by_timeout:
            self.append(run_timed_out=h.RunTimedOut(timeout_ms=self.cancel_at_ms or 0, raised=True))
        else:
            self.append(cancel_requested=h.CancelRequested(reason="enough"))

    def fresh(self, *, accepted_until: int = 0, upto: int | None = None) -> Execution:
        """A fresh execution, as it is made for who becomes the owner when the history has come that far."""
        upto = len(self.history) if upto is None else upto
        marks = [e.change_marked.name for e in self.history[:upto] if e.HasField("change_marked")]
        context = RunContext(
            namespace="default",
            run_id="run-1",
            incarnation=self.incarnation,
            workflow=self.workflow.code,
            accepted_until=accepted_until,
            retried_at=self.retried_at,
            passed_until=self._passed(upto),
            marks=frozenset(marks),
        )
        return execution_factory(self.registry)(context)

    def _passed(self, upto: int) -> int:
        """How far owners had said that they were fed: a request brings that together with what was asked for."""
        said = {asked.at for asked in self.asked if 0 < asked.recorded <= upto}
        unsaid = {asked.at for asked in self.asked if not 0 < asked.recorded <= upto}
        reported = {at for at, recorded in self._reported if recorded <= upto}
        return max((said - unsaid) | reported, default=0)

    def append(self, **kind: Any) -> int:
        position = len(self.history) + 1
        self.history.append(h.HistoryEvent(position=position, revision=position, time_ms=self.now_ms, **kind))
        return position

    def new_owner(self) -> None:
        """The owner died: its local steps are gone with it, and what it asked for and was not recorded."""
        self._owner += 1
        self.append(run_owner_lost=h.RunOwnerLost(worker_id="w", reason="closed"))
        self.append(run_opened=h.RunOpened(worker_id="w2"))

    def close(self, outcome: Outcome | None) -> None:
        """The run closes: by its code's outcome, or (None) it is terminated."""
        if outcome is None:
            self.append(run_terminated=h.RunTerminated())
        elif outcome.cancelled:
            self.append(run_cancelled=h.RunCancelled())
        elif outcome.failure is not None:
            failed = h.RunFailed(failure=outcome.failure, because=outcome.because, because_all=outcome.because_all)
            self.append(run_failed=failed)
        else:
            self.append(run_completed=h.RunCompleted(result=outcome.result))

    def retry(self, from_position: int = 0, number: int = 1, *, undoing: bool = False) -> None:
        """The closed run is continued: what was under way is gone, what was sent and has not come still comes."""
        self._owner += 1
        self._agenda = [item for item in self._agenda if getattr(item[2], "keywords", {}).keys() == {"signal_received"}]
        heapq.heapify(self._agenda)
        self._open, self._known = {}, set()
        retried = h.RunRetried(from_position=from_position, number=number, undoing=undoing)
        self.retried_at = self.append(run_retried=retried)
        self.append(run_opened=h.RunOpened(worker_id="w3"))

    def accept(self, turn: Turn, at: int) -> None:
        self.looked.add(at)
        for command in turn.commands:
            asked = Asked(at, command.SerializeToString(deterministic=True))
            self.asked.append(asked)
            if self.late and not command.HasField("mark_change"):  # what was said later is not recorded before it
                self._at(self._rng.randrange(40), self._for_owner(partial(self._record, command, asked)))
            else:
                self._record(command, asked)
        for call in turn.local_calls:
            self._at(self._rng.randrange(1, 300), self._for_owner(partial(self._local, call, at)))
        for command_id in turn.local_cancels:
            self._known.add(command_id + "/cancelled")
        for call in turn.local_ends:
            self._at(self._rng.randrange(300), self._for_owner(partial(self._end, call)))

    def _for_owner(self, action: Callable[[], object]) -> Callable[[], object]:
        owner = self._owner
        return lambda: action() if owner == self._owner else None

    def advance(self) -> bool:
        """Let the next thing happen; False when there is none."""
        before = len(self.history)
        while self._agenda and len(self.history) == before:
            due, _, action = heapq.heappop(self._agenda)
            self.now_ms = max(self.now_ms, due)
            action()
        return len(self.history) > before

    def _at(self, delay_ms: int, action: Callable[[], object]) -> None:
        self._sequence += 1
        heapq.heappush(self._agenda, (self.now_ms + delay_ms, self._sequence, action))

    def _record(self, command: Command, asked: Asked) -> None:
        kind, command_id = command.WhichOneof("kind"), command.command_id
        if kind == "cancel":
            self._cancel(command_id, asked)
            return
        if command_id in self._known:
            return
        self._known.add(command_id)
        if kind in ("publish_state", "answer_signal", "mark_change", "set_tags", "send_event"):
            asked.recorded = self._note(command)
            return
        self._open[command_id] = command
        if kind == "schedule_step":
            s = command.schedule_step
            asked.recorded = self.append(
                step_scheduled=h.StepScheduled(
                    command_id=command_id,
                    digest=command.digest,
                    name=s.name,
                    pool=s.pool,
                    input=s.input,
                    on_cancel=s.on_cancel,
                )
            )
            self._at(self._rng.randrange(1, 400), lambda: self._run(command))
        elif kind == "wait_for_event":
            asked.recorded = self._wait(command)
        else:
            due = self.now_ms + command.start_timer.delay_ms
            asked.recorded = self.append(
                timer_started=h.TimerStarted(command_id=command_id, digest=command.digest, fire_at_ms=due)
            )
            self._at(command.start_timer.delay_ms, lambda: self._fire(command_id))

    def _wait(self, command: Command) -> int:
        """Each event comes after a while, but for those called "never"."""
        wanted, command_id = command.wait_for_event, command.command_id
        started = h.EventWaitStarted(command_id=command_id, digest=command.digest, name=wanted.name)
        position = self.append(event_wait_started=started)
        if wanted.name != "never":
            self._at(self._rng.randrange(1, 400), lambda: self._come(command, position))
        if wanted.times_out:
            self._at(wanted.timeout_ms, lambda: self._late(command_id))
        return position

    def _come(self, command: Command, number: int) -> None:
        if self._open.pop(command.command_id, None) is not None:
            event = NamedEvent(event_id=f"e{number}", name=command.wait_for_event.name, time_ms=self.now_ms)
            event.data.data = EVENT_DATA
            self.append(event_matched=h.EventMatched(command_id=command.command_id, event=event, seq=number))

    def _late(self, command_id: str) -> None:
        if self._open.pop(command_id, None) is not None:
            self.append(event_wait_timed_out=h.EventWaitTimedOut(command_id=command_id))

    def _note(self, command: Command) -> int:
        common: dict[str, Any] = {"command_id": command.command_id, "digest": command.digest}
        if command.HasField("publish_state"):
            return self.append(state_published=h.StatePublished(**common))
        if command.HasField("send_event"):
            return self.append(event_sent=h.EventSent(event_id=command.send_event.event_id, **common))
        if command.HasField("set_tags"):
            return self.append(tags_set=h.TagsSet(tags=command.set_tags.tags, **common))
        if command.HasField("mark_change"):
            mark = h.ChangeMarked(command_id=command.command_id, name=command.mark_change.name)
            return self.append(change_marked=mark)
        return self.append(signal_answered=h.SignalAnswered(signal_id=command.answer_signal.signal_id, **common))

    def _cancel(self, command_id: str, asked: Asked) -> None:
        command = self._open.get(command_id)
        if command is None:
            asked.recorded = len(self.history)
        elif command.WhichOneof("kind") == "start_timer":
            del self._open[command_id]
            asked.recorded = self.append(timer_cancelled=h.TimerCancelled(command_id=command_id))
        elif command.WhichOneof("kind") == "wait_for_event":
            del self._open[command_id]
            asked.recorded = self.append(event_wait_cancelled=h.EventWaitCancelled(command_id=command_id))
        else:
            asked.recorded = self.append(step_cancel_requested=h.StepCancelRequested(command_id=command_id))
            if self._rng.random() < 0.5:  # the other half completes: the result came first
                del self._open[command_id]
                self.append(step_cancelled=h.StepCancelled(command_id=command_id, attempt=1))

    def _fire(self, command_id: str) -> None:
        if self._open.pop(command_id, None) is not None:
            self.append(timer_fired=h.TimerFired(command_id=command_id))

    def _run(self, command: Command) -> None:
        command_id = command.command_id
        if self._open.pop(command_id, None) is None:
            return
        step = self.registry.steps[command.schedule_step.name]
        try:
            result = call_step(step, command.schedule_step.input)
        except Deferred:
            self._open[command_id] = command
            self.append(step_deferred=h.StepDeferred(command_id=command_id, attempt=1))
            self._at(self._rng.randrange(1, 900), lambda: self._finish(command_id))
        except Exception as error:
            failure = failure_of(error)
            failure.attempts = 1
            self.append(step_failed=h.StepFailed(command_id=command_id, attempt=1, failure=failure))
        else:
            payload = step.signature.encode_result(result)
            self.append(step_completed=h.StepCompleted(command_id=command_id, attempt=1, result=payload))

    def _finish(self, command_id: str) -> None:
        """Somebody outside finishes a step."""
        if self._open.pop(command_id, None) is not None:
            result = Payload(data=b'"approved"')
            self.append(
                step_completed=h.StepCompleted(command_id=command_id, attempt=1, result=result, from_outside=True)
            )

    def _local(self, call: LocalCall, at: int) -> None:
        if call.command_id + "/cancelled" in self._known:
            return
        self._known.add(call.command_id + "/ended")
        self._reported.append((at, len(self.history) + 1))
        common: dict[str, Any] = {
            "command_id": call.command_id,
            "attempt": call.try_number,
            "name": call.name,
            "digest": call.digest,
            "local": True,
        }
        try:
            result = call_step(call.step, call.input)
        except Exception as error:
            failure = failure_of(error)
            delay = retry_delay(call.retry, call.try_number, error)
            if delay is None:
                failure.attempts = call.try_number
                self.append(step_failed=h.StepFailed(failure=failure, **common))
                return
            self.append(attempt_failed=h.AttemptFailed(failure=failure, try_number=call.try_number, **common))
            again = h.StepRetried(command_id=call.command_id, try_number=call.try_number + 1)
            self._at(delay, lambda: self.append(step_retried=again))
        else:
            payload = call.step.signature.encode_result(result)
            self.append(step_completed=h.StepCompleted(result=payload, **common))

    def _end(self, call: LocalCall) -> None:
        """It has ended as it was told to, unless it had ended before."""
        if call.command_id + "/ended" not in self._known:
            self._known.add(call.command_id + "/cancelled")
            ended = h.StepCancelled(command_id=call.command_id, name=call.name, digest=call.digest, local=True)
            self.append(step_cancelled=ended)


def retry_delay(policy: RetryPolicy, try_number: int, error: Exception) -> int | None:
    if isinstance(error, RetryAfter):
        return 5
    return next_delay_ms(policy, try_number=try_number, failure=failure_of(error), share=0.0)


def call_step(step: Step[..., Any], payload: Any) -> Any:
    args, kwargs = step.signature.decode_call(payload)
    result = step.function(*args, **kwargs)
    if not isinstance(result, Coroutine):
        return result
    try:
        result.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"{step.name} waits; steps of the catalogue must not")


def feed_all(execution: Execution, history: list[h.HistoryEvent]) -> None:
    for event in history[execution.fed :]:
        execution.feed(event)
        assert execution.divergence is None, execution.divergence


def drive(server: Server, *, kill_at: int | None = None, lose: bool = False) -> Outcome:
    """Run until there is an outcome.

    Args:
        server: Started.
        kill_at: Drop the execution once it was fed this far, and go on with another one.
        lose: What the killed one asked for last is lost.
    """
    execution = server.fresh()
    while True:
        feed_all(execution, server.history)
        if execution.outcome is not None:
            outcome = execution.outcome
            execution.close()
            return outcome
        turn = execution.take()
        killed = kill_at is not None and execution.fed >= kill_at
        before = len(server.history)
        if not (killed and lose):
            server.accept(turn, execution.fed)
        if killed:
            kill_at = None
            execution.close()
            server.new_owner()
            execution = server.fresh()
        elif len(server.history) == before and not server.advance():
            raise AssertionError(f"nothing more happens; the code waits for {execution.waits()}")


def replay(server: Server, upto: int) -> tuple[list[bytes], Execution]:
    """A fresh execution that was fed `upto` events, and the commands that it asks for then."""
    execution = server.fresh(upto=upto)
    feed_all(execution, server.history[:upto])
    commands = [c.SerializeToString(deterministic=True) for c in execution.take().commands]
    return commands, execution


def check_every_prefix(server: Server, outcome: Outcome) -> list[list[bytes]]:
    """Replay every prefix of the history: it must ask for exactly what the live one had asked for and not got."""
    seen = []
    for upto in range(server.retried_at, len(server.history) + 1):
        commands, execution = replay(server, upto)
        if execution.outcome is None:
            later = [a for a in server.asked if a.recorded > upto]
            assert set(commands) <= {a.data for a in later}, f"at position {upto} of {len(server.history)}"
            if upto in server.looked:  # where the live one was asked, too
                expected = [a.data for a in later if a.at <= upto]
                assert commands == expected, f"at position {upto} of {len(server.history)}"
        if upto == len(server.history):
            assert execution.outcome == outcome
        execution.close()
        seen.append(commands)
    return seen
