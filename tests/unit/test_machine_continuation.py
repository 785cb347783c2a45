"""A run that goes on as new, as the machine sees it: what outlives the part before, and what is refused in between."""

from __future__ import annotations

import pytest
from tests.unit.machine_rig import RUN, Owner, Rig, schedule, sleep, value

from treadle.controlplane.machine.requests import CancelRun, FireTimer, RunReply, SignalRun, TerminateRun
from treadle.protocol.errors import RunClosed, Unavailable
from treadle.v1.common_pb2 import ON_PARENT_CLOSE_CANCEL, OnParentClose, ParentRun, Tag
from treadle.v1.history_pb2 import SignalReceived
from treadle.v1.state_pb2 import RUN_STATE_CLOSED, RUN_STATE_CONTINUING, RUN_STATE_OPEN, RUN_STATE_QUEUED
from treadle.v1.worker_service_pb2 import (
    ANSWER_NEWS,
    ANSWER_OK,
    ANSWER_SETTLED,
    VERDICT_STALE,
    AnswerSignal,
    CancelledRun,
    Command,
    CompleteRun,
    ContinueRun,
    PublishState,
    ScheduleChild,
)


def signal(signal_id: str, *, asks: bool = False) -> SignalRun:
    return SignalRun(signal_id, "go", value(signal_id), asks)


def opened() -> tuple[Rig, Owner]:
    rig = Rig()
    rig.start()
    return rig, rig.open()


def waiting(rig: Rig, *ids: str) -> list[SignalReceived]:
    """What the code has not received of these."""
    letters = [event.signal_received for event in rig.history() if event.HasField("signal_received")]
    return [letter for letter in letters if letter.signal_id in ids]


def test_the_next_part_has_its_own_history_and_what_was_carried() -> None:
    rig, owner = opened()
    before = rig.head
    for signal_id in ("s1", "s2", "s3"):
        rig.ask(signal(signal_id))
    state = Command(command_id="0/state#1", digest=9, publish_state=PublishState(state=value("shown")))
    owner.say(state)
    owner.catch_up()
    said = ContinueRun(input=value("next"), carried=waiting(rig, "s2", "s3"), known=["s1", "s2", "s3"])
    assert owner.say(continue_run=said).answer == ANSWER_OK
    assert rig.kinds()[-1] == "run_continued" and rig.last("run_continued").carried == 2
    assert rig.head.state == RUN_STATE_CONTINUING and rig.due() == [""]
    rig.fire()
    head = rig.head
    assert rig.kinds() == ["run_started", "signal_received", "signal_received"]
    assert (head.state, head.part, head.first_incarnation) == (RUN_STATE_QUEUED, 2, before.incarnation)
    assert head.incarnation not in (0, before.incarnation)
    started = rig.last("run_started")
    assert (started.input, started.part, started.continued_from) == (value("next"), 2, before.incarnation)
    assert [letter.signal_id for letter in waiting(rig, "s2", "s3")] == ["s2", "s3"]
    assert set(rig.fields()) == {"s:s1", "s:s2", "s:s3", "state"}, "ids stay known, and the state is still shown"
    assert list(started.known_signals) == ["s1"], "those that are carried are fed again"
    for again in ("s1", "s3"):
        assert isinstance(rig.ask(signal(again)), RunReply) and rig.head.length == 3


def test_ids_and_answers_outlive_the_sweep_of_what_the_code_left() -> None:
    """They fill more than a page of what a sweep reads, and the row stands behind them."""
    rig, owner = opened()
    ids = [f"s{number}" for number in range(300)]
    for signal_id in ids:
        rig.ask(signal(signal_id, asks=signal_id == "s7"))
    owner.say(
        Command(command_id="0/answer#1", digest=8, answer_signal=AnswerSignal(signal_id="s7", result=value("42")))
    )
    owner.say(sleep())
    owner.say(continue_run=ContinueRun(input=value("next"), known=ids))
    while rig.head.state == RUN_STATE_CONTINUING:
        rig.fire()
    assert set(rig.fields()) == {"a:s7", *(f"s:{signal_id}" for signal_id in ids)}
    assert list(rig.last("run_started").known_signals) == ids
    assert isinstance(rig.ask(signal("s0")), RunReply) and rig.kinds() == ["run_started"]


