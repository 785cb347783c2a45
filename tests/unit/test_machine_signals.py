"""Signals and questions as the machine sees them: recorded once, news to the run, and seen before it closes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.machine_rig import RUN, Owner, Rig, sleep, value

from treadle.controlplane.machine import Settings
from treadle.controlplane.machine.requests import RunReply, SignalRun
from treadle.controlplane.machine.signals import STATE_FIELD, answer_field
from treadle.protocol.errors import FieldInvalid, NotFound, Refused, RunClosed
from treadle.v1.history_pb2 import SignalAnswered, StatePublished
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_OPEN, RUN_STATE_PARKED, RUN_STATE_QUEUED
from treadle.v1.worker_service_pb2 import (
    ANSWER_NEWS,
    ANSWER_OK,
    AnswerSignal,
    Command,
    CompleteRun,
    ParkRun,
    PublishState,
)


def signal(signal_id: str = "s1", *, asks: bool = False, text: str = "v") -> SignalRun:
    return SignalRun(signal_id, "go", value(text), asks)


def publish(number: int = 1, text: str = "shown") -> Command:
    return Command(command_id=f"0/state#{number}", digest=9, publish_state=PublishState(state=value(text)))


def answer(signal_id: str = "s1", text: str = "42") -> Command:
    said = AnswerSignal(signal_id=signal_id, result=value(text))
    return Command(command_id="0/answer#1", digest=8, answer_signal=said)


def opened() -> tuple[Rig, Owner]:
    rig = Rig()
    rig.start()
    return rig, rig.open()


def test_a_signal_is_recorded_once_whoever_sends_it_again_and_however_late() -> None:
    rig, owner = opened()
    for _ in range(2):
        reply = rig.ask(signal())
        assert isinstance(reply, RunReply) and reply.head.length == 3
    both = rig.batch(signal("s2"), signal("s2"), signal("s3"))
    assert all(isinstance(reply, RunReply) for reply in both)
    assert [e.signal_received.signal_id for e in rig.history()[2:]] == ["s1", "s2", "s3"]
    assert owner.say(complete=CompleteRun(), unread=["s2", "s3"]).answer == ANSWER_OK
    assert isinstance(rig.ask(signal("s2")), RunReply), "it was taken before the run closed"
    assert isinstance(rig.ask(signal("s4")), RunClosed)
    assert list(rig.last("run_completed").unread) == ["s2", "s3"]


def test_an_id_is_of_a_signal_or_of_a_question() -> None:
    rig, _ = opened()
    rig.ask(signal())
    refused = rig.ask(signal(asks=True))
    assert isinstance(refused, FieldInvalid) and "'s1'" in str(refused) and refused.field == "signal_id"
    assert rig.kinds().count("signal_received") == 1


def test_there_must_be_a_run() -> None:
    assert isinstance(Rig().ask(signal()), NotFound)


def test_a_new_start_of_the_id_knows_nothing_of_old_signals() -> None:
    from treadle.v1.run_service_pb2 import CONFLICT_POLICY_ALLOW_CLOSED

    rig, _ = opened()
    rig.ask(signal())
    rig.terminate()
    rig.start("again", CONFLICT_POLICY_ALLOW_CLOSED)
    rig.ask(signal())
    assert rig.kinds() == ["run_started", "signal_received"]


def test_it_wakes_a_parked_run_and_is_watched_in_an_open_one() -> None:
    rig, owner = opened()
    owner.say(sleep())
    rig.ask(signal())
    head = rig.head
    assert head.state == RUN_STATE_OPEN and head.watch_due_ms == rig.now + rig.settings.unseen_ms
    hint = rig.decision.change.hint if rig.decision.change else None
    assert hint is not None and hint.length == head.length
    owner.say()
    assert owner.say(park=ParkRun()).answer == ANSWER_OK
    assert rig.head.state == RUN_STATE_PARKED
    rig.ask(signal("s2"))
    assert rig.head.state == RUN_STATE_QUEUED and rig.outbox()


@pytest.mark.parametrize("last", [{"park": ParkRun()}, {"complete": CompleteRun()}])
def test_nothing_parks_or_closes_over_a_signal_that_the_code_has_not_seen(last: dict[str, Any]) -> None:
    rig, owner = opened()
    owner.catch_up()
    rig.ask(signal())
    refused = owner.send(owner.request(**last))
    assert refused.answer == ANSWER_NEWS
    assert [e.signal_received.signal_id for e in refused.events] == ["s1"]
    assert owner.say(**last).answer == ANSWER_OK
    assert rig.head.state != RUN_STATE_OPEN


def test_the_answer_to_a_question_stands_beside_the_history() -> None:
    rig, owner = opened()
    rig.ask(signal(asks=True))
    told = owner.say(answer())
    assert told.answer == ANSWER_OK
    event = told.events[-1].signal_answered
    assert (event.signal_id, event.HasField("result")) == ("s1", False), "its own words do not come back"
    kept = SignalAnswered.FromString(rig.fields()[answer_field("s1")])
    assert (kept.signal_id, kept.result.data) == ("s1", b"42")
    assert rig.last("signal_answered") == kept


def test_the_last_state_stands_beside_the_history() -> None:
    rig, owner = opened()
    owner.say(publish(), publish(2, "later"))
    assert StatePublished.FromString(rig.fields()[STATE_FIELD]).state.data == b"later"
    assert rig.kinds()[-2:] == ["state_published"] * 2


def test_notes_may_come_with_an_outcome_and_need_not_be_seen() -> None:
    rig, owner = opened()
    assert owner.say(publish(), complete=CompleteRun()).answer == ANSWER_OK
    assert rig.kinds()[-2:] == ["state_published", "run_completed"]
    assert rig.head.state == RUN_STATE_CLOSED


def test_a_step_that_comes_with_an_outcome_must_be_seen() -> None:
    rig, owner = opened()
    assert owner.say(publish(), sleep(), complete=CompleteRun()).answer == ANSWER_NEWS
    assert rig.head.state == RUN_STATE_OPEN


def test_a_note_that_is_said_twice_is_one() -> None:
    rig, owner = opened()
    ask = owner.catch_up().request(publish())
    owner.send(ask)
    owner.send(ask)
    again = owner.request(publish())  # under another number, before the answer was read
    owner.send(again)
    assert rig.kinds().count("state_published") == 1


def test_a_flood_of_signals_is_refused_before_it_stops_the_run() -> None:
    rig = Rig(Settings(history_limit=20))
    rig.start()
    replies = [rig.ask(signal(f"s{n}")) for n in range(30)]
    refused = [reply for reply in replies if isinstance(reply, Refused)]
    assert refused and refused[0].reason == "HISTORY_FULL" and RUN.run_id in str(refused[0])
    assert rig.head.length == 18 and rig.head.state == RUN_STATE_QUEUED


def test_a_closed_run_with_many_signals_is_swept() -> None:
    rig = Rig()
    rig.start()
    owner = rig.open()
    owner.say(*(sleep(f"0/sleep#{n}", 10**9) for n in range(50)))
    for n in range(300):
        rig.ask(signal(f"s{n}"))
    owner.say(complete=CompleteRun())
    turns = 0
    while rig.head.sweeping:
        rig.fire()
        turns += 1
        assert turns < 30
    assert turns > 1
    assert not [name for name in rig.fields() if name.startswith("c:")]
    length = rig.head.length
    assert isinstance(rig.ask(signal("s0")), RunReply) and rig.head.length == length, "its id is known"
