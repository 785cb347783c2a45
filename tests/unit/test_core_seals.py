"""Sealed values in the worker's core: a run is fed and says things in the same order, however long its values take."""

from __future__ import annotations

from typing import TypeVar

import pytest
from tests.unit.core_rig import Plan, Rig, Script, completed

from treadle.protocol.errors import PayloadUnreadable
from treadle.v1.common_pb2 import Payload
from treadle.v1.history_pb2 import HistoryEvent, SignalReceived
from treadle.v1.worker_service_pb2 import Command, PublishState
from treadle.worker.core.core import WorkerCore
from treadle.worker.core.port import OpenEvent, SealItem
from treadle.worker.loop.port import Outcome

T = TypeVar("T", Command, Outcome)
FAR, SEALED = "far", "sealed"


class Seals:
    """Values whose encoding is "far" take I/O; others, that are sealed, are opened at once; "lost" ones never."""

    def open(self, event: HistoryEvent) -> bool:
        encoding = event.step_completed.result.encoding
        if encoding == "lost":
            raise PayloadUnreadable("no key")
        event.step_completed.result.encoding = encoding if encoding == FAR else ""
        return encoding != FAR

    def carried(self, letter: SignalReceived) -> SignalReceived:
        return SignalReceived(signal_id=letter.signal_id, data=Payload(encoding=SEALED))

    def seal(self, item: T) -> T | None:
        if isinstance(item, Outcome):
            return None if item.result is not None and item.result.data == b"large" else item
        return None if item.publish_state.state.data == b"large" else item


class SealedRig(Rig):
    def __init__(self, plan: Plan | None = None) -> None:
        super().__init__(plan)
        self.core = WorkerCore(self.settings, self.make, lambda: next(self.numbers), lambda run: Seals())
        self.open()
        self.frames()
        self.drained()

    def fetched(self, action: OpenEvent, error: PayloadUnreadable | None = None) -> None:
        event = HistoryEvent()
        event.CopyFrom(action.event)
        if error is None:
            event.step_completed.result.encoding = ""
        self.core.event_opened(action.owner_token, event, error, self.now)

    def stored(self, action: SealItem) -> None:
        item = action.item
        if isinstance(item, Outcome):
            item = Outcome(result=Payload(encoding="stored"))
        else:
            sealed = Command()
            sealed.CopyFrom(item)
            sealed.publish_state.state.CopyFrom(Payload(encoding="stored"))
            item = sealed
        self.core.item_sealed(action.owner_token, action.number, item, self.now)


def result(position: int, encoding: str) -> HistoryEvent:
    event = completed(position, f"s{position}")
    event.step_completed.result.CopyFrom(Payload(data=b"1", encoding=encoding))
    return event


def say(script: Script, *states: bytes) -> None:
    for state in states:
        command = Command(command_id=f"c{state!r}", publish_state=PublishState(state=Payload(data=state)))
        script.turn.commands.append(command)


def fed(script: Script) -> list[int]:
    return [event.position for event in script.events]


def test_what_can_be_opened_here_is_fed_at_once() -> None:
    rig = SealedRig()
    script = rig.granted_run(b"t", "r", result(3, SEALED))
    assert fed(script) == [1, 2, 3]
    assert script.events[2].step_completed.result.encoding == ""
    assert rig.of(OpenEvent) == []


def test_what_must_be_fetched_holds_back_what_follows_and_is_asked_for_once() -> None:
    rig = SealedRig()
    script = rig.granted_run(b"t", "r", result(3, FAR), result(4, SEALED))
    assert fed(script) == [1, 2]
    (action,) = rig.of(OpenEvent)
    rig.news(b"t", result(3, FAR), result(4, SEALED), result(5, FAR), length=5)  # it is sent again meanwhile
    rig.pass_ms(3000)
    assert rig.of(OpenEvent) == []
    assert all(request.seen == 2 for frame in rig.sent for request in frame.requests)
    rig.fetched(action)
    assert fed(script) == [1, 2, 3, 4]
    (action,) = rig.of(OpenEvent)
    rig.fetched(action)
    assert fed(script) == [1, 2, 3, 4, 5]


def test_other_runs_go_on_meanwhile() -> None:
    rig = SealedRig()
    slow = rig.granted_run(b"t", "r", result(3, FAR))
    quick = rig.granted_run(b"u", "q", result(3, SEALED))
    assert (fed(slow), fed(quick)) == ([1, 2], [1, 2, 3])


def test_what_cannot_be_opened_stops_the_run_for_a_person_and_not_the_code() -> None:
    rig = SealedRig()
    script = rig.granted_run(b"t", "r", result(3, "lost"))
    request = rig.request()
    assert request.HasField("diverged")
    assert (request.diverged.expected, request.diverged.found) == (
        "step completed (event 3) with a value that can be read",
        "no key",
    )
    assert fed(script) == [1, 2]
    assert script.outcome is None