def test_parts_follow_each_other_and_clients_know_the_first() -> None:
    rig, owner = opened()
    first = rig.head.incarnation
    for part in (2, 3):
        owner.say(continue_run=ContinueRun(input=value(str(part))))
        rig.fire()
        assert (rig.head.part, rig.head.first_incarnation) == (part, first)
        owner = rig.open()
    again = rig.start()
    assert again.started and again.head.incarnation == rig.head.incarnation, (
        "the start is still the one that was asked for"
    )
    owner.say(complete=CompleteRun(result=value("done")))
    assert rig.head.state == RUN_STATE_CLOSED


def test_what_the_code_left_behind_is_swept_first() -> None:
    rig = Rig()
    owner = rig.with_step(schedule("0/s#1"), schedule("0/s#2"), sleep())
    grant = rig.hold("B", "0/s#1")
    job = rig.step_job("0/s#2")
    incarnation = rig.head.incarnation
    owner.say(continue_run=ContinueRun(input=value("next")))
    assert rig.claim(job).verdict == VERDICT_STALE, "nothing of the part before starts any more"
    decision = rig.fire()
    assert [order.token for order in decision.cancels] == [grant.token]
    assert rig.head.state == RUN_STATE_CONTINUING and rig.head.sweeping
    rig.fire()
    assert rig.kinds() == ["run_started"] and not rig.head.open_commands
    assert set(rig.timers()) == {""}
    assert rig.report(grant.token, incarnation=incarnation).answer == ANSWER_SETTLED
    assert rig.claim(job).verdict == VERDICT_STALE


def test_children_hear_what_their_policy_says_and_the_parent_nothing() -> None:
    rig = Rig()
    request = rig.start_request()
    request.parent = ParentRun(run_id="above", incarnation=5, command_id="0/wf#1")
    rig.ask(request)
    owner = rig.open()
    policies: list[OnParentClose.ValueType] = [ON_PARENT_CLOSE_CANCEL]
    for number, policy in enumerate(policies):
        spec = ScheduleChild(run_id=f"below{number}", workflow="w", pool="p", input=value(), on_parent_close=policy)
        owner.say(Command(command_id=f"0/w#{number}", digest=4, schedule_child=spec))
    owner.say(continue_run=ContinueRun(input=value("next")))
    assert not rig.decision.letters
    decision = rig.fire()
    assert [(letter.run_id, letter.WhichOneof("kind")) for letter in decision.letters] == [("below0", "stop_child")]
    decision = rig.fire()
    assert not decision.letters and rig.head.parent.run_id == "above"
    rig.open().say(complete=CompleteRun(result=value("done")))
    assert [(letter.run_id, letter.child_closed.result) for letter in rig.decision.letters] == [
        ("above", value("done"))
    ]


def test_who_asks_in_between_asks_again() -> None:
    rig, owner = opened()
    owner.say(continue_run=ContinueRun(input=value("next")))
    for request in (signal("s1"), CancelRun("c", "why"), TerminateRun("t", "why")):
        assert isinstance(rig.ask(request), Unavailable)
    rig.fire()
    assert isinstance(rig.ask(signal("s1")), RunReply) and rig.kinds() == ["run_started", "signal_received"]
    assert isinstance(rig.terminate(), RunReply)
    assert isinstance(rig.ask(signal("s2")), RunClosed)


def test_the_next_part_begins_alone_in_its_commit() -> None:
    """Who is decided beside it would see neither what is kept nor what is dropped."""
    rig, owner = opened()
    owner.say(continue_run=ContinueRun(input=value("next")))
    replies = rig.batch(FireTimer(""), signal("s1"))
    assert isinstance(replies[1], Unavailable) and rig.head.state == RUN_STATE_CONTINUING and rig.due() == [""]


def test_news_come_first() -> None:
    rig, owner = opened()
    owner.catch_up()
    ask = owner.request(continue_run=ContinueRun(input=value("next")))
    rig.ask(signal("s1"))
    assert owner.send(ask).answer == ANSWER_NEWS and rig.head.state == RUN_STATE_OPEN


def test_a_cancel_that_the_code_could_not_be_told_is_raised_in_the_next_part() -> None:
    rig, owner = opened()
    owner.catch_up()
    ask = owner.request(continue_run=ContinueRun(input=value("next")))
    assert isinstance(rig.ask(CancelRun("c", "enough")), RunReply)
    assert owner.send(ask).answer == ANSWER_NEWS
    owner.catch_up()
    rig.ask(signal("s1"))
    owner.catch_up()
    said = ContinueRun(input=value("next"), carried=waiting(rig, "s1"), unheard=True)
    assert owner.say(continue_run=said).answer == ANSWER_OK
    rig.fire()
    assert rig.kinds() == ["run_started", "cancel_requested", "signal_received"]
    assert rig.last("cancel_requested").reason == "enough"
    assert (rig.head.cancel_requested, rig.head.cancel_reason) == (True, "enough")
    assert rig.open().say(cancelled=CancelledRun()).answer == ANSWER_OK
    assert rig.last("run_cancelled").reason == "enough"


def test_one_that_the_code_was_told_of_is_over_with_its_part() -> None:
    rig, owner = opened()
    rig.ask(CancelRun("c", "enough"))
    owner.catch_up()
    owner.say(continue_run=ContinueRun(input=value("next")))
    rig.fire()
    assert rig.kinds() == ["run_started"] and not rig.head.cancel_requested and not rig.head.cancel_reason
    rig.ask(CancelRun("another", "now"))
    assert rig.last("cancel_requested").reason == "now"


def test_so_is_a_timeout_of_the_run() -> None:
    rig = Rig()
    request = rig.start_request()
    request.timeout_ms = 60_000
    rig.ask(request)
    owner = rig.open()
    rig.wait(60_000)
    rig.fire()
    raised = rig.last("run_timed_out")
    owner.catch_up()
    owner.say(continue_run=ContinueRun(input=value("next"), unheard=True))
    rig.fire()
    assert rig.kinds() == ["run_started", "run_timed_out"] and rig.last("run_timed_out") == raised
    assert rig.open().say(cancelled=CancelledRun()).answer == ANSWER_OK
    assert rig.last("run_failed").failure.type == "RunTimedOut"


def test_the_same_request_again_changes_nothing() -> None:
    rig, owner = opened()
    owner.catch_up()
    ask = owner.request(continue_run=ContinueRun(input=value("next")))
    assert owner.send(ask).answer == ANSWER_OK
    assert owner.send(ask).answer == ANSWER_SETTLED
    rig.fire()
    assert owner.send(ask).answer == ANSWER_SETTLED and rig.head.part == 2


def test_answers_to_known_questions_are_kept() -> None:
    rig, owner = opened()
    rig.ask(signal("q1", asks=True))
    said = AnswerSignal(signal_id="q1", result=value("42"))
    owner.say(Command(command_id="0/answer#1", digest=8, answer_signal=said))
    owner.say(continue_run=ContinueRun(input=value("next"), known=["q1"]))
    rig.fire()
    assert set(rig.fields()) == {"s:q1", "a:q1"}


@pytest.mark.parametrize("left_out", [1, 500])
def test_signals_without_room_fail_the_run(left_out: int) -> None:
    rig, owner = opened()
    rig.ask(signal("s1"))
    said = ContinueRun(input=value("next"), carried=waiting(rig, "s1"), left_out=left_out)
    owner.say(continue_run=said)
    failed = rig.last("run_failed")
    assert rig.head.state == RUN_STATE_CLOSED and failed.failure.type == "TooManyUnread"
    assert f"{left_out + 1} signals were not received" in failed.failure.message and list(failed.unread) == ["s1"]


def test_the_run_is_never_without_a_next_look() -> None:
    rig, owner = opened()
    owner.say(continue_run=ContinueRun(input=value("next")))
    assert rig.timers()[""] <= rig.now
    rig.fire()
    assert rig.timers()[""] > rig.now and rig.outbox(), f"a wake of {RUN} is on its way"


def test_what_the_start_said_holds_for_all_parts() -> None:
    rig = Rig()
    request = rig.start_request()
    request.workflow, request.tags, request.timeout_ms = "wf@2", [Tag(key="customer", value="42")], 60_000
    rig.ask(request)
    deadline = rig.head.deadline_ms
    Owner(rig, rig.claim(rig.run_job()).grant, "A").say(continue_run=ContinueRun(input=value("next")))
    rig.wait(1_000)
    rig.fire()
    head, started = rig.head, rig.last("run_started")
    assert (head.workflow, head.version, head.deadline_ms) == ("wf", "2", deadline)
    assert list(head.tags) == list(started.tags) == request.tags and started.version == "2"
    assert "customer" in str(rig.indexes()), "it is still found by its tag"


def test_a_run_of_a_schedule_still_tells_it_in_the_end() -> None:
    rig = Rig()
    request = rig.start_request()
    request.parent = ParentRun(run_id="~schedule/nightly", incarnation=5, command_id="o1")
    rig.ask(request)
    rig.open().say(continue_run=ContinueRun(input=value("next")))
    rig.fire()
    assert not rig.last("run_started").HasField("parent"), "no run started it"
    rig.open().say(complete=CompleteRun())
    assert [letter.run_id for letter in rig.decision.letters] == ["~schedule/nightly"]