def test_what_turns_out_to_be_missing_stops_the_run_for_a_person() -> None:
    rig = SealedRig()
    rig.granted_run(b"t", "r", result(3, FAR))
    (action,) = rig.of(OpenEvent)
    rig.fetched(action, PayloadUnreadable("gone"))
    assert [r.diverged.found for r in rig.requests() if r.HasField("diverged")] == ["gone"]


def test_an_event_that_was_replaced_meanwhile_is_fetched_anew() -> None:
    rig = SealedRig()
    script = rig.granted_run(b"t", "r", result(3, FAR))
    (action,) = rig.of(OpenEvent)
    other = result(3, FAR)
    other.revision += 1
    rig.news(b"t", other, length=3)
    rig.fetched(action)
    assert fed(script) == [1, 2]
    (action,) = rig.of(OpenEvent)
    assert action.event.revision == other.revision
    rig.fetched(action)
    assert fed(script) == [1, 2, 3]


def test_what_comes_for_an_owner_that_is_gone_changes_nothing() -> None:
    rig = SealedRig(lambda script, event: say(script, b"large") if event.position == 3 else None)
    rig.granted_run(b"t", "r", result(3, SEALED), result(4, FAR))
    (opening,) = rig.of(OpenEvent)
    rig.fetched(opening)
    (storing,) = rig.of(SealItem)
    assert rig.core.owns(b"t")
    script = rig.granted_run(b"u", "r", result(3, FAR))
    assert not rig.core.owns(b"t")
    rig.fetched(opening)
    rig.stored(storing)
    assert fed(script) == [1, 2]
    assert not any(request.commands for request in rig.requests())


def test_commands_are_said_in_their_order_however_long_each_takes_to_store() -> None:
    rig = SealedRig(lambda script, event: say(script, b"a", b"large", b"b") if event.position == 2 else None)
    rig.granted_run()
    first = rig.request()
    assert [command.publish_state.state.data for command in first.commands] == [b"a"]
    rig.answer(first)
    assert rig.requests() == []
    (storing,) = rig.of(SealItem)
    rig.stored(storing)
    request = rig.request()
    states = [command.publish_state.state for command in request.commands]
    assert [(state.data, state.encoding) for state in states] == [(b"", "stored"), (b"b", "")]


def test_a_run_is_not_parked_nor_closed_before_what_it_said_is_stored() -> None:
    def plan(script: Script, event: HistoryEvent) -> None:
        if event.position == 2:
            say(script, b"large")
            script.outcome = Outcome(result=Payload(data=b"1"))

    rig = SealedRig(plan)
    rig.granted_run()
    rig.pass_ms(60_000)
    assert not any(r.WhichOneof("final") or r.commands for frame in rig.sent for r in frame.requests)
    for request in [request for frame in rig.sent for request in frame.requests]:
        rig.answer(request)
    rig.stored(rig.of(SealItem)[0])
    request = rig.request()
    assert [command.publish_state.state.encoding for command in request.commands] == ["stored"]
    assert request.complete.result.data == b"1"


def test_an_outcome_is_said_once_it_is_stored() -> None:
    def plan(script: Script, event: HistoryEvent) -> None:
        if event.position == 2:
            script.outcome = Outcome(result=Payload(data=b"large"))

    rig = SealedRig(plan)
    rig.granted_run()
    assert rig.requests() == []
    (storing,) = rig.of(SealItem)
    rig.stored(storing)
    assert rig.request().complete.result.encoding == "stored"
    assert rig.of(SealItem) == []


@pytest.mark.parametrize("far", [True, False])
def test_a_worker_that_drains_gives_back_what_waits_for_its_values(far: bool) -> None:
    def plan(script: Script, event: HistoryEvent) -> None:
        if event.position == 2 and not far:
            script.outcome = Outcome(result=Payload(data=b"large"))

    rig = SealedRig(plan)
    rig.granted_run(b"t", "r", *([result(3, FAR)] if far else []))
    rig.core.drain(rig.now)
    rig.core.drain_over(rig.now)
    assert [request.WhichOneof("final") for request in rig.requests()] == ["release"]


def test_signals_that_go_on_with_the_next_part_are_sealed_again() -> None:
    def plan(script: Script, event: HistoryEvent) -> None:
        if event.position == 2:
            script.letters = [SignalReceived(signal_id="s1", data=Payload(data=b"1"))]
            script.outcome = Outcome(next_input=Payload(data=b"2"))

    rig = SealedRig(plan)
    rig.granted_run()
    said = rig.request().continue_run
    assert [(letter.signal_id, letter.data.encoding, letter.data.data) for letter in said.carried] == [
        ("s1", SEALED, b"")
    ]
